"""Real training, killed: the losses are those of a run that nobody disturbed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from audit import faults, outcomes
from rounds import Plan, Tally, live
from tiny import build_base, write_data

N_TRIALS, TICKS = 3, 3
SAME = 1e-5  # of two packs, whose sums are made in another order
KILLS = [Plan(point="sweep.store:Store.tick", call=2, when="after")]  # its worker dies with it
MORE = [  # a driver that outlives its worker completes the study, so that comes last
    Plan(point="sweep.study.mirror:MirroredStudy.tell"),
    Plan(point="os:replace", call=3, when="after", role="worker"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 100,000 parameters and its data."""
    folder = tmp_path_factory.mktemp("tiny")
    build_base(folder / "base")
    write_data(folder / "data.jsonl")
    return folder


def typed(tiny: Path, results: Path, *more: str) -> list[str]:
    """A whole sweep of real 4-bit trials, of seconds each."""
    return [
        "model=local", f"model.name={tiny / 'base'}", "model.dtype=fp32", "data=local",
        f"data.path={tiny / 'data.jsonl'}", "data.prompt_column=prompt",
        "data.completion_column=completion", "data.eval_size=16", "data.max_length=48",
        "device=cpu", "tracking=none", "study=chaos", f"n_trials={N_TRIALS}", "samples=0",
        "lora.r=choice(2,4)", "lora.dropout=0.1", "train.batch_size=4",
        "train.learning_rate=tag(log,interval(1e-3,1e-2))", "budget.examples=48",
        f"budget.ticks={TICKS}", "executor.state_every_s=0", "keep_adapters=1",
        f"results_dir={results}", f"storage=sqlite:///{results}/sweep.db", *more,
    ]  # fmt: skip


def killed(command: list[str], folder: Path, lives: list[Plan]) -> None:
    """Plays the lives, then lets the sweep end."""
    tally = Tally()
    for plan in lives:
        live(command, folder, plan, tally)
    code, said = live(command, folder, Plan(), tally)
    assert code == 0, said
    assert tally.killed >= len(lives), tally
    assert faults(folder, N_TRIALS) == []


def check(engine: str, lives: list[Plan], tiny: Path, folder: Path) -> None:
    """Which trials meet in a pack is another matter after a kill; what they come to is not."""
    # The third trial comes after the others, so that there is something left to kill.
    pack = ["engine.capacity=2", "sampler=random", "pruner=none"]
    more = [f"engine={engine}", *(pack if engine == "packed" else [])]
    for name, played in (("calm", []), ("killed", lives)):
        killed(typed(tiny, folder / name, *more), folder / name, played)
    calm, after = losses(folder / "calm"), losses(folder / "killed")
    assert after == pytest.approx(calm, abs=0 if engine == "trl" else SAME)
    if engine == "trl":
        assert outcomes(folder / "killed") == outcomes(folder / "calm")


def test_a_pack_goes_on_where_it_was_killed(tiny: Path, tmp_path: Path) -> None:
    check("packed", KILLS, tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["trl", "packed"])
def test_more_kills_of_real_engines(engine: str, tiny: Path, tmp_path: Path) -> None:
    check(engine, [*KILLS, *MORE], tiny, tmp_path)


def losses(results: Path) -> dict[tuple[int, int], float]:
    """Each trial's loss at each tick."""
    with closing(sqlite3.connect(results / "sweep.db")) as db:
        rows = db.execute("select number, tick, eval_loss from sweep_ticks").fetchall()
    return {(number, tick): loss for number, tick, loss in rows}
