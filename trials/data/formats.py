"""Rows -> texts with loss marks, one function per format.

A row that cannot be one gives the reason, as a string, instead of a `Text`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trials.contract import DataConfig, InputError
from trials.data import dialogue
from trials.data.chat import Chat
from trials.data.rows import Row
from trials.data.tokens import Text

# The two forms of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca), as its data's own `text`
# column has them: the response begins on a new line.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
EMPTY = "has an empty completion"
NO_UNICODE = "has half a character (a lone surrogate)"  # as from JSON cut in the middle of one
NO_TEMPLATE = "lacks the response template"

ToText = Callable[[Row], Text | str]


def formatter(data: DataConfig, columns: dict[str, str], tokenizer: Any) -> ToText:
    """The function that makes a row of this data a text. Raises InputError on a bad setting."""
    to_text = _formatter(data, columns, tokenizer)
    return lambda row: _encodable(to_text(_without_nan(row)))


def _formatter(data: DataConfig, columns: dict[str, str], tokenizer: Any) -> ToText:
    if data.format == "chat":
        chat = Chat(tokenizer)
        return lambda row: chat.text(row.get(columns["messages"]))
    if data.format == "text":
        return _text(data, columns["text"])
    if data.format == "demo":
        return lambda row: _pair(row["prompt"], row["completion"])
    if data.format == "completion":
        return lambda row: _pair(
            _string(row, columns["prompt"]), _string(row, columns["completion"])
        )
    return {"alpaca": _alpaca, "dialogue": _dialogue}[data.format](columns)


def _without_nan(item: Any) -> Any:
    """NaN, by which pandas says that a value is missing, becomes null wherever it stands."""
    if isinstance(item, dict):
        return {name: _without_nan(inner) for name, inner in item.items()}
    if isinstance(item, list):
        return [_without_nan(inner) for inner in item]
    return None if isinstance(item, float) and math.isnan(item) else item


def _encodable(text: Text | str) -> Text | str:
    if isinstance(text, str):
        return text
    try:
        "".join(piece for piece, _ in text.pieces).encode()
    except UnicodeEncodeError:
        return NO_UNICODE
    return text


def _pair(prompt: str, completion: str) -> Text | str:
    if not completion.strip():
        return EMPTY
    return Text(((prompt, False), (completion, True)) if prompt else ((completion, True),))


def _text(data: DataConfig, column: str) -> ToText:
    template = data.response_template
    if template:
        return lambda row: _split(_string(row, column), template)
    if data.loss_on == "all":
        return lambda row: _pair("", _string(row, column))
    raise InputError(
        "data.response_template is missing: loss on the completion needs to know where it begins. "
        "Type data.response_template='Price is $' (as your texts have it), or data.loss_on=all."
    )


def _split(text: str, template: str) -> Text | str:
    # The last occurrence: the texts before it may speak of the same thing.
    head, found, completion = text.rpartition(template)
    return _pair(head + found, completion) if found else NO_TEMPLATE


def _alpaca(columns: dict[str, str]) -> ToText:
    def text(row: Row) -> Text | str:
        instruction = _string(row, columns["instruction"])
        context = _string(row, columns["input"]) if "input" in columns else ""
        form = ALPACA_INPUT if context.strip() else ALPACA
        return _pair(form.format(instruction=instruction, input=context),
                     _string(row, columns["output"]))

    return text


def _dialogue(columns: dict[str, str]) -> ToText:
    def text(row: Row) -> Text | str:
        turns = dialogue.conversation(row.get(columns["turns"]))
        if not turns:
            return "has no turns"
        summary = dialogue.summary(row.get(columns["summary"]))
        return _pair(dialogue.PROMPT.format(turns=turns), summary)

    return text


def _string(row: Row, column: str) -> str:
    item = row.get(column)
    if isinstance(item, (list, dict, bytes)):
        raise InputError(
            f"data: the column {column!r} holds a {type(item).__name__}, not text: {item!r:.60}. "
            "Name a column of text, or for conversations type data.format=chat or dialogue."
        )
    return "" if item is None else str(item)
