"""The proof on CUDA: what stays the same to the last bit there, and that no clock waits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from packs import in_a_fresh_process, mixed, prepared, run, seated, ticked
from tiny import Recorder, Tiny, made_in
from torch import Tensor

from trials.contract import TrialConfig
from trials.engines.packed.corpus import Corpus, Ragged
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.evaluation import PackedEvaluation
from trials.engines.packed.slots import Slots

pytestmark = pytest.mark.gpu

CUDA = "cuda:0"
COMPILED = pytest.mark.parametrize("compiled", [False, True])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny Llama in NF4 and bf16."""
    return made_in(tmp_path_factory.mktemp("tiny"), dtype="bf16", device=CUDA)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> PackedEngine:
    """An engine on it, to tick by hand."""
    return prepared(tiny, capacity=4)[0]


@contextmanager
def even(engine: PackedEngine, *, compiled: bool) -> Iterator[Slots]:
    """Four slots whose clocks all have one shape, and up to eight rows of each."""
    with engine.slots(replace(engine.size, slots=4, compiled=compiled)) as slots:
        shape = Ragged(slots=4, tokens=1280, rows=96, targets=256, longest=engine.corpus.longest)
        slots.clock.shapes.choose = lambda seats: (shape, {seat.slot: 8 for seat in seats})
        yield slots


def trained(
    engine: PackedEngine, trials: Sequence[TrialConfig], *, compiled: bool,
    poisoned: int | None = None,
) -> tuple[dict[int, list[float]], Tensor]:
    """Losses by slot, and all parameters, after six even clocks."""
    with even(engine, compiled=compiled) as slots:
        seats = seated(slots, *trials)
        if poisoned is not None:
            for weights in (slots.bank.parameters, slots.bank.compute):
                weights[poisoned].fill_(float("nan"))
        return ticked(slots, seats, 6), slots.bank.parameters.clone()


# --- apart from each other -----------------------------------------------------------------------


@COMPILED
def test_a_trial_is_the_same_alone_and_in_any_company(
    tiny: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    assert engine.size.ragged
    trials = [tiny.trial(9, examples=96), *mixed(tiny)[:3]]
    alone, row = trained(engine, trials[:1], compiled=compiled)
    together, rows = trained(engine, trials, compiled=compiled)
    assert len(alone[0]) == 6 and together[0] == alone[0]
    assert torch.equal(rows[0], row[0])


@COMPILED
def test_a_poisoned_slot_reaches_nobody(
    tiny: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    sound, rows = trained(engine, mixed(tiny), compiled=compiled)
    beside, others = trained(engine, mixed(tiny), compiled=compiled, poisoned=1)
    assert beside[1] and all(map(math.isnan, beside[1]))
    for slot in (0, 2, 3):
        assert beside[slot] == sound[slot]
        assert torch.equal(others[slot], rows[slot])
    assert rows.isfinite().all()


@COMPILED
def test_a_trial_in_a_used_slot_is_that_in_a_fresh_one(
    tiny: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    trial = tiny.trial(9, examples=96)
    others = [tiny.trial(8, seed=8, examples=96, lora={"r": 8}), *mixed(tiny)[:3]]
    fresh, row = trained(engine, [trial], compiled=compiled)
    with even(engine, compiled=compiled) as slots:
        left, *_ = seated(slots, *others)
        ticked(slots, slots.seats, 3)
        for rows in (*slots.bank.rows, slots.bank.compute):
            rows[left.slot].fill_(float("nan"))
        slots.leave(left)
        assert slots.sit(trial, Recorder()).slot == 0
        assert ticked(slots, slots.seats, 6)[0] == fresh[0]
        assert torch.equal(slots.bank.parameters[0], row[0])


def test_a_trial_in_a_used_slot_is_that_of_a_fresh_process(tiny: Tiny) -> None:
    trial = tiny.trial(9, examples=40)
    others = [tiny.trial(0, seed=8, lora={"r": 8}), tiny.trial(1, learning_rate=1e30),
              tiny.trial(2, optimizer="sgd", lora={"target_modules": "qv"})]
    after = run(tiny, *others, trial, capacity=1)
    assert after.losses(9) == in_a_fresh_process(tiny, trial, capacity=1)


# --- the same values -----------------------------------------------------------------------------


@COMPILED
def test_a_base_kept_dequantised_gives_the_same_bits(
    tiny: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    found = []
    for resident in (True, False):
        with engine.slots(
            replace(engine.size, slots=4, compiled=compiled, resident=resident)
        ) as slots:
            losses = ticked(slots, seated(slots, *mixed(tiny)), 6)
            found.append((losses, slots.bank.parameters.clone()))
    (losses, rows), (others, other_rows) = found
    assert losses == others
    assert torch.equal(rows, other_rows)


# --- nobody waits --------------------------------------------------------------------------------


@contextmanager
def unwaiting() -> Iterator[None]:
    """Within, an operation that waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@COMPILED
def test_nothing_waits_for_the_device(
    tiny: Tiny, engine: PackedEngine, compiled: bool
) -> None:
    """Seats, clocks, evaluations: what they find is on its way, and read here when all is given."""
    trials = [tiny.trial(k, seed=k, examples=48, batch_size=4 + 4 * k) for k in range(3)]
    device = engine.shared.base.device
    evaluation = PackedEvaluation(Corpus(engine.shared.data.eval, 0), device, tokens=256,
                                  ragged=engine.size.ragged)
    with engine.slots(replace(engine.size, slots=4, compiled=compiled)) as slots:
        for watched in (False, True):  # at first kernels are made, and shapes are recorded
            told = []
            with unwaiting() if watched else nullcontext():
                seats = seated(slots, *trials)
                while live := [seat for seat in seats if seat.has_work]:
                    told.append(slots.clock.tick(live))
                measured = evaluation.measure(slots.forward, slots.pack, slots.bank, seats)
            assert all(0 < found.loss < 10 for found in measured.evaluations())
            losses = [[clock.numbers.numbers()[0][slot] for clock in told
                       for at, _, _ in clock.steps if at == slot] for slot in range(3)]
            assert [len(own) for own in losses] == [12, 6, 4]
            assert all(map(math.isfinite, sum(losses, [])))
            for seat in seats:
                slots.leave(seat)
        with unwaiting(), pytest.raises(RuntimeError, match="synchronizing"):
            slots.bank.parameters.sum().item()
