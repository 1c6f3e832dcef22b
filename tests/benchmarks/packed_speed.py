"""Trial-steps per second of TRL and of packs, side by side on one GPU, beside the ceiling.

    python -m tests.benchmarks.packed_speed --shapes 0.5B 1B
    python -m tests.benchmarks.packed_speed --shapes 8B --cases plain-1 plain-8 packed-eager
    python -m tests.benchmarks.packed_speed --table mixed --shapes 0.5B 1B
    python -m tests.benchmarks.packed_speed --table memory --shapes 8B
    python -m tests.benchmarks.packed_speed --device cpu --shapes tiny --cases trl-2 packed

Cases: plain-N, N processes at once, each of them TRL's SFTTrainer as its documentation has it;
trl-N, likewise with this project's TRL engine; packed, the packed engine as it chooses; packed-N,
with a capacity of N; packed-eager and packed-compiled; mixed, a pack of trials of mixed ranks,
batch sizes and lengths. An even trial has r 16 on all linear layers, dropout 0.05, AdamW and
batches of 4 x 182 tokens, all of them with loss. Trials report, and evaluate one example, every few
steps; that time is not counted, and its share stands in the table. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import tables
from tests.benchmarks.case import Case
from tests.benchmarks.launch import FOLDER, Found, made_base, measured_rates, run_case
from tests.benchmarks.roofline import Load, Rates
from tests.benchmarks.shapes import SHAPES, log_uniform, write_rows
from trials.contract import to_json

LENGTH, ROWS = 182, 512  # tokens that a base reads of an even example; examples
LEAST, MOST = 32, 512  # of mixed ones
DEFAULT = {
    "speed": ["plain-1", "plain-8", "plain-16", "trl-1", "trl-8", "trl-16", "packed-1",
              "packed-eager", "packed-compiled"],
    "mixed": ["packed", "mixed"],
    "memory": ["added", "fits"],
}
TITLES = {
    "speed": "Trial-steps per second",
    "mixed": "Mixed ranks, batch sizes and lengths",
    "memory": "Memory of a pack",
}
EVERY = {"plain": 5, "trl": 5, "packed": 10}  # steps between two reports
SLOW = {"8B": 4, "tiny": 2}  # likewise, for all
MEMORY_RANKS = (16, 64)
DEVICES_GIB = (16, 24)
OTHERS_GIB = 0.75  # of a device's memory that no allocator gets: the CUDA context, a screen
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LEAST_S = 20.0  # no case is begun with less time left


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    given: argparse.Namespace
    folder: Path
    until: float  # on `time.monotonic`'s clock
    rates: Rates
    lengths: dict[str, float]  # mean over the tokens, by data file


def main() -> None:
    """Runs the cases and prints one table for each shape."""
    given = parse()
    began = time.monotonic()
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    say("measuring the device")
    rates = measured_rates(folder, given.device, given.shapes)
    bench = Bench(given, folder, began + given.budget_s, rates, write_data(folder))
    show = memory if given.table == "memory" else speed
    command = f"python -m tests.benchmarks.packed_speed {shlex.join(sys.argv[1:])}"
    print(tables.header(TITLES[given.table], command, rates.device))
    print(tables.rates_line(rates), flush=True)
    for name in given.shapes:
        text, founds = show(bench, name)
        print(text, flush=True)
        if given.json:
            with given.json.open("a") as file:
                file.writelines(to_json(found) + "\n" for found in founds)
    say("done")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.packed_speed")
    parser.add_argument("--table", default="speed", choices=list(DEFAULT))
    parser.add_argument("--shapes", nargs="+", default=["0.5B", "1B"], choices=list(SHAPES))
    parser.add_argument("--cases", nargs="+",
                        help="plain-N trl-N packed packed-N mixed ...; of memory: added fits")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="of the packed engine, for every case; may be repeated")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    parser.add_argument("--window-s", type=float, default=6.0)
    parser.add_argument("--warm", type=int, help="reports of each trial before its window")
    parser.add_argument("--case-s", type=float, default=150.0, help="the most for one case")
    parser.add_argument("--budget-s", type=float, default=540.0, help="the most for all")
    parser.add_argument("--capacities", type=int, nargs=2, default=[2, 6],
                        help="of the memory table: a trial more is their difference")
    parser.add_argument("--folder", type=Path, default=FOLDER,
                        help="where bases and data are kept for the next time")
    parser.add_argument("--json", type=Path, help="a file that gets a line for each case")
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    given.device = "cuda:0" if given.device == "cuda" else given.device
    given.cases = given.cases or DEFAULT[given.table]
    given.option = dict(map(option, given.option))
    return given


def option(text: str) -> tuple[str, Any]:
    """An engine's option from `name=value`, as JSON where it is JSON."""
    name, _, value = text.removeprefix("engine.").partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def write_data(folder: Path) -> dict[str, float]:
    """Writes both data sets; the mean length over the tokens of each."""
    lengths = {"even": [LENGTH] * ROWS, "mixed": log_uniform(ROWS, LEAST, MOST)}
    return {
        str(write_rows(folder / f"{name}.jsonl", given)): sum(n * n for n in given) / sum(given)
        for name, given in lengths.items()
    }


