"""Tokenising: the boundary between prompt and completion, on tokenizers of both great kinds."""

from __future__ import annotations

from typing import Any

import pytest

from trials.data.tokens import Encoder, Text, cut, render

CORPUS = ["Price is $123", "the price of a thing: $45.00\n", "Yes it is.\n\n", "[INST] a [/INST]"]


def _trained(kind: str) -> Any:
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = list({letter for text in CORPUS for letter in text} | {"\u2581"})
    if kind == "prefixed":  # as Llama 2's: a space before everything
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS * 9, trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if kind == "both ends" else "<s> $A",
        special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["bytes", "prefixed", "both ends"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return _trained(request.param)


PAIRS = [
    ("Price is $", "123"),
    ("Price is", " $123"),
    ("the price:\n", "Yes"),
    ("the price", "\n\nYes"),
    ("[INST] a [/INST]", " Yes it is."),
]


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_the_prompt_is_what_is_asked_and_the_completion_follows(
    tokenizer: Any, prompt: str, completion: str
) -> None:
    text = Text(((prompt, False), (completion, True)))
    ((ids, mask),) = Encoder(tokenizer).encode([text])
    asked = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    assert ids[: len(asked)] == asked  # as at inference, where there is no completion yet
    assert mask == [False] * len(asked) + [True] * (len(ids) - len(asked))
    assert (ids.count(1), ids.count(2), ids[-1]) == (1, 1, 2)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert whole.strip(" ") == prompt + completion  # no space that was not there


@pytest.mark.parametrize("completion", ["123</s>", "123</s>\n"])
def test_an_end_that_is_there_is_not_put_twice(tokenizer: Any, completion: str) -> None:
    ((ids, _),) = Encoder(tokenizer).encode([Text((("Price is $", False), (completion, True)))])
    assert ids.count(2) == 1


def test_a_beginning_that_is_there_is_not_put_twice(tokenizer: Any) -> None:
    for pieces in [(("<s>[INST] a [/INST]", False), (" Yes", True)), (("<s>Yes", True),)]:
        ((ids, mask),) = Encoder(tokenizer).encode([Text(pieces)])
        assert (ids[0], ids.count(1), mask[0]) == (1, 1, False)


def test_the_first_token_is_never_a_target(tokenizer: Any) -> None:
    texts = [Text((("Yes", True),)), Text((("<s>Yes", True),), rendered=True)]
    for ids, mask in Encoder(tokenizer).encode(texts):
        assert ids.count(1) == 1
        assert mask == [False] + [True] * (len(ids) - 1)


def test_a_sample_is_cut_at_its_end(tokenizer: Any) -> None:
    text = Text((("Price is $", False), ("123", True)))
    ((ids, mask),) = Encoder(tokenizer).encode([text])
    prompt = mask.index(True)
    assert cut(ids, mask, text, prompt) is None
    short = cut(ids, mask, text, prompt + 1)
    assert short is not None and short.input_ids == tuple(ids[: prompt + 1])
    assert (short.prompt, short.completion) == ("Price is $", "123")


def test_what_is_shown_is_what_there_is(tokenizer: Any) -> None:
    text = Text((("Yes it is.\n", False), ("the price", True), ("\nYes", False), (" is", True)))
    ((ids, mask),) = Encoder(tokenizer).encode([text])
    example = cut(ids, mask, text, 100)
    assert example is not None
    pieces = render(tokenizer, example)
    assert [has_loss for _, has_loss in pieces] == [False, True, False, True]
    assert [piece for piece, _ in pieces[1:]] == ["the price", "\nYes", " is</s>"]
