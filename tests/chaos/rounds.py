"""A study whose driver, worker or both are killed again and again, and what must be true of it.

`games` kills and restarts with the same command until the study is complete, and says what is wrong
with it then. All choices come from one generator, so a game is repeated by its seed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from audit import faults, outcomes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SPACE = ("lora.r=choice(4,8,16,32,64)", "train.learning_rate=tag(log,interval(2e-5,5e-3))")
KILLS_EACH = 25  # of one study
N_TRIALS = 30
LIFE_S = 300.0  # of one driver, however loaded the machine is
STATEMENT = "sqlalchemy.engine.default:DefaultDialect"

# Where the driver may die, and how often that point comes by in a life.
DRIVER_POINTS = {
    f"{STATEMENT}.do_execute": 200,  # within any transaction
    f"{STATEMENT}.do_commit": 100,
    "sweep.study.lock:take": 1,
    "sweep.store:Store.open_study": 1,
    "optuna.storages:RDBStorage.create_new_study": 1,
    "optuna.storages:RDBStorage.create_new_trial": 8,
    "sweep.store:Store.start": 8,
    "sweep.store:Store.tick": 25,
    "sweep.store:Store.finish": 8,
    "sweep.study.mirror:MirroredStudy.report": 25,
    "sweep.study.mirror:MirroredStudy.describe": 20,
    "sweep.study.mirror:MirroredStudy.tell": 8,
    "sweep.study.mirror:MirroredStudy.catch_up": 80,
    "os:replace": 20,  # a file written aside, or just renamed
    "sweep.observers.files:Files.finished": 8,
    "sweep.store:Store.leave": 1,
    "sweep.study:OpenStudy.close": 1,
}
WORKER_POINTS = {
    "sweep.executors.pipe:send": 40,
    "sweep.executors.pipe:receive": 40,
    "os:replace": 15,  # the state of a trial
    "trials.engines.simulated:SimulatedEngine._lives_on": 25,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One driver's life: where a process dies, and after how many lines the driver does."""

    point: str | None = None
    role: str = "driver"
    call: int = 1
    when: str = "before"
    lines: int | None = None  # of the driver's output; null: it may live
    both: bool = False  # then, its worker with it
    delay_s: float = 0.0


@dataclass(kw_only=True)
class Tally:
    """What a game came to."""

    lives: int = 0
    kills: dict[str, int] = field(default_factory=dict)  # where -> how many

    @property
    def killed(self) -> int:
        """Processes killed, all in all."""
        return sum(self.kills.values())

    def count(self, where: str) -> None:
        """A process died there."""
        self.kills[where] = self.kills.get(where, 0) + 1


def overrides(folder: Path, n_trials: int, seed: int, *more: str) -> list[str]:
    """What is typed, each time: a simulated sweep in `folder`; later words win."""
    typed = [
        "engine=simulated", "engine.seconds_per_tick=0.002", "tracking=none", "device=cpu",
        "study=chaos", f"n_trials={n_trials}", f"seed={seed}", f"results_dir={folder}",
        f"storage=sqlite:///{folder}/sweep.db", *SPACE, *more,
    ]  # fmt: skip
    return list({text.partition("=")[0]: text for text in typed}.values())


def games(place: Path, seed: int, workers: int = 1, kills: int = KILLS_EACH,
            n_trials: int = N_TRIALS) -> tuple[Tally, list[str]]:  # fmt: skip
    """One study under fire: what was killed, and what is wrong with it at its end."""
    killed, calm = place / "killed", place / "calm"
    typed = overrides(killed, n_trials, seed, f"executor.workers={workers}")
    tally, _ = play(typed, killed, random.Random(seed), kills)
    wrong = faults(killed, n_trials)
    if workers == 1:
        live(overrides(calm, n_trials, seed), calm, Plan(), Tally())
        differing = sorted(set(map(str, outcomes(killed))) ^ set(map(str, outcomes(calm))))
        wrong += [f"differs from an undisturbed run: {line}" for line in differing]
    return tally, wrong


def play(
    typed: Sequence[str], folder: Path, chance: random.Random, kills: int
) -> tuple[Tally, str]:
    """Kills about `kills` times, then lets the study be completed; the last life's output.

    Raises AssertionError where a life that nobody ended does not end well.
    """
    tally = Tally()
    while tally.killed < kills:
        code, said = live(typed, folder, plan(chance), tally)
        if code == 0:
            return tally, said  # it was complete before its time
    code, said = live(typed, folder, Plan(), tally)
    assert code == 0, said
    return tally, said


def plan(chance: random.Random) -> Plan:
    """How the next driver's life is to be cut short."""
    kind = chance.choice(("point", "point", "point", "worker", "worker", "driver", "both"))
    lines, delay = chance.randint(1, 60), chance.uniform(0.0, 0.03)
    if kind in ("driver", "both"):
        return Plan(lines=lines, delay_s=delay, both=kind == "both")
    points = DRIVER_POINTS if kind == "point" else WORKER_POINTS
    point = chance.choice(sorted(points))
    return Plan(
        point=point,
        role="driver" if kind == "point" else "worker",
        call=chance.randint(1, points[point]),
        when=chance.choice(("before", "after")),
        lines=60,  # where the point was not met, or the worker was not alone
        delay_s=delay,
    )


def live(typed: Sequence[str], folder: Path, how: Plan, tally: Tally) -> tuple[int, str]:
    """One driver from its start to its end; its exit code and what it said."""
    once = folder.with_name(f"{folder.name}.died")
    once.unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "sweep", *typed],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(how, once),
        cwd=folder.parent,
    ) as driver:
        watch = threading.Timer(LIFE_S, driver.kill)
        watch.start()
        try:
            said = "".join(_heard(driver, how, tally))
            code = driver.wait()
        finally:
            watch.cancel()
    tally.lives += 1
    if once.exists() and how.point:
        tally.count(f"{how.role} {how.when} {how.point.replace(STATEMENT, 'database')}")
    assert code in (0, -9), f"exit code {code} after {how}:\n{said}"
    assert code == 0 or how != Plan(), f"took longer than {LIFE_S:g} s:\n{said}"
    return code, said


def _heard(driver: subprocess.Popen[str], how: Plan, tally: Tally) -> Iterator[str]:
    """The driver's lines, up to where it is to die."""
    assert driver.stdout
    for number, line in enumerate(driver.stdout, start=1):
        yield line
        if number == how.lines:
            with suppress(subprocess.TimeoutExpired):
                driver.wait(how.delay_s)
                continue  # it was done before
            _kill(driver, how.both)
            tally.count("driver and worker" if how.both else "driver at any time")


def _kill(driver: subprocess.Popen[str], both: bool) -> None:
    with suppress(psutil.NoSuchProcess):
        workers = psutil.Process(driver.pid).children() if both else []
        for process in [*workers, driver]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _environment(how: Plan, once: Path) -> dict[str, str]:
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    chaos = {}
    if how.point:
        path.insert(0, str(HERE / "hook"))
        told = {"role": how.role, "point": how.point, "call": how.call, "when": how.when}
        chaos["CHAOS"] = json.dumps({**told, "once": str(once)})
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **chaos}
