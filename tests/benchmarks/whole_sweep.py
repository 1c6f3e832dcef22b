"""A whole sweep, wall clock from the command to the leaderboard, packed and through TRL.

    python -m tests.benchmarks.whole_sweep
    python -m tests.benchmarks.whole_sweep --runs packed trl-8 --limit-s 400
    python -m tests.benchmarks.whole_sweep --device cpu --shape tiny --trials 4 --steps 4

64 trials of 100 steps of 4 x 182 tokens under ASHA, over `+search=lora_rank` with the random
sampler, whose trials are the same ones whoever trains them. Runs: trl-N, N workers on the one
device; packed, one worker. The base is in bf16 and quantised by each worker, as a user's is. A run
that reaches its limit is interrupted: it shows what it has, and its pace is that until then.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.benchmarks import tables
from tests.benchmarks.launch import FOLDER, ROOT, Gauge, end_of, environment, made_base
from tests.benchmarks.packed_speed import say
from tests.benchmarks.shapes import SHAPES, write_rows

LENGTH, BATCH, ROWS = 182, 4, 512  # tokens, examples of a step, examples
EVAL_SIZE = 16
TICKS = 5
ENDING_S = 60.0  # for an interrupted sweep to stop at its next reports
COLUMNS = ("run", "wall clock s", "to the first trial", "after the last", "trials", "complete",
           "pruned", "steps", "trial-steps/s", "evaluation", "idle", "best loss", "device GiB",
           "all trials, s")


@dataclass(frozen=True)
class Ran:
    """A sweep's run. `outcomes` of all ended trials, in their order."""

    name: str
    seconds: float
    before: float = 0.0  # seconds until the first trial started
    after: float = 0.0  # seconds from the last trial's end on
    reason: str | None = None  # why there is nothing to show
    interrupted: bool = False
    outcomes: tuple[str, ...] = ()
    steps: int = 0
    evaluation: float = 0.0  # share of the trials' time
    best_loss: float | None = None
    idle: str = "-"  # share of a pack's time from its first clock on, as its worker's log says
    device_bytes: int | None = None
    device: str = ""


def main() -> None:
    """Runs the sweeps one after another and prints a table of them."""
    given = parse()
    given.folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + given.budget_s
    say(f"writing a base of shape {given.shape}, unless it is there")
    base = made_base(given.folder, given.shape, given.device, "none")
    write_rows(given.folder / "sweep.jsonl", [LENGTH] * ROWS)
    runs = []
    for name in given.runs:
        say(f"{name}: started")
        runs.append(ran := run(given, name, base, min(given.limit_s, until - time.monotonic())))
        say(f"{name}: {ran.reason or f'{len(ran.outcomes)} trials'} ({ran.seconds:.0f} s)")
    command = f"python -m tests.benchmarks.whole_sweep {shlex.join(sys.argv[1:])}".strip()
    shown = shlex.join(["python", "-m", "sweep", *words(given, given.runs[0], base, Path("..."))])
    device = next((ran.device for ran in runs if ran.device), given.device)
    print(tables.header("A whole sweep", f"{command}\n{shown}", device))
    print(tables.table(COLUMNS, [row(ran, given.trials) for ran in runs]))
    print(ratios(runs, given.trials), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.whole_sweep")
    parser.add_argument("--runs", nargs="+", default=["packed", "trl-8", "trl-1"],
                        help="packed and trl-N, in this order")
    parser.add_argument("--shape", default="1B", choices=list(SHAPES))
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="of a trial")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--override", action="append", default=[], metavar="NAME=VALUE",
                        help="for the command line of every sweep; may be repeated")
    parser.add_argument("--packed-override", action="append", default=[], metavar="NAME=VALUE",
                        help="likewise, of the packed ones alone")
    parser.add_argument("--limit-s", type=float, default=400.0, help="the most for one run")
    parser.add_argument("--budget-s", type=float, default=500.0, help="the most for all")
    parser.add_argument("--folder", type=Path, default=FOLDER,
                        help="where the base is kept for the next time")
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    given.device = "cuda:0" if given.device == "cuda" else given.device
    return given


def words(given: argparse.Namespace, name: str, base: Path, results: Path) -> list[str]:
    """The command line of a sweep."""
    engine, _, workers = name.partition("-")
    given_for_all = [
        "+search=lora_rank", f"n_trials={given.trials}", f"study={name}", f"device={given.device}",
        f"engine={engine}", "executor=local", f"executor.workers={workers or 1}",
        "model=local", f"model.name={base}",
        "data=local", f"data.path={given.folder / 'sweep.jsonl'}", "data.format=text",
        "data.text_column=text", "data.loss_on=all", f"data.eval_size={EVAL_SIZE}",
        f"data.max_length={LENGTH + 1}",
        "budget=subset", f"budget.examples={given.steps * BATCH}",
        f"budget.ticks={min(TICKS, given.steps)}",
        f"train.batch_size={BATCH}", "lora.dropout=0.05", "pruner=asha", "sampler=random",
        "tracking=none", f"results_dir={results}",
    ]  # fmt: skip
    more = [*given.override, *(given.packed_override if engine == "packed" else ())]
    return list({word.partition("=")[0]: word for word in [*given_for_all, *more]}.values())


