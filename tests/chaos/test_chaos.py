"""Kill anything, at any moment, and type the same command again: nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit import faults, outcomes
from rounds import Plan, Tally, games, live, overrides

N_TRIALS = 16


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """The trials of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("calm") / "results"
    code, said = live(overrides(folder, N_TRIALS, 0), folder, Plan(), Tally())
    assert code == 0 and faults(folder, N_TRIALS) == [], said
    return outcomes(folder)


def deadly(point: str, call: int = 1) -> list[Plan]:
    """A life that ends before, and one that ends after, a call of the function."""
    return [Plan(point=point, call=call, when=when) for when in ("before", "after")]


def worker(point: str, call: int) -> Plan:
    """A worker that dies within a call, and its driver a little later."""
    return Plan(point=point, role="worker", call=call, lines=38)


TOLD = "sweep.study.mirror:MirroredStudy"
STORE = "sweep.store:Store"
LIVES = {
    "while the study is made": [
        *deadly("sweep.study.lock:take"),
        Plan(point="optuna.storages:RDBStorage.create_new_study", when="after"),
        *deadly(f"{STORE}.open_study"),
    ],
    "while a trial is handed out and reports": [
        *deadly("optuna.storages:RDBStorage.create_new_trial", 2),
        Plan(point=f"{STORE}.start", call=2, when="after"),
        *deadly(f"{STORE}.tick", 3),
    ],
    "while a trial ends": [
        Plan(point=f"{STORE}.finish", when="after"),
        Plan(point=f"{TOLD}.describe", call=3, when="after"),
        *deadly(f"{TOLD}.tell"),
        *deadly(f"{TOLD}.catch_up", 9),
        Plan(point="os:replace", call=5),
    ],
    "the worker, or both": [
        Plan(lines=32, both=True),
        worker("trials.engines.simulated:SimulatedEngine._lives_on", 8),
        worker("os:replace", 2),
        Plan(lines=36, both=True, delay_s=0.01),
        Plan(point="sweep.study:OpenStudy.close"),
    ],
}


@pytest.mark.parametrize("lives", LIVES.values(), ids=LIVES)
def test_a_study_killed_at_each_step_is_the_undisturbed_one(
    lives: list[Plan], calm: list[tuple[object, ...]], tmp_path: Path
) -> None:
    folder, tally = tmp_path / "results", Tally()
    typed = overrides(folder, N_TRIALS, 0)
    for plan in lives:
        live(typed, folder, plan, tally)
    code, said = live(typed, folder, Plan(), tally)
    assert code == 0, said
    assert tally.killed >= len(lives), tally
    assert faults(folder, N_TRIALS) == []
    assert outcomes(folder) == calm


def test_a_driver_killed_while_the_trials_of_a_dead_worker_are_tried_alone(tmp_path: Path) -> None:
    """One between two that it hands out again, one before and one after it sets a trial aside."""
    again, tally = "sweep.study.ledger:Live.again", Tally()
    alike = ("engine.capacity=3", "sampler=random", "pruner=none", "executor.state_every_s=0")
    killed, calm = (overrides(tmp_path / name, N_TRIALS, 0, *alike) for name in ("killed", "calm"))
    killed.append("engine.faults=[crash@1:3:0,crash@4:2:0,segfault@8:2:0]")
    for call, when in ((2, "before"), (4, "before"), (3, "after")):
        live(killed, tmp_path / "killed", Plan(point=again, call=call, when=when), tally)
    for typed, folder in ((killed, tmp_path / "killed"), (calm, tmp_path / "calm")):
        code, said = live(typed, folder, Plan(), tally)
        assert code == 0, said
    assert tally.killed == 3 and faults(tmp_path / "killed", N_TRIALS) == []
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "calm")


def test_several_workers_under_random_kills(tmp_path: Path) -> None:
    tally, wrong = games(tmp_path, seed=1, workers=2, kills=5, n_trials=16)
    assert tally.killed >= 3 and wrong == []


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_kills(tmp_path: Path) -> None:
    killed, seed = 0, 0
    while killed < 1000:
        seed += 1
        tally, wrong = games(tmp_path / str(seed), seed, workers=1 + (seed % 4 == 0))
        assert wrong == [], (seed, tally)
        killed += tally.killed
