"""The bank knows which ranks its slots fill, and where in a row they lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trials.engines.packed.bank import BLOCK, Bank

SHAPES = {"q": (896, 1152), "k": (64, 8), "o": (24, 4864)}


def bank_of(slots: int, r: int) -> Bank:
    return Bank(SHAPES, slots=slots, r=r, device=torch.device("cpu"))


def drawn(r: int, *names: str) -> dict[str, Tensor]:
    return {name: torch.ones(r, SHAPES[name][0]) for name in names}


@pytest.mark.parametrize("r", [1, 8, 16, 64, 200])
def test_blocks_hold_each_number_once_and_know_its_rank(r: int) -> None:
    bank = bank_of(1, r)
    ranks = torch.zeros(bank.numel, dtype=torch.int64)
    [view], rows = [bank._views(ranks[None], bank.ranks)], torch.arange(bank.r)
    for a, b in zip(view.a, view.b, strict=True):
        a.copy_(rows[:, None]), b.copy_(rows[None, :])
    seen = torch.zeros(bank.numel, dtype=torch.int64)
    for start, count, first_rank in bank.blocks.tolist():
        assert 0 < count <= BLOCK and start % 8 == count % 8 == 0  # as the kernels are told
        seen[start : start + count] += 1
        assert ranks[start : start + count].min() == first_rank
    assert (seen == 1).all()


def test_ranks_follow_the_slots() -> None:
    bank = bank_of(4, 16)
    weights, gradients = bank.prefix(4)
    for slot, r in enumerate((3, 16, 8)):
        bank.place(slot, drawn(r, "q", "o"))
    assert weights.ranks.tolist()[:3] == gradients.ranks.tolist()[:3] == [3, 16, 8]
    assert bank.gathered([2, 0]).ranks.tolist() == [8, 3]
    kept = bank.saved(0, 3, ["q", "o"])
    bank.move(2, 3)
    bank.place(0, drawn(12, "k"))  # larger than who was there
    bank.place(1, drawn(2, "q"))  # smaller
    bank.restore(2, 3, ["q", "o"], kept)
    assert weights.ranks.tolist() == [12, 2, 3, 8]
    wider = bank.widened(100)
    wider.place(3, drawn(100, "q"))
    assert wider.prefix(4)[0].ranks.tolist() == [12, 2, 3, 100]


def test_what_a_slot_does_not_fill_is_0_whoever_was_there() -> None:
    bank = bank_of(2, 16)
    bank.place(0, drawn(16, "q", "k", "o"))
    for rows in bank.rows:
        rows[0].fill_(float("nan"))
    bank.place(0, drawn(5, "q"))
    filled = 5 * SHAPES["q"][0]
    assert [int(rows[0].count_nonzero()) for rows in bank.rows] == [filled, 0, 0, 0]
    assert sum(a.sum() + b.sum() for a, b in bank.factors(0, 5).values()) == filled
