"""The plan of a trial: every position once, ticks where the contract says, groups alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials.contract import TrialBudget, optimizer_steps, tick_examples
from trials.training.plan import Step, plan


def length(position: int) -> int:
    """Lengths without a pattern."""
    return 10 + position * 7919 % 101


@given(st.integers(1, 400), st.integers(1, 8), st.integers(1, 40), st.booleans())
def test_every_position_is_taken_once_and_ticks_fall_where_the_contract_says(
    examples: int, ticks: int, batch: int, grouped: bool
) -> None:
    budget = TrialBudget(examples=examples, ticks=ticks)
    steps = plan(budget, batch, seed=1, length=length if grouped else None)
    taken = [position for step in steps for position in step.positions]
    assert sorted(taken) == list(range(examples))
    assert len(steps) == optimizer_steps(examples, batch)
    reached = {tick: step.examples for step in steps for tick in step.ticks}
    assert reached == dict(enumerate(tick_examples(budget, batch), start=1))


def test_without_grouping_batches_follow_the_order() -> None:
    steps = plan(TrialBudget(examples=20, ticks=2), 8)
    assert [step.positions for step in steps] == [
        tuple(range(8)), tuple(range(8, 16)), tuple(range(16, 20))
    ]
    assert [(step.examples, step.ticks) for step in steps] == [(8, ()), (16, (1,)), (20, (2,))]


def test_grouping_makes_batches_alike_and_keeps_each_ticks_examples() -> None:
    budget = TrialBudget(examples=640, ticks=4)
    plain, grouped = plan(budget, 8), plan(budget, 8, seed=1, length=length)

    def spread(steps: list[Step]) -> float:
        lengths = [[length(p) for p in step.positions] for step in steps]
        return sum(max(row) - min(row) for row in lengths) / len(lengths)

    assert spread(grouped) < spread(plain) / 4
    for tick in range(1, 5):
        assert seen_by(tick, plain) == seen_by(tick, grouped)


def seen_by(tick: int, steps: list[Step]) -> set[int]:
    """The positions taken until a tick."""
    end = next(k for k, step in enumerate(steps) if tick in step.ticks)
    return {position for step in steps[: end + 1] for position in step.positions}


def test_grouping_does_not_sort_the_batches() -> None:
    steps = plan(TrialBudget(examples=64, ticks=1), 8, seed=1, length=length)
    first = [min(map(length, step.positions)) for step in steps]
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)
    again = plan(TrialBudget(examples=64, ticks=1), 8, seed=1, length=length)
    assert steps == again
    assert steps != plan(TrialBudget(examples=64, ticks=1), 8, seed=2, length=length)


@pytest.mark.parametrize("batch", [50, 64])
def test_a_step_that_spans_several_ticks_reaches_them_all(batch: int) -> None:
    steps = plan(TrialBudget(examples=64, ticks=8), batch)
    assert [tick for step in steps for tick in step.ticks] == list(range(1, 9))
