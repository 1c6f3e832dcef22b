"""Each pruner is Optuna's rule of that name, where Optuna compares equal ticks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sweep.config import Choice
from sweep.study.pruners import Curve, judged_from, pruner, tick_at
from trials.contract import InputError

TICKS = 8
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
KNOWN: Mapping[str, tuple[dict[str, Any], Callable[[], optuna.pruners.BasePruner]]] = {
    "asha": (
        {"min_fraction": 0.25, "reduction_factor": 2},
        lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
    ),
    "hyperband": (
        {"min_fraction": 0.125, "reduction_factor": 3},
        lambda: optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=TICKS, reduction_factor=3
        ),
    ),
    "median": (
        {"min_fraction": 0.25, "startup_trials": 4},
        lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2, n_min_trials=4),
    ),
    "percentile": (
        {"min_fraction": 0.25, "startup_trials": 3, "percentile": 30},
        lambda: optuna.pruners.PercentilePruner(
            30, n_startup_trials=3, n_warmup_steps=2, n_min_trials=3
        ),
    ),
    "threshold": (
        {"min_fraction": 0.5, "upper": 0.8, "lower": 0.2},
        lambda: optuna.pruners.ThresholdPruner(upper=0.8, lower=0.2, n_warmup_steps=4),
    ),
    "patient": (
        {"patience": 0.25, "min_delta": 0.01, "wrapped": "median"},
        lambda: optuna.pruners.PatientPruner(
            optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=4, n_min_trials=4),
            patience=1, min_delta=0.01,
        ),
    ),
    "none": ({}, optuna.pruners.NopPruner),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_the_rule_is_optunas(name: str) -> None:
    options, theirs = KNOWN[name]
    ours = pruner(Choice(name=name, options=options), ticks=TICKS, study="s")
    study = optuna.create_study(study_name="s", pruner=theirs())
    chance, curves, stopped = random.Random(name), [], 0
    for number in range(40):
        trial, curve = study.ask(), Curve(number=number)
        for tick in range(1, TICKS):  # at the last tick nobody is asked
            curve.losses[tick] = chance.random()
            trial.report(curve.losses[tick], tick)
            why = ours.why_not(curve, tick, curves)
            assert bool(why) == trial.should_prune(), (number, tick, why)
            if why:
                break
        curve.complete = not why
        stopped += bool(why)
        if why:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, 0.5)
        curves.append(curve)
    assert (stopped > 0) == (name != "none")


@pytest.mark.parametrize("name", KNOWN)
def test_an_answer_asked_again_is_the_same(name: str) -> None:
    ours = pruner(Choice(name=name, options=KNOWN[name][0]), ticks=TICKS, study="s")
    chance = random.Random(1)
    others = [Curve(number=n, losses={k: chance.random() for k in range(1, 9)}, complete=True)
              for n in range(9)]  # fmt: skip
    curve = Curve(number=9, losses={k: 0.9 for k in range(1, 8)})
    later = [ours.why_not(curve, tick, others) for tick in range(1, 8)]
    growing = Curve(number=9)
    for tick in range(1, 8):
        growing.losses[tick] = 0.9
        assert ours.why_not(growing, tick, others) == later[tick - 1]


def test_only_equal_ticks_are_compared() -> None:
    ours = pruner(Choice(name="asha", options={"min_fraction": 0.25}), ticks=TICKS, study="s")
    warming = Curve(number=0, losses={2: 5.0, 3: 0.1}, judged_from=3)
    copied = Curve(number=1, losses={2: 0.1}, competes=False)
    curve = Curve(number=2, losses={1: 0.9, 2: 0.9, 3: 0.9})
    assert ours.why_not(curve, 2, [warming, copied]) is None
    assert ours.why_not(curve, 3, [warming]) is None  # no rung


def test_a_reason_names_the_numbers() -> None:
    reasons = {}
    others = [Curve(number=n, losses={k: n / 10 for k in range(1, 9)}, complete=True)
              for n in range(5)]  # fmt: skip
    for name, (options, _) in KNOWN.items():
        ours = pruner(Choice(name=name, options=options), ticks=TICKS, study="s")
        curve = Curve(number=7, losses={k: 0.85 + k / 50 for k in range(1, 8)})
        reasons[name] = ours.why_not(curve, 4, others)
    assert reasons["asha"] == (
        "loss 0.93 is not in the best half of 6 trials at this tick (needs 0.2)"
    )
    assert reasons["median"] == (
        "best loss 0.87 is above the median of 5 complete trials at this tick (needs 0.2)"
    )
    assert "percentile 30 of 5 complete trials" in str(reasons["percentile"])
    assert reasons["threshold"] == "loss 0.93 is above pruner.upper=0.8"
    assert reasons["patient"] == f"no improvement on 0.87 in 2 ticks, and {reasons['median']}"


@pytest.mark.parametrize(
    "fraction, ticks, first", [(0.4, 5, 2), (0.25, 8, 2), (0.01, 5, 1), (1.0, 5, 5), (0.3, 10, 3)]
)
def test_fractions_of_the_budget_are_ticks(fraction: float, ticks: int, first: int) -> None:
    assert tick_at(fraction, ticks) == first
    asha = pruner(Choice(name="asha", options={"min_fraction": fraction}), ticks=ticks, study="s")
    assert asha.first_rung == first


@pytest.mark.parametrize("warmup, first", [(0.0, 1), (0.1, 1), (0.2, 2), (0.5, 3), (0.99, 5)])
def test_a_warm_up_delays_the_first_judgement(warmup: float, first: int) -> None:
    assert judged_from(warmup, 5) == first


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="needs a bound"):
        pruner(Choice(name="threshold"), ticks=5, study="s")
    with pytest.raises(InputError, match="Known: asha, hyperband"):
        pruner(Choice(name="ashha"), ticks=5, study="s")


def test_percentiles_are_numpys() -> None:
    import numpy as np

    losses = [random.Random(2).random() for _ in range(7)]
    others = [Curve(number=n, losses={1: v}, complete=True) for n, v in enumerate(losses)]
    for percent in (10, 37.5, 50, 90):
        bound = float(np.percentile(losses, percent))
        options = {"percentile": percent, "min_fraction": 0.1, "startup_trials": 0}
        ours = pruner(Choice(name="percentile", options=options), ticks=5, study="s")
        above, below = (Curve(number=9, losses={1: bound + d}) for d in (1e-9, -1e-9))
        assert ours.why_not(above, 1, others) and not ours.why_not(below, 1, others)
    assert math.isfinite(bound)
