"""What the report says: importance, standing among each other, the answer, honest about chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import reported
from reported import Planned

from sweep.report.answer import answer
from sweep.report.standing import compare, standings


def _said(found: object) -> str:
    assert hasattr(found, "findings") and hasattr(found, "headline")
    return "\n".join([found.headline, *found.findings])


def test_what_decides_is_found_with_most_trials_pruned(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(40))
    assert sum(r.outcome == "pruned" for r in frames.records) > 15
    assert [entry.name for entry in frames.weights.deciding] == ["train.learning_rate"]
    first = frames.weights.dimensions[0]
    assert 0 < first.low <= first.share <= first.high <= 1 and first.share > first.chance
    assert frames.weights.trials == 40
    assert math.isclose(sum(entry.share for entry in frames.weights.dimensions), 1)
    said = _said(answer(frames))
    assert "The learning rate decides" in said
    assert "cannot be told apart" in said


def test_nothing_is_concluded_from_noise(tmp_path: Path) -> None:
    random, said = Random(1), []
    for k in range(4):
        trials = [
            Planned(params=params, losses=[random.gauss(1.5, 0.1) for _ in range(5)])
            for params in reported.proposals(24, seed=k)
        ]
        frames = reported.frames(tmp_path / str(k), trials)
        said.append(bool(frames.weights.deciding) or " is better than " in _said(answer(frames)))
    assert sum(said) <= 1


def test_importance_is_the_same_each_time(tmp_path: Path) -> None:
    url = reported.write(tmp_path, reported.plan(20))
    first, second = (reported.read_studies(["study"], url)[0].weights for _ in range(2))
    assert first == second


def test_few_trials_are_called_few(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(3))
    assert not frames.weights
    assert "3 trials with a loss at the first rung are too few" in _said(answer(frames))


def test_a_trial_that_diverged_early_counts_as_worst(tmp_path: Path) -> None:
    trials = [*reported.plan(12), Planned(outcome="diverged", losses=[math.nan],
                                          params=reported.proposals(1, seed=9)[0])]  # fmt: skip
    weights = reported.frames(tmp_path, trials).weights
    assert (weights.trials, weights.diverged) == (13, 1)


def test_a_copy_of_another_trial_says_nothing_new(tmp_path: Path) -> None:
    trials = reported.plan(12)
    again = Planned(params=trials[0].params, losses=trials[0].losses, worker="copy")
    assert reported.frames(tmp_path, [*trials, again]).weights.trials == 12


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([[3, 2, 1], [3, 3, 3]], [1, -1]),
        ([[2, 9], [3]], [1, -1]),  # compared at tick 1, the last that both reached
        ([[1], [2], [3]], [1, 0, -1]),
        ([[1], [1]], [0, 0]),
        ([[1, math.inf], [2, 2]], [-1, 1]),
    ],
)
def test_trials_are_compared_at_the_last_tick_that_both_reached(
    tmp_path: Path, losses: Sequence[Sequence[float]], expected: Sequence[float]
) -> None:
    params = reported.proposals(1)[0]
    frames = reported.frames(tmp_path, [Planned(losses=x, params=params) for x in losses])
    assert standings(frames.own).tolist() == pytest.approx(expected)


def test_a_trial_without_a_loss_has_no_standing(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, [Planned(losses=[1]), Planned(losses=[2]), Planned()])
    assert math.isnan(standings(frames.own)[2])


def test_values_that_differ_are_told_apart_and_few_are_not_judged(tmp_path: Path) -> None:
    trials = [
        Planned(params={**params, "lora.r": rank}, losses=[2 - rank / 32 + 0.001 * k] * 5)
        for rank, many in ((4, 8), (32, 8), (16, 1))
        for k, params in enumerate(reported.proposals(many, seed=rank))
    ]
    frames = reported.frames(tmp_path, Random(0).sample(trials, len(trials)))
    rank = next(axis for axis in frames.axes if axis.name == "lora.r")
    found = {c.other: c for c in compare(frames.own, standings(frames.own), rank, 32)}
    assert found[4].p is not None and found[4].p < 0.01 and found[4].better > 0
    assert found[16].p is None and found[8].others == 0
    assert "r 32 is better than 4; too few trials had 8 or 16 to say." in _said(answer(frames))


def test_a_best_value_at_the_end_of_its_range_is_looked_beyond(tmp_path: Path) -> None:
    trials = [
        Planned(params={**params, "lora.r": 32, "train.learning_rate": 1e-3}, losses=[1.5, 1, 1, 1])
        for params in reported.proposals(2)
    ]
    found = answer(reported.frames(tmp_path, trials))
    step = found.next_steps[0]
    assert "r above 32" in step.text
    assert step.command and "'lora.r=choice(32,64,128)'" in step.command
    assert "+recipe=study" in step.command


def test_a_loss_that_still_falls_asks_for_a_larger_budget(tmp_path: Path) -> None:
    params = {"lora.r": 8, "train.learning_rate": 1e-3}
    found = answer(reported.frames(tmp_path, [Planned(params=params, losses=[1.9, 1.7, 1.5])]))
    assert "budget.examples=400" in " ".join(step.command or "" for step in found.next_steps)


def test_no_gain_over_the_untouched_base_is_said(tmp_path: Path) -> None:
    found = answer(reported.frames(tmp_path, [Planned(params={"lora.r": 4}, losses=[2.5])]))
    assert "No trial is better than the untouched base" in found.headline


def test_all_failed_says_why(tmp_path: Path) -> None:
    trials = [Planned(outcome="failed", reason="RuntimeError: no such file")] * 3
    said = _said(answer(reported.frames(tmp_path, trials)))
    assert "no trial is complete" in said
    assert "The most frequent failure, 3 times: RuntimeError: no such file" in said


@pytest.mark.parametrize(
    ("levels", "value", "place"),
    [
        ([0.1, 0.1000001], 0.1000001, 1.0),  # equal to a reader, not to the sweep
        ([True, 2], 1, math.nan),
        ([False, True], True, 1.0),
        ([None, "a"], "a", 1.0),
        (["a", "b"], "c", math.nan),
    ],
)
def test_a_level_is_found_by_its_value(
    tmp_path: Path, levels: Sequence[object], value: object, place: float
) -> None:
    space = {"x": reported.CategoricalDistribution(levels)}
    frames = reported.frames(tmp_path, [], space=space)
    assert frames.axes[0].place(value) == pytest.approx(place, nan_ok=True)


def test_what_decides_is_not_called_alike(tmp_path: Path) -> None:
    random = Random(3)
    trials = [
        Planned(params=params, losses=[random.gauss(1.5, 0.1)] * 5)
        for params in reported.proposals(24)
    ]
    frames = reported.frames(tmp_path, trials)
    found = frames.weights
    sure = [replace(e, decides=e.name == "lora.r") for e in found.dimensions]
    vars(frames)["weights"] = replace(found, dimensions=tuple(sure))
    said = _said(answer(frames))
    assert "The rank decides" in said
    assert "Which r is best cannot be said" in said
    assert "r 4, 8, 16 and 32 cannot be told apart" not in said
