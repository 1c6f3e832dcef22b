"""Data to test with, and what a base makes of it."""

from __future__ import annotations

from typing import Any

from bases import silent

from trials.base import Base
from trials.contract import DataConfig
from trials.data import Data, Example, load_data


def load(base: Base, *, seed: int = 0, **settings: Any) -> Data:
    """The data of these settings; five examples to evaluate on unless said otherwise."""
    return load_data(DataConfig(**{"eval_size": 5, **settings}), base, seed, silent)


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with a prompt and a completion, each another one."""
    return [{"prompt": f"What is {i}?", "completion": f" It is {i}."}
            for i in range(start, start + count)]


def with_loss(base: Base, example: Example) -> str:
    """The text that carries loss."""
    kept = [t for t, m in zip(example.input_ids, example.loss_mask, strict=True) if m]
    return str(base.tokenizer.decode(kept))


def everything(base: Base, example: Example) -> str:
    """The text that the model sees."""
    return str(base.tokenizer.decode(example.input_ids))


def contents(examples: Any) -> list[str]:
    """Prompts and completions as they came."""
    return [example.prompt + example.completion for example in examples]


def contents_of(rows: list[dict[str, Any]]) -> list[str]:
    """Likewise of rows."""
    return [row["prompt"] + row["completion"] for row in rows]
