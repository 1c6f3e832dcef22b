"""What fits into a device's memory: slots, and room for the tokens of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packs import prepared
from tiny import Tiny
from torch import nn

from trials.contract import EngineConfig, InputError
from trials.engines.packed import size as sizes
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.refusals import Refused
from trials.engines.packed.shapes import RaggedShapes
from trials.engines.packed.size import GIB, Size, fitted, slot_bytes

MEAN, LONGEST = 182.0, 512
TOKEN = 0.5 * 2**20  # bytes


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> PackedEngine:
    return prepared(tiny, capacity=1)[0]


@pytest.fixture
def layers() -> dict[str, nn.Module]:
    """Some of the linear layers of an 8B base."""
    with torch.device("meta"):
        return {f"layers.{k}": nn.Linear(4096, 14336) for k in range(64)}


class Memory:
    """Sizes a pack for so many free bytes."""

    def __init__(
        self, engine: PackedEngine, layers: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.engine, self.layers, self._patch = engine, layers, monkeypatch

    def fit(
        self, free: float, *, r: int = 16, token: float = TOKEN, **options: int
    ) -> Size:
        self._patch.setattr(sizes, "free_bytes", lambda base, fraction: free)
        first = Size(slots=23, r=r, tokens=16896, resident=False, lag=1, ragged=True,
                     compiled=True)
        given = EngineConfig(name="packed", options=options)
        return fitted(
            first, self.engine.shared.base, self.layers,
            replace(self.engine.shared.assignment, engine=given),
            token_bytes=token, fixed_bytes=GIB, longest=LONGEST, mean_length=MEAN,
        )


@pytest.fixture
def memory(
    engine: PackedEngine, layers: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> Memory:
    return Memory(engine, layers, monkeypatch)


@pytest.mark.parametrize("r", [8, 16, 64])
@pytest.mark.parametrize("gib", [7, 8, 11, 12, 16, 17, 24, 48, 80, 400])
@pytest.mark.parametrize("token", [0.5, 6.2])  # MiB: with gradient checkpointing, and without
def test_all_that_a_pack_takes_is_there(memory: Memory, token: float, r: int, gib: int) -> None:
    token *= 2**20
    found = memory.fit(gib * GIB, r=r, token=token)
    slots = found.slots * slot_bytes(memory.layers, r)
    clock = RaggedShapes(found.slots, found.tokens, LONGEST).tokens  # as it is computed
    assert clock >= LONGEST
    assert slots + clock * token + 2 * GIB <= gib * GIB
    if found.slots > 1:
        assert found.tokens >= found.slots * 4 * MEAN  # each has its rows
    if 1 < found.slots < 23:
        one_more = slots / found.slots * (found.slots + 1)
        assert one_more + (found.slots + 1) * 4 * MEAN * token + 2 * GIB > gib * GIB


def test_ample_memory_is_not_needed(memory: Memory) -> None:
    found = memory.fit(400 * GIB)
    assert (found.slots, found.tokens) == (23, 16896)


def test_a_capacity_may_leave_less_than_its_rows_for_each(memory: Memory) -> None:
    most = memory.fit(16 * GIB).slots
    found = memory.fit(16 * GIB, capacity=most + 1)
    assert found.slots == most + 1
    assert LONGEST <= found.tokens < found.slots * 4 * MEAN


def test_a_capacity_that_cannot_be_says_what_can(memory: Memory) -> None:
    with pytest.raises(InputError, match=r"engine.capacity=500: .* Type ") as caught:
        memory.fit(16 * GIB, capacity=500)
    most = int(str(caught.value).partition("Type engine.capacity=")[2].partition(",")[0])
    assert memory.fit(16 * GIB, capacity=most).slots == most
    with pytest.raises(InputError):
        memory.fit(16 * GIB, capacity=most + 1)


def test_too_little_for_one_is_refused(memory: Memory) -> None:
    with pytest.raises(Refused, match="one trial of rank 64 with one row of 512 tokens needs"):
        memory.fit(3 * GIB, r=64)
