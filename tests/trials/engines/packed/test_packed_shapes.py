"""What the clocks of a pack take of each slot: whole batches where they fit, a fair share else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from packs import prepared
from tiny import Tiny

from trials.data.examples import Example, Examples
from trials.engines.packed.corpus import Corpus
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.evaluation import PackedEvaluation
from trials.engines.packed.seat import Seat
from trials.engines.packed.shapes import RaggedShapes
from trials.engines.packed.size import full_clock


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> PackedEngine:
    return prepared(tiny, capacity=1)[0]


def seats(tiny: Tiny, engine: PackedEngine, *batches: int, **train: Any) -> list[Seat]:
    """One for each batch size, with four batches."""
    made = []
    for slot, batch in enumerate(batches):
        trial = tiny.trial(slot, examples=4 * batch, batch_size=batch, **train)
        order = np.arange(4 * batch) % len(engine.corpus.lengths)
        made.append(Seat(trial, slot, engine.shared.steps(trial), order, engine.corpus))
    return made


def played(shapes: RaggedShapes, all_seats: list[Seat], most: int) -> dict[int, list[int]]:
    """Clocks until all steps are made: in which clock each seat made each of its steps."""
    steps: dict[int, list[int]] = {seat.slot: [] for seat in all_seats}
    for clock in range(10_000):
        live = [seat for seat in all_seats if seat.has_work]
        if not live:
            return steps
        shape, rows = shapes.choose(live)
        assert set(rows) == {seat.slot for seat in live}
        taken = {seat.slot: seat.take(rows[seat.slot]) for seat in live if rows[seat.slot]}
        tokens = sum(int(live[0]._corpus.lengths[t.examples].sum()) for t, _ in taken.values())
        assert 0 < tokens <= shape.tokens <= most
        assert shape.tokens - tokens < 512
        count = sum(len(t.examples) for t, _ in taken.values())
        assert shape.rows >= count + -(-(shape.tokens - tokens) // shape.longest)
        targets = sum(int(live[0]._corpus.targets[t.examples].sum()) for t, _ in taken.values())
        assert targets <= shape.targets <= shape.tokens
        for seat in live:
            if seat.slot in taken and taken[seat.slot][1] is not None:
                steps[seat.slot].append(clock)
                seat.stepped()
    raise AssertionError("some seat never came to its turn")


def test_whole_batches_where_they_fit(tiny: Tiny, engine: PackedEngine) -> None:
    shapes = RaggedShapes(3, 4096, engine.corpus.longest)
    steps = played(shapes, seats(tiny, engine, 2, 8, 16), 4096)
    assert list(steps.values()) == [[0, 1, 2, 3]] * 3


def test_a_fair_share_where_they_do_not(tiny: Tiny, engine: PackedEngine) -> None:
    shapes = RaggedShapes(3, 256, engine.corpus.longest)
    steps = played(shapes, seats(tiny, engine, 2, 16, 16), 256)
    assert steps[0] == [0, 1, 2, 3]  # a small batch does not wait for large ones
    assert abs(steps[1][-1] - steps[2][-1]) <= 2  # and equal ones go on alike


def test_a_clock_has_no_place_left_for_a_row_that_waits(tiny: Tiny, engine: PackedEngine) -> None:
    shapes, waiting = RaggedShapes(8, 512, engine.corpus.longest), seats(tiny, engine, *[16] * 8)
    clocks = 0
    while sum(seat.left for seat in waiting) > 512:
        _, rows = shapes.choose(waiting)
        taken = sum(int(engine.corpus.lengths[seat.take(rows[seat.slot])[0].examples].sum())
                    for seat in waiting)
        waiting = [seat for seat in waiting if seat.left]
        assert 512 - taken < min(seat.widths(1)[0] for seat in waiting)
        clocks += 1
    assert clocks > 1


def test_a_small_row_goes_where_a_large_one_leaves_room(tiny: Tiny, engine: PackedEngine) -> None:
    lengths = np.array([800, 100])
    corpus: Any = SimpleNamespace(lengths=lengths, targets=lengths)
    large, small = seats(tiny, engine, 1, 16)
    both = [Seat(seat.trial, seat.slot, seat.steps, np.full(64, example), corpus)
            for example, seat in enumerate((large, small))]
    shapes = RaggedShapes(2, 1024, 800)
    for _ in range(4):
        _, rows = shapes.choose(both)
        assert rows in ({0: 1, 1: 2}, {0: 0, 1: 10})  # turn by turn


def test_slots_take_turns_where_single_rows_do_not_fit(tiny: Tiny, engine: PackedEngine) -> None:
    longest = engine.corpus.longest
    shapes = RaggedShapes(24, longest, longest)
    steps = played(shapes, seats(tiny, engine, *[4] * 24), 256)
    ends = [clocks[-1] for clocks in steps.values()]
    assert max(ends) <= 1.5 * min(ends)


def test_a_micro_batch_size_bounds_the_rows(tiny: Tiny, engine: PackedEngine) -> None:
    [seat] = seats(tiny, engine, 8, micro_batch_size=3)
    _, rows = RaggedShapes(1, 4096, engine.corpus.longest).choose([seat])
    assert rows == {0: 3}


def test_shapes_shrink_until_one_row_is_left(tiny: Tiny, engine: PackedEngine) -> None:
    shapes = RaggedShapes(1, 4096, engine.corpus.longest)
    sizes = [shapes.tokens]
    while shapes.shrink():
        sizes.append(shapes.tokens)
    assert sizes == [4096, 2048, 1024, 512, 256]


@pytest.mark.parametrize("multiprocessors", [20, 28, 46, 58, 82, 108, 114, 128, 132, 142, 148, 170])
def test_a_full_clock_has_a_block_for_every_multiprocessor(
    tiny: Tiny, engine: PackedEngine, multiprocessors: int
) -> None:
    tokens = RaggedShapes(1, full_clock(multiprocessors), engine.corpus.longest).tokens
    rounds = tokens / (128 * multiprocessors)  # of products in blocks of 128 tokens
    assert 8192 <= tokens <= 22528
    assert rounds <= round(rounds) and rounds > 0.97 * round(rounds)


@pytest.mark.parametrize("slots", [(0,), (0, 2, 5)])
@pytest.mark.parametrize("longest", [2, 10, 24, 40, 300])
def test_every_token_of_an_evaluation_belongs_to_a_row(
    slots: tuple[int, ...], longest: int
) -> None:
    random = np.random.default_rng(longest)
    for tokens in (longest, 10 * longest, 2000):
        lengths = [longest, *random.integers(1, longest + 1, 40).tolist()]
        corpus = Corpus(Examples.of(
            Example((7,) * (length + 1), (False, *[True] * length), "", "") for length in lengths
        ), pad=0)
        evaluation = PackedEvaluation(corpus, torch.device("cpu"), tokens=tokens, ragged=True)
        seats: Any = [SimpleNamespace(slot=slot) for slot in slots]
        for rows in evaluation._groups(len(slots)):  # CUDA alone computes what is made here
            samples, shape, _ = evaluation._samples(rows, seats, 6)
            assert samples.ends is not None
            ends = samples.ends.numpy()
            assert ends[0] == 0 and ends[-1] == shape.tokens == len(samples.tokens)
            assert 0 <= np.diff(ends).min() <= np.diff(ends).max() <= longest
