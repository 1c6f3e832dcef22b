"""Tokenised examples: one as a plain value, many as flat arrays that read like a sequence of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

FIELDS = {"input_ids": np.int32, "loss_mask": np.bool_, "prompt": np.uint8, "completion": np.uint8}


@dataclass(frozen=True)
class Example:
    """One sample. `loss_mask` is as long as `input_ids`, True where that token is a target.

    The first token is never a target: nothing comes before it that could predict it.
    """

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    prompt: str
    completion: str


class Examples(Sequence[Example]):
    """Examples in flat arrays (some ten bytes per token); an `Example` is made when asked for."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        """`arrays` has for each of `FIELDS` the flat items, and their ends under "<field>_ends"."""
        self.arrays = arrays

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """Packs examples into arrays."""
        rows = [(e.input_ids, e.loss_mask, e.prompt.encode(), e.completion.encode())
                for e in examples]
        arrays: dict[str, NDArray[Any]] = {}
        for index, (name, kind) in enumerate(FIELDS.items()):
            parts: list[NDArray[Any]]
            parts = [np.array(list(row[index]), dtype=kind) for row in rows]
            arrays[name] = np.concatenate(parts) if parts else np.zeros(0, kind)
            arrays[f"{name}_ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(arrays)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each example."""
        return np.diff(self.arrays["input_ids_ends"], prepend=0)

    def __len__(self) -> int:
        return len(self.arrays["input_ids_ends"])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        ids, mask, prompt, completion = (self._field(name, at) for name in FIELDS)
        return Example(
            tuple(ids.tolist()), tuple(mask.tolist()),
            prompt.tobytes().decode(), completion.tobytes().decode(),
        )

    def _field(self, name: str, index: int) -> NDArray[Any]:
        ends = self.arrays[f"{name}_ends"]
        return self.arrays[name][int(ends[index - 1]) if index else 0 : int(ends[index])]
