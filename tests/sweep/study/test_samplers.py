"""One suite over all samplers: inside the space, conditions respected, the same each time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sweeping import run_inline, stored, sweep_config

from sweep.config import Choice, SweepConfig
from sweep.study.samplers import at_share, sampling, trial_seed
from trials.contract import InputError

SAMPLERS = ("tpe", "random", "grid", "qmc", "gp")
CONDITIONAL = """
train:
  scheduler: choice(constant, cosine)
  warmup:
    space: range(0, 0.11, 0.05)
    when: {train.scheduler: [cosine]}
lora:
  r: choice(4, 8, 16)
"""


@pytest.fixture(params=SAMPLERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def conditional(folder: Path, name: str, *overrides: str) -> SweepConfig:
    """A sweep over six or so points of which some have a warm-up."""
    path = folder / "conf" / "search" / "conditional.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONDITIONAL)
    return sweep_config(
        folder, f"sampler={name}", "n_trials=10", *overrides,
        space=("+search=conditional",), config_dir=folder / "conf",
    )  # fmt: skip


def played(config: SweepConfig) -> list[dict[str, Any]]:
    run_inline(config)
    return [dict(record.params) for record in stored(config)[1]]


def test_conditions_hold_and_the_same_command_gives_the_same_sweep(
    name: str, tmp_path: Path
) -> None:
    sweeps = [conditional(tmp_path / place, name) for place in ("one", "two")]
    proposals = [played(config) for config in sweeps]
    one, two = ([(r.params, r.losses, r.outcome, r.reason) for r in stored(c)[1]] for c in sweeps)
    assert one == two
    for params in proposals[0]:
        assert ("train.warmup" in params) == (params["train.scheduler"] == "cosine")
        assert params["lora.r"] in (4, 8, 16)
        assert params.get("train.warmup", 0) in (0, 0.05, 0.1)


def test_another_seed_gives_another_sweep(name: str, tmp_path: Path) -> None:
    config = conditional(tmp_path, name)
    sweeps = [proposed(config, seed) for seed in range(3)]
    assert sweeps[0] != sweeps[1] or sweeps[0] != sweeps[2]


def proposed(config: SweepConfig, seed: int, trials: int = 9) -> list[dict[str, Any]]:
    """What is proposed where each trial is worse than the one before; no driver, no database."""
    make, study = sampling(config.sampler, config.space, config.values, seed), optuna.create_study()
    params = []
    for number in range(trials):
        study.sampler = make(number)
        trial = study.ask()
        params.append(config.space.suggest(trial, config.values))
        study.tell(trial, float(number))
    return params


def test_tpe_models_dimensions_together_unless_told_otherwise(tmp_path: Path) -> None:
    seen = {
        option: proposed(sweep_config(tmp_path, f"sampler.multivariate={option}"), 0, trials=12)
        for option in ("null", "true", "false")
    }
    assert seen["null"] == seen["true"] != seen["false"]
    study = optuna.create_study()
    for number, expected in enumerate(seen["false"]):
        study.sampler = optuna.samplers.TPESampler(
            seed=trial_seed(0, number), n_startup_trials=6, multivariate=False
        )
        trial = study.ask()
        assert sweep_config(tmp_path).space.suggest(trial, {}) == expected
        study.tell(trial, float(number))


def test_a_suggestion_follows_from_the_number_alone(tmp_path: Path) -> None:
    """As after a crash: no generator has to be where it was."""
    config = sweep_config(tmp_path)
    for name in ("tpe", "random", "qmc"):
        make = sampling(Choice(name=name), config.space, config.values, 0)
        again = sampling(Choice(name=name), config.space, config.values, 0)
        study = optuna.create_study()
        for number in range(5):
            study.sampler = make(number)
            trial = study.ask()
            params = config.space.suggest(trial, config.values)
            study.sampler = again(number)
            attached = optuna.trial.Trial(study, trial._trial_id)
            assert config.space.suggest(attached, config.values) == params
            study.tell(trial, float(number))


def test_a_grid_has_every_point_once_and_then_ends(tmp_path: Path) -> None:
    config = conditional(tmp_path, "grid", "n_trials=50")
    points = Counter(str(params) for params in played(config))
    assert config.space.size() == len(points) == 12 and set(points.values()) == {1}


def test_a_grid_needs_points_that_can_be_counted(tmp_path: Path) -> None:
    space = ("lora.r=range(1,500)", "train.max_grad_norm=range(1,500)")
    config = sweep_config(tmp_path, "sampler=grid", space=space)
    with pytest.raises(InputError, match="more than 100,000 points. Type sampler=qmc"):
        sampling(config.sampler, config.space, config.values, 0)


def test_sobol_points_cover_the_space_evenly(tmp_path: Path) -> None:
    config = sweep_config(tmp_path)
    make = sampling(Choice(name="qmc"), config.space, config.values, 0)
    study = optuna.create_study()
    seen: Counter[int] = Counter()
    for number in range(32):
        study.sampler = make(number)
        seen[config.space.suggest(study.ask(), config.values)["lora.r"]] += 1
    assert set(seen) == {4, 8, 16, 32, 64} and max(seen.values()) - min(seen.values()) <= 2


@pytest.mark.parametrize(
    "distribution, ends",
    [
        (CategoricalDistribution(["a", "b", "c"]), ("a", "c")),
        (IntDistribution(4, 64), (4, 64)),
        (IntDistribution(4, 64, step=20), (4, 64)),
        (IntDistribution(1, 100, log=True), (1, 100)),
        (FloatDistribution(0.0, 0.3, step=0.1), (0.0, pytest.approx(0.3))),
    ],
)
def test_shares_reach_both_ends(distribution: Any, ends: tuple[Any, Any]) -> None:
    assert (at_share(distribution, 0.0), at_share(distribution, 1 - 1e-12)) == ends


@pytest.mark.parametrize(
    "distribution", [FloatDistribution(1e-5, 2e-3, log=True), FloatDistribution(0.0, 0.2)]
)
def test_shares_of_an_interval_stay_inside(distribution: FloatDistribution) -> None:
    values = [at_share(distribution, k / 10) for k in range(10)]
    assert values == sorted(values)
    assert distribution.low <= values[0] and values[-1] < distribution.high


def test_seeds_differ_between_trials_and_studies() -> None:
    seeds = {trial_seed(study, number) for study in range(10) for number in range(100)}
    assert len(seeds) == 1000
