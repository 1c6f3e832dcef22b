"""The training set as flat arrays, and a clock's samples laid out for the device without a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trials.data.examples import Examples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Examples that one slot gives to a clock, each with its position in the trial's order."""

    examples: Ints
    positions: Ints


@dataclass(frozen=True)
class Shape:
    """What a clock computes: n slots of `rows` rows of `width` tokens, `targets` of them each."""

    slots: int
    rows: int
    width: int
    targets: int


@dataclass(frozen=True)
class Samples:
    """A clock's samples. A place without a sample holds padding of its own slot's."""

    input_ids: Tensor  # [slots * rows, width]
    positions: Tensor  # [slots, rows]: in the trial's order
    index: Tensor  # [slots, targets]: where the next token is a target, rows laid end to end
    targets: Tensor  # [slots, targets]: those next tokens
    counts: Tensor  # [slots, 1]: how many of them are real


class Corpus:
    """Examples in arrays. An example's last token predicts nothing and is not an input."""

    def __init__(self, examples: Examples, pad: int) -> None:
        ends = examples.arrays["input_ids_ends"]
        self._ids = examples.arrays["input_ids"].astype(np.int64)
        self._starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        mask = examples.arrays["loss_mask"].copy()
        mask[self._starts] = False  # nothing before it could predict it
        self._marked = np.flatnonzero(mask)  # the targets' places in `_ids`
        self._first = np.searchsorted(self._marked, self._starts)
        self._pad = pad
        self.lengths: Ints = examples.lengths - 1  # inputs of each example
        self.targets: Ints = np.searchsorted(self._marked, ends) - self._first

    def samples(self, given: Sequence[Rows | None], shape: Shape) -> Samples:
        """The rows of each slot, padded to `shape`."""
        owner, place, rows = _laid_out(given, shape)
        ids = np.full(shape.slots * shape.rows * shape.width, self._pad)
        row_starts = (owner * shape.rows + place) * shape.width
        lengths = self.lengths[rows.examples]
        ids[_ranges(row_starts, lengths)] = self._ids[_ranges(self._starts[rows.examples], lengths)]
        positions = np.zeros((shape.slots, shape.rows), np.int64)
        positions[owner, place] = rows.positions
        index, targets, counts = self._targets(owner, row_starts, rows.examples, shape)
        return Samples(
            input_ids=torch.from_numpy(ids.reshape(-1, shape.width)),
            positions=torch.from_numpy(positions),
            index=torch.from_numpy(index),
            targets=torch.from_numpy(targets),
            counts=torch.from_numpy(counts[:, None]),
        )

    def _targets(
        self, owner: Ints, row_starts: Ints, examples: Ints, shape: Shape
    ) -> tuple[Ints, Ints, Ints]:
        counts = self.targets[examples]
        marked = self._marked[_ranges(self._first[examples], counts)]
        slot = np.repeat(owner, counts)
        each = np.bincount(slot, minlength=shape.slots)
        column = np.arange(len(slot)) - np.repeat(np.cumsum(each) - each, each)
        own = np.arange(shape.slots) * shape.rows * shape.width
        index = np.repeat(own[:, None], shape.targets, axis=1)
        targets = np.zeros_like(index)
        index[slot, column] = np.repeat(row_starts - self._starts[examples], counts) + marked - 1
        targets[slot, column] = self._ids[marked]
        return index, targets, each


def _laid_out(given: Sequence[Rows | None], shape: Shape) -> tuple[Ints, Ints, Rows]:
    """All rows end to end, with the slot of each and its place there."""
    sizes = np.array([0 if rows is None else len(rows.examples) for rows in given])
    there = [rows for rows in given if rows is not None]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    examples = np.concatenate([rows.examples for rows in there])
    return owner, place, Rows(examples, np.concatenate([rows.positions for rows in there]))


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, ... of each, end to end."""
    ends = np.cumsum(lengths)
    offsets: Ints = np.repeat(starts - (ends - lengths), lengths)
    return offsets + np.arange(ends[-1] if len(ends) else 0)