def run(given: argparse.Namespace, name: str, base: Path, limit_s: float) -> Ran:
    """One sweep from its command to its end, or to its limit."""
    if limit_s < ENDING_S:
        return Ran(name, 0.0, reason="not run: no time left")
    results = Path(tempfile.mkdtemp(dir=given.folder))
    line = [sys.executable, "-m", "sweep", *words(given, name, base, results)]
    began, at = time.monotonic(), time.time()
    log = results / "log"
    with log.open("wb") as out, Gauge(given.device) as gauge:
        process = subprocess.Popen(line, cwd=ROOT, env=environment(given.folder), stdout=out,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        interrupted = _wait(process, limit_s)
    seconds = time.monotonic() - began
    try:
        return _ran(name, (at, seconds), interrupted, results / name, gauge.peak)
    except OSError:
        said = end_of(log.read_text(errors="replace"))
        return Ran(name, seconds, reason=f"exit code {process.returncode}: {said}")
    finally:
        shutil.rmtree(results, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """True where the sweep had to be interrupted."""
    try:
        process.wait(limit_s - ENDING_S / 2)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(ENDING_S / 2)
    except subprocess.TimeoutExpired:
        process.kill()  # its workers die with it
        process.wait()
    return True


def _ran(
    name: str, span: tuple[float, float], interrupted: bool, study: Path, peak: int | None
) -> Ran:
    """`span`: when the command was given, and the seconds until it ended."""
    began, seconds = span
    with (study / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    ended = [trial for trial in trials if trial["outcome"] not in ("", "running", "stopped")]
    losses = [float(trial["eval_loss"]) for trial in ended if trial["outcome"] == "complete"]
    busy = sum(float(trial["seconds"] or 0) for trial in trials)
    return Ran(
        name, seconds, interrupted=interrupted, device_bytes=peak,
        before=min(_times(trials, "started_at"), default=began) - began,
        after=began + seconds - max(_times(ended, "finished_at"), default=began + seconds),
        device=json.loads((study / "setup.json").read_text())["device"]["name"],
        outcomes=tuple(trial["outcome"] for trial in ended),
        steps=sum(int(trial["examples"] or 0) for trial in trials) // BATCH,
        evaluation=sum(float(trial["eval_seconds"] or 0) for trial in trials) / max(busy, 1e-9),
        idle=_idle(study / "logs" / "worker-0.log"), best_loss=min(losses, default=None),
    )


def _times(trials: Sequence[Mapping[str, str]], column: str) -> list[float]:
    return [datetime.fromisoformat(said).timestamp() for trial in trials if (said := trial[column])]


def _idle(log: Path) -> str:
    said = re.findall(r"the device idled (\S+) of the time", log.read_text(errors="replace"))
    return said[-1] if said else "-"


def all_trials_s(ran: Ran, trials: int) -> float | None:
    """The whole sweep's seconds; of an interrupted one, at its pace."""
    if ran.reason or not ran.outcomes:
        return None
    return ran.seconds * (trials / len(ran.outcomes) if ran.interrupted else 1)


def row(ran: Ran, trials: int) -> list[str]:
    """A run's line of the table."""
    if ran.reason:
        return [ran.name, ran.reason.replace("|", "/"), *["-"] * (len(COLUMNS) - 2)]
    whole = all_trials_s(ran, trials)
    said = "-" if whole is None else f"{whole:.0f}"
    return [
        ran.name,
        f"{ran.seconds:.1f}{' (interrupted)' if ran.interrupted else ''}",
        f"{ran.before:.1f}", f"{ran.after:.1f}",
        f"{len(ran.outcomes)} of {trials}",
        str(ran.outcomes.count("complete")),
        str(ran.outcomes.count("pruned")),
        str(ran.steps),
        f"{ran.steps / ran.seconds:.2f}",
        f"{ran.evaluation:.1%}",
        ran.idle,
        "-" if ran.best_loss is None else f"{ran.best_loss:.4f}",
        tables.gib(ran.device_bytes or 0),
        f"about {said}" if ran.interrupted else said,
    ]


def ratios(runs: list[Ran], trials: int) -> str:
    """How many times as long the others take as the pack."""
    taken = {ran.name: whole for ran in runs if (whole := all_trials_s(ran, trials))}
    packed = taken.get("packed")
    if packed is None:
        return ""
    return "".join(
        f"packed over {name}: {seconds / packed:.2f}x\n"
        for name, seconds in taken.items() if name != "packed"
    )


if __name__ == "__main__":
    main()
