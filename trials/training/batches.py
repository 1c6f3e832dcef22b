"""Token examples to tensors: one batch type for training, evaluation, padded rows and packed ones.

A row holds one example, right-padded, or several of them end to end (`position_ids` then restart
with each, and the model keeps them apart). No attention mask is needed: what comes after a token
cannot change it under causal attention. An example's last token predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trials.data.examples import Example

Placed = tuple[int, Example]  # an example and its position in the trial's order
Row = Sequence[Placed]


@dataclass(frozen=True)
class Batch:
    """One forward's worth. N targets; `index` counts through the rows as if laid end to end."""

    input_ids: Tensor  # [rows, width]
    position_ids: Tensor | None  # [rows, width]; None unless rows hold several examples
    order: Tensor  # [rows, width]: the position in the trial's order of each token's example
    tokens: Tensor  # [rows, width]: the token's place in its example
    index: Tensor  # [N]: where the tokens are whose next one is a target
    targets: Tensor  # [N]: those next tokens
    example: Tensor  # [N]: which example of the batch, counted through the rows
    examples: int
    real_tokens: int  # padding not counted

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        tensors: dict[str, Any] = {name: value.to(device, non_blocking=True)
                   for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Limit:
    """What one forward may hold; a single row is never split."""

    rows: int | None = None
    tokens: int | None = None  # padding counted
    targets: int | None = None  # each costs a vector of logits

    def allows(self, rows: int, width: int, targets: int) -> bool:
        """Whether that many rows of that width with that many targets fit."""
        return (
            (self.rows is None or rows <= self.rows)
            and (self.tokens is None or rows * width <= self.tokens)
            and (self.targets is None or targets <= self.targets)
        )


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Rows of examples as one batch on the CPU."""
    width = max(_width(row) for row in rows)
    ids: list[int] = []
    order: list[int] = []
    tokens: list[int] = []
    index: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    count = 0
    for start, row in zip(range(0, len(rows) * width, width), rows, strict=True):
        place = start
        for position, example in row:
            length = len(example.input_ids) - 1
            wanted = [t for t in range(length) if example.loss_mask[t + 1]]
            ids += example.input_ids[:length]
            order += [position] * length
            tokens += range(length)
            index += [place + t for t in wanted]
            targets += [example.input_ids[t + 1] for t in wanted]
            owners += [count] * len(wanted)
            place += length
            count += 1
        gap = start + width - place
        ids += [pad] * gap
        order += [-1] * gap
        tokens += range(gap)
    shape = (len(rows), width)
    placed = torch.tensor(tokens).view(shape)
    return Batch(
        input_ids=torch.tensor(ids).view(shape),
        position_ids=placed if count > len(rows) else None,
        order=torch.tensor(order).view(shape),
        tokens=placed,
        index=torch.tensor(index, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        example=torch.tensor(owners, dtype=torch.long),
        examples=count,
        real_tokens=sum(_width(row) for row in rows),
    )


def split(rows: Sequence[Row], limit: Limit) -> Iterator[list[Row]]:
    """The rows in groups within `limit`, the longest first, so that little is padded.

    Longest first also means that what does not fit into memory fails at once.
    """
    group: list[Row] = []
    targets = 0
    for row in sorted(rows, key=_width, reverse=True):
        more = target_count(row)
        if group and not limit.allows(len(group) + 1, _width(group[0]), targets + more):
            yield group
            group, targets = [], 0
        group.append(row)
        targets += more
    if group:
        yield group


def pack(examples: Sequence[Placed], width: int) -> list[Row]:
    """Examples end to end in rows of at most `width` tokens: first fit, the longest first."""
    rows: list[list[Placed]] = []
    free: list[int] = []
    for item in sorted(examples, key=lambda placed: (-len(placed[1].input_ids), placed[0])):
        length = len(item[1].input_ids) - 1
        place = next((k for k, left in enumerate(free) if left >= length), None)
        if place is None:
            rows.append([item])
            free.append(max(width, length) - length)
        else:
            rows[place].append(item)
            free[place] -= length
    return list(rows)


def target_count(row: Row) -> int:
    """The targets in a row: tokens with loss, but for the first, which nothing predicts."""
    return sum(sum(example.loss_mask[1:]) for _, example in row)


def _width(row: Row) -> int:
    return sum(len(example.input_ids) - 1 for _, example in row)
