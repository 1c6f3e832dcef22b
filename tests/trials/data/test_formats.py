"""The formats: what the model sees of a row and which part of it carries loss."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trials.base import Base, load_base
from trials.contract import DataConfig, InputError, ModelConfig
from trials.data import Data, load_data

Pieces = list[tuple[str, bool]]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(ModelConfig(name="demo", quantisation="none"), "cpu", silent)


def load(base: Base, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Data:
    """The rows as training data, with `OTHER` rows to evaluate on."""
    (folder / "train.json").write_text(json.dumps(rows))
    evaluated = [{**row, **OTHER[settings["format"]]} for row in rows]
    (folder / "test.json").write_text(json.dumps(evaluated))
    config = DataConfig(**{"path": str(folder), "eval_split": "test", "eval_size": 1, **settings})
    return load_data(config, base, 0, silent)


def shown(base: Base, folder: Path, row: dict[str, Any], **settings: Any) -> Pieces:
    """What the model sees of a row, in pieces with loss or not."""
    return list(load(base, folder, [row], **settings).rendered.pieces)


OTHER: dict[str, dict[str, Any]] = {
    "text": {"text": "Something else. Price is $1"},
    "alpaca": {"output": "Something else."},
    "chat": {"messages": [{"role": "user", "content": "Else?"},
                          {"role": "assistant", "content": "Something else."}]},
    "dialogue": {"summary": "Something else."},
}

# --- text ----------------------------------------------------------------------------------------


def test_text_is_split_after_the_response_template(base: Base, tmp_path: Path) -> None:
    row = {"text": "How much?\n\nA lamp. Price is $ low.\n\nPrice is $42.00"}
    pieces = shown(base, tmp_path, row, format="text", response_template="Price is $")
    assert pieces == [
        ("<bos>How much?\n\nA lamp. Price is $ low.\n\nPrice is $", False), ("42.00<eos>", True),
    ]


def test_a_template_that_no_sample_has(base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="response_template='Cost: ': found in no sample, of 1"):
        shown(base, tmp_path, {"text": "Price is $42"}, format="text", response_template="Cost: ")


def test_samples_that_lack_the_template_are_named(base: Base, tmp_path: Path) -> None:
    rows = [{"text": f"Lamp {i}. Price is ${i}"} for i in range(20)]
    rows[3]["text"], rows[4]["text"] = "Lamp", "Lamp. Price is $"
    settings = {"format": "text", "response_template": "Price is $"}
    data = load(base, tmp_path, rows, **settings)
    assert data.facts.dropped == 2
    assert "each lacks the response template (row 4)" in data.facts.warnings[0]
    assert "each has an empty completion (row 5)" in data.facts.warnings[1]
    with pytest.raises(InputError, match="1 of 20 rows cannot be used: each lacks.*max_dropped=0 "):
        load(base, tmp_path, rows, **settings, max_dropped=0.0)


def test_text_without_a_template(base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.response_template is missing.*data.loss_on=all"):
        shown(base, tmp_path, {"text": "A lamp."}, format="text")
    pieces = shown(base, tmp_path, {"text": "A lamp."}, format="text", loss_on="all")
    assert pieces == [("<bos>", False), ("A lamp.<eos>", True)]


def test_half_a_character_is_named(base: Base, tmp_path: Path) -> None:
    rows = [{"text": f"Lamp {i}. Price is ${i}"} for i in range(20)]
    rows[6]["text"] = "A \ud83d lamp. Price is $7"
    data = load(base, tmp_path, rows, format="text", response_template="Price is $")
    assert "each has half a character (a lone surrogate) (row 7)" in data.facts.warnings[0]


@pytest.mark.parametrize("item", [["42"], {"value": "42"}])
def test_a_column_that_is_no_text(base: Base, tmp_path: Path, item: Any) -> None:
    with pytest.raises(InputError, match="column 'text' holds a .*, not text: .*42.*format=chat"):
        shown(base, tmp_path, {"text": item}, format="text", loss_on="all")


# --- alpaca --------------------------------------------------------------------------------------


def test_alpaca_without_an_input(base: Base, tmp_path: Path) -> None:
    row = {"instruction": "Name a fruit.", "input": "", "output": "Pear."}
    assert shown(base, tmp_path, row, format="alpaca") == [
        ("<bos>Below is an instruction that describes a task. Write a response that appropriately "
         "completes the request.\n\n### Instruction:\nName a fruit.\n\n### Response:\n", False),
        ("Pear.<eos>", True),
    ]
    del row["input"]
    assert shown(base, tmp_path, row, format="alpaca")[1] == ("Pear.<eos>", True)


def test_alpaca_with_an_input(base: Base, tmp_path: Path) -> None:
    row = {"instruction": "Add {these}.", "input": "1 and 2", "output": "3"}
    assert shown(base, tmp_path, row, format="alpaca") == [
        ("<bos>Below is an instruction that describes a task, paired with an input that provides "
         "further context. Write a response that appropriately completes the request.\n\n"
         "### Instruction:\nAdd {these}.\n\n### Input:\n1 and 2\n\n### Response:\n", False),
        ("3<eos>", True),
    ]


# --- chat ----------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}"
    "<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
LLAMA2 = (  # asks with nothing of its own, and writes a space before the answer
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # thinks in the last turn only, and forgets what it thought before
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Bye."},
]


def chatting(base: Base, template: str | None, *specials: str) -> Base:
    """The base with a chat template and its special tokens."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens([*specials], special_tokens=True)
    tokenizer.chat_template = template
    return replace(base, tokenizer=tokenizer)


