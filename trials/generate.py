"""What a model writes by itself: greedy completions of a few evaluation prompts, in one batch.

    [mine] = samples(model, tokenizer, examples, dtype)
    with pack.flying(flight):                               # as many adapters as `flight` has slots
        theirs = samples(model, tokenizer, examples, dtype, slots=n)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trials.contract import Sample
from trials.data.examples import Example
from trials.decode import decoded, recordable
from trials.evaluate import computing
from trials.training.limits import check_device, out_of_memory

MARGIN = 2  # times as long as the reference, so that a completion that does not end is seen
LONGEST = 128  # tokens; a sample shows how a model writes, it need not show a whole page

_failed: WeakSet[Any] = WeakSet()  # models whose steps could not be recorded, against `recordable`


@dataclass(frozen=True)
class Prompt:
    """All before an example's last completion, and how many tokens may follow."""

    example: Example
    ids: list[int]
    longest: int


def samples(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    dtype: torch.dtype,
    slots: int = 1,
) -> list[tuple[Sample, ...]]:
    """The completions of the examples' prompts, once for each slot.

    The rows of a batch are ordered by slot: row `slot * prompts + prompt`. Prompts are halved
    where they do not fit into memory together; where one does not, the error is raised.
    """
    if not examples:
        return [() for _ in range(slots)]
    prompts = [_prompt(example, _positions(model)) for example in examples]
    with _greedy(model), torch.no_grad(), computing(model.device, dtype):
        texts = _written(model, tokenizer, prompts, slots)
    return [tuple(map(_sample, prompts, of_slot)) for of_slot in texts]


def _written(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], slots: int
) -> list[list[str]]:
    try:
        return _batch(model, tokenizer, prompts, slots)
    except Exception as error:
        if len(prompts) == 1 or not out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    middle = len(prompts) // 2
    halves = [_written(model, tokenizer, p, slots) for p in (prompts[:middle], prompts[middle:])]
    return [[*first, *second] for first, second in zip(*halves, strict=True)]


def _batch(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], slots: int
) -> list[list[str]]:
    """One padded batch with a cache of keys and values, padded on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    pad, ends = int(tokenizer.pad_token_id), _ends(model, tokenizer)
    rows = [[pad] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts]
    real = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts]
    ids = torch.tensor(rows * slots, device=model.device)
    mask = torch.tensor(real * slots, device=model.device)
    most = max(prompt.longest for prompt in prompts)
    written = _by_recorded_steps(model, ids, mask, most, ends)
    if written is None:
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=ends,
        )[:, width:]
    texts = [
        _text(tokenizer, row, prompt, ends)
        for row, prompt in zip(written.tolist(), prompts * slots, strict=True)
    ]
    return [texts[first : first + len(prompts)] for first in range(0, len(texts), len(prompts))]


def _by_recorded_steps(
    model: Any, ids: Tensor, mask: Tensor, most: int, ends: list[int]
) -> Tensor | None:
    """What follows, by recorded steps; None where the model's cannot be recorded."""
    if model.device.type != "cuda" or model in _failed or not recordable(model):
        return None
    try:
        return decoded(model, ids, mask, most=most, ends=ends, records=True)
    except Exception as error:
        if out_of_memory(error) or (error.__context__ and out_of_memory(error.__context__)):
            raise
        check_device(model.device, error)
        _failed.add(model)
        said = (str(error) or type(error).__name__).splitlines()[0]
        print(f"samples are written step by step, which is slower: {said}", file=sys.stderr)
        return None


def _text(
    tokenizer: PreTrainedTokenizerBase, row: list[int], prompt: Prompt, ends: list[int]
) -> str:
    """As if the prompt had been alone: up to its own end or limit."""
    stop = next((at for at, token in enumerate(row) if token in ends), len(row))
    return str(tokenizer.decode(row[: min(stop, prompt.longest)], skip_special_tokens=True))


def _sample(prompt: Prompt, generated: str) -> Sample:
    example = prompt.example
    return Sample(prompt=example.prompt, reference=example.completion, generated=generated)


def _prompt(example: Example, positions: int | None) -> Prompt:
    """All before the last completion; of a conversation, its last answer."""
    mask = example.loss_mask
    begins = [at for at in range(1, len(mask)) if mask[at] and not mask[at - 1]]
    ids = list(example.input_ids[: begins[-1]])
    longest = min(LONGEST, MARGIN * (len(mask) - len(ids)))
    if positions is not None:
        longest = min(longest, positions - len(ids))
    return Prompt(example, ids, max(1, longest))


def _positions(model: Any) -> int | None:
    """How many tokens the model has positions for, where it says."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return known if isinstance(known, int) else None


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text; chat models have one for a turn besides."""
    known = getattr(model, "generation_config", None)
    own = getattr(known, "eos_token_id", None) or []
    listed = own if isinstance(own, list) else [own]
    return list(dict.fromkeys([int(tokenizer.eos_token_id), *map(int, listed)]))


@contextmanager
def _greedy(model: Any) -> Iterator[None]:
    """Evaluation mode, and none of the preferences a base comes with (repetition penalties, ...).

    Its end tokens stay.
    """
    training, own = model.training, model.generation_config
    model.eval()
    plain: Any = GenerationConfig
    model.generation_config = plain(eos_token_id=own.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)