# --- speed -----------------------------------------------------------------------------------


def speed(bench: Bench, name: str) -> tuple[str, list[Found]]:
    """One shape's cases as a table, and what it says of the goals."""
    founds = [measure(bench, case_of(bench, name, word)) for word in bench.given.cases]
    load = Load(r=16, tokens=4 * LENGTH, length=LENGTH)
    lines = [f"### {name}\n", tables.speed_table(founds, bench.rates, bench.lengths),
             tables.ceiling_line(name, bench.rates, load)]
    if bench.given.table == "mixed":
        even, mixed = (next((f for f in founds if f.case.mixed is kind), None)
                       for kind in (False, True))
        if even and mixed:
            lines.append(tables.mixed_line(even, mixed, bench.rates, bench.lengths))
    else:
        lines.append(tables.goal_lines(name, founds, bench.rates, bench.lengths))
    return "\n".join(lines), founds


def case_of(bench: Bench, shape: str, word: str) -> Case:
    """The case that a word of the command line names."""
    given = bench.given
    found = re.fullmatch(r"(plain|trl|packed|mixed)(?:-(\d+|eager|compiled))?", word)
    if found is None:
        raise SystemExit(f"--cases {word}: known are plain-N, trl-N, packed, packed-N, "
                         "packed-eager, packed-compiled, and likewise mixed")
    kind, what = found.groups()
    mixed, alone = kind == "mixed", kind in ("plain", "trl")
    processes = int(what or 1) if alone else 1
    return Case(
        name=word, shape=shape, engine=kind if alone else "packed", device=given.device,
        base="", data=str(bench.folder / f"{'mixed' if mixed else 'even'}.jsonl"),
        max_length=(MOST if mixed else LENGTH) + 1,  # and one that is predicted only
        options={} if alone else given.option | options_of(what),
        processes=processes, mixed=mixed,
        every=SLOW.get(shape, EVERY[kind if alone else "packed"]),
        warm=given.warm or (1 if mixed or processes > 1 else 2),
        window_s=given.window_s * (1.5 if shape == "8B" else 1),
        threads=given.threads or (max(1, CORES // processes) if processes > 1 else None),
    )  # fmt: skip


def options_of(what: str | None) -> dict[str, Any]:
    """Engine options by the second half of a case's name."""
    if what is None:
        return {}
    return {"compile": what == "compiled"} if not what.isdigit() else {"capacity": int(what)}


def measure(bench: Bench, case: Case) -> Found:
    """Runs a case unless time is up; what it found is said at once."""
    say(f"{case.shape} {case.name}: started")
    found = _found(bench, case)
    said = found.reason or (
        f"{tables.steps_per_s(found):.4g} trial-steps/s, {tables.trials(found)} trials, "
        f"{tables.of_ceiling(found, bench.rates, bench.lengths):.1%} of the ceiling"
    )
    say(f"{case.shape} {case.name}: {said} ({found.seconds:.0f} s)")
    return found


def _found(bench: Bench, case: Case) -> Found:
    try:
        if bench.until - time.monotonic() < LEAST_S:
            raise RuntimeError("not run: no time left")
        base = made_base(bench.folder, case.shape, case.device)
    except RuntimeError as error:
        return Found(case, (), str(error), None, 0.0)
    limit = min(bench.given.case_s, bench.until - time.monotonic())
    return run_case(replace(case, base=str(base)), bench.folder, limit)


# --- memory ----------------------------------------------------------------------------------


def memory(bench: Bench, name: str) -> tuple[str, list[Found]]:
    """What a trial more takes, and what fits into smaller devices."""
    lines, founds = [], []
    if "added" in bench.given.cases:
        added = [(r, kept, [measure(bench, case) for case in cases])
                 for r, kept, cases in added_cases(bench, name)]
        few, many = bench.given.capacities
        columns = ["r", "checkpointing", f"{few} trials, GiB", f"{many} trials, GiB",
                   "a trial, GiB"]
        rows = [[str(r), "on" if kept else "off", *peaks(pair)] for r, kept, pair in added]
        lines += [f"### {name}: peak memory allocated in the window\n", tables.table(columns, rows)]
        founds += [found for *_, pair in added for found in pair]
    if "fits" in bench.given.cases:
        fitting = [(gib, measure(bench, case)) for gib, case in fitting_cases(bench, name)]
        columns = ["device", "r", "checkpointing", "trials", "trial-steps/s", "tokens/s",
                   "process GiB"]
        rows = [fit_row(gib, found) for gib, found in fitting]
        lines += [f"### {name}: what fits\n", tables.table(columns, rows)]
        founds += [found for _, found in fitting]
    return "\n".join(lines), founds


def added_cases(bench: Bench, name: str) -> Iterator[tuple[int, bool, list[Case]]]:
    """Each rank, without and with gradient checkpointing, at two capacities."""
    for r in MEMORY_RANKS:
        for kept in (False, True):
            yield r, kept, [memory_case(bench, name, r, kept, capacity)
                            for capacity in bench.given.capacities]


def fitting_cases(bench: Bench, name: str) -> Iterator[tuple[int, Case]]:
    """Each rank with gradient checkpointing on a device that seems smaller than it is."""
    for gib in DEVICES_GIB:
        for r in MEMORY_RANKS:
            case = memory_case(bench, name, r, True, None)
            bound = int((gib - OTHERS_GIB) * tables.GIB)
            yield gib, replace(case, name=f"{gib} GiB, {case.name}", memory_bytes=bound)


def memory_case(bench: Bench, name: str, r: int, kept: bool, capacity: int | None) -> Case:
    """A short one, for the peak comes at once; eager where it is read: graphs hide theirs."""
    case = case_of(bench, name, "packed" if capacity is None else f"packed-{capacity}")
    said = f"r {r}, {'' if kept else 'no '}checkpointing, {capacity or 'all that fit'}"
    eager = {} if capacity is None else {"compile": False}
    return replace(case, name=said, r=r, checkpointing=kept, warm=1, every=2, window_s=2.0,
                   options=eager | case.options)


def peaks(pair: list[Found]) -> list[str]:
    """Both peaks and their difference for one trial; or the first reason."""
    if reason := next((found.reason for found in pair if found.reason), None):
        return [reason, "-", "-"]
    few, many = (found.measured[0].allocated_bytes for found in pair)
    extra = tables.trials(pair[1]) - tables.trials(pair[0])
    return [tables.gib(few), tables.gib(many), tables.gib((many - few) // extra) if extra else "-"]


def fit_row(gib: int, found: Found) -> list[str]:
    """How many trials a device of this size holds, and how fast they are."""
    start = [f"{gib} GiB", str(found.case.r), "on" if found.case.checkpointing else "off"]
    if found.reason:
        return [*start, found.reason, "-", "-", "-"]
    return [*start, str(tables.trials(found)), f"{tables.steps_per_s(found):.4g}",
            f"{tables.tokens_per_s(found):,.0f}", tables.gib(found.measured[0].reserved_bytes)]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