def test_loss_on_every_assistant_turn(base: Base, tmp_path: Path) -> None:
    chatml = chatting(base, CHATML, "<|im_start|>", "<|im_end|>")
    assert shown(chatml, tmp_path, {"messages": TALK}, format="chat") == [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
         "<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>", True),
        ("\n<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>", True),
        ("\n", False),
    ]


def test_a_template_with_its_own_beginning_and_end(base: Base, tmp_path: Path) -> None:
    llama3 = chatting(base, LLAMA3, "<|start|>", "<|end|>", "<|eot|>")
    pieces = shown(llama3, tmp_path, {"messages": TALK[1:3]}, format="chat")
    assert pieces == [
        ("<bos><|start|>user<|end|>\n\nHi?<|eot|><|start|>assistant<|end|>\n\n", False),
        ("Yes.<|eot|>", True),
    ]


def test_a_template_that_asks_with_nothing(base: Base, tmp_path: Path) -> None:
    pieces = shown(chatting(base, LLAMA2), tmp_path, {"messages": TALK[1:]}, format="chat")
    assert pieces == [
        ("<bos>[INST] Hi? [/INST]", False), (" Yes.<eos>", True),
        ("[INST] Again? [/INST]", False), (" Yes.<eos>", True),
    ]


def test_a_template_that_says_the_date_gives_the_same_data_any_day(
    base: Base, tmp_path: Path
) -> None:
    dated = chatting(base, "Today: {{ strftime_now('%d %b %Y') }}\n" + LLAMA2)
    pieces = shown(dated, tmp_path, {"messages": TALK[1:3]}, format="chat")
    assert pieces[0] == ("Today: 26 Jul 2024\n<bos>[INST] Hi? [/INST]", False)


def test_a_template_that_thinks(base: Base, tmp_path: Path) -> None:
    qwen3 = chatting(base, QWEN3, "<|im_start|>", "<|im_end|>")
    pieces = shown(qwen3, tmp_path, {"messages": TALK[1:5]}, format="chat")
    assert [text for text, has_loss in pieces if has_loss] == [
        "Yes.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"
    ]
    thought = [TALK[1], {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}]
    pieces = shown(qwen3, tmp_path, {"messages": thought}, format="chat")
    assert pieces[1] == ("<think>\nHm.\n</think>\n\nYes.<|im_end|>", True)


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
        json.dumps(TALK[1:3]),
        [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, TALK[2]],
    ],
)
def test_shapes_of_messages(base: Base, tmp_path: Path, messages: Any) -> None:
    pieces = shown(chatting(base, LLAMA2), tmp_path, {"messages": messages}, format="chat")
    assert pieces == [("<bos>[INST] Hi? [/INST]", False), (" Yes.<eos>", True)]


def test_prompt_and_completion_of_a_chat(base: Base, tmp_path: Path) -> None:
    data = load(chatting(base, LLAMA2), tmp_path, [{"messages": TALK[1:]}], format="chat")
    assert data.train[0].prompt == "<bos>[INST] Hi? [/INST] Yes.<eos>[INST] Again? [/INST]"
    assert data.train[0].completion == " Yes.<eos>"


def test_a_model_without_a_chat_template(base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no chat template.*instruct or chat version"):
        shown(base, tmp_path, {"messages": TALK}, format="chat")


def test_a_template_that_refuses(base: Base, tmp_path: Path) -> None:
    strict = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="of 1 rows.*refused by .*a conversation of.*no system"):
        shown(chatting(base, strict), tmp_path, {"messages": TALK}, format="chat")


def test_one_conversation_that_the_template_refuses_is_named(base: Base, tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}"
    rows = [{"messages": TALK[1:3]}] * 9 + [{"messages": TALK}]
    data = load(chatting(base, strict + "{% endif %}" + LLAMA2), tmp_path, rows, format="chat")
    [warning] = data.facts.warnings
    assert warning == (
        "1 of 10 rows of data.path dropped: each is refused by this model's chat template, as a "
        "conversation of system, user, assistant, user, assistant: No system role (row 10)."
    )


def test_a_template_that_rewrites_what_was_said(base: Base, tmp_path: Path) -> None:
    upper = "{% for m in messages %}{{ m.content | upper }}{{ m.content | length }}{% endfor %}"
    with pytest.raises(InputError, match="rewritten by this model.s chat template"):
        shown(chatting(base, upper), tmp_path, {"messages": TALK[1:3]}, format="chat")


def test_conversations_without_an_answer_are_named(base: Base, tmp_path: Path) -> None:
    rows = [{"messages": TALK[1:3]}] * 9 + [{"messages": TALK[:2]}]
    data = load(chatting(base, LLAMA2), tmp_path, rows, format="chat")
    assert data.facts.warnings == (
        "1 of 10 rows of data.path dropped: each has no assistant turn (row 10).",
    )


# --- dialogue ------------------------------------------------------------------------------------


def test_a_dialogue_and_its_summary(base: Base, tmp_path: Path) -> None:
    row = {
        "turns": [{"speaker": "customer", "text": "@115712 my  phone is dead https://t.co/x1"},
                  {"speaker": "agent", "text": "Sorry!\nTry again. ^JK"}],
        "summary": "The phone  is dead.",
    }
    pieces = shown(base, tmp_path, row, format="dialogue")
    assert pieces == [
        ("<bos>Below is a conversation between a customer and an agent. Write a summary of the "
         "conversation.\n\n### Conversation:\ncustomer: my phone is dead\n"
         "agent: Sorry! Try again.\n\n### Summary:\n", False),
        ("The phone is dead.<eos>", True),
    ]


# --- missing values ------------------------------------------------------------------------------

NO_WORDS = [TALK[1], {"role": "assistant", "content": math.nan}]


@pytest.mark.parametrize(
    ("settings", "row", "reason"),
    [
        ({"format": "text", "loss_on": "all"}, {"text": math.nan}, "an empty completion"),
        ({"format": "alpaca"}, {"instruction": "Add.", "output": math.nan}, "an empty completion"),
        ({"format": "dialogue"}, {"turns": "Hi.", "summary": math.nan}, "an empty completion"),
        ({"format": "dialogue"}, {"turns": [{"text": math.nan}], "summary": "Hi."}, "no turns"),
        ({"format": "chat"}, {"messages": math.nan}, "no assistant turn"),
        ({"format": "chat"}, {"messages": NO_WORDS}, "no assistant turn"),
        ({"format": "chat"}, {"messages": json.dumps(NO_WORDS)}, "no assistant turn"),
    ],
)
def test_what_is_not_a_number_is_missing(
    base: Base, tmp_path: Path, settings: dict[str, Any], row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=f"1 of 1 rows cannot be used: each has {reason}"):
        shown(chatting(base, LLAMA2), tmp_path, row, **settings)


def test_a_missing_input_is_no_word(base: Base, tmp_path: Path) -> None:
    row = {"instruction": "Name a fruit.", "input": math.nan, "output": "Pear."}
    prompt = shown(base, tmp_path, row, format="alpaca")[0][0]
    assert prompt.endswith("### Instruction:\nName a fruit.\n\n### Response:\n")
