"""Where the time of a pack's clock goes, by kind of work, beside the least that each could take.

    python -m tests.benchmarks.clock_profile --shapes 0.5B 1B 8B

An even pack as `packed_speed` has it, at its own capacity, without evaluations, on CUDA, where
every kind of work has kernels of its own. What no kernel filled are gaps; a kind's floor is its
share of the ceiling (`roofline.py`), for the same steps.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks import tables
from tests.benchmarks.case import Case, assignment, trial
from tests.benchmarks.launch import FOLDER, environment, made_base, measured_rates
from tests.benchmarks.packed_speed import LENGTH, ROWS, say
from tests.benchmarks.roofline import Load, Rates, parts
from tests.benchmarks.shapes import SHAPES, write_rows
from tests.benchmarks.watch import Watch
from trials.engines.packed import prepare
from trials.engines.packed.clock import Clock
from trials.engines.packed.seat import Seat

WARM, TIMED, PROFILED = 5, 20, 8  # clocks
# The first whose pattern is in a kernel's name; the rest is elementwise.
KINDS = {
    "LoRA": r"^(down|up|back|back_a|back_input|summed)$",
    "attention": r"attend|flash|fmha|attention",
    "losses": r"^losses$|softmax",
    "optimizer": r"^(update|squares)$",
    "dequantising": r"[dD]equantize",
    "products": r"nvjet|gemm|cutlass|xmma",
}
REST = "elementwise"
FLOORS = {"products": ("base", "head"), "attention": ("attention",), REST: (REST,),
          "LoRA": ("LoRA, FLOPs", "LoRA, bytes"), "optimizer": ("optimizer",), "losses": (),
          "dequantising": ()}


def main() -> None:
    """Prints a table for each shape."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.clock_profile")
    parser.add_argument("--shapes", nargs="+", default=["1B"], choices=list(SHAPES))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--kernels", type=int, default=0, help="as many of the longest, too")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    if not given.device.startswith("cuda"):
        parser.error(f"--device {given.device}: only a CUDA device's kernels have kinds.")
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment(folder))
    say("measuring the device")
    rates = measured_rates(folder, given.device, given.shapes)
    command = f"python -m tests.benchmarks.clock_profile {shlex.join(sys.argv[1:])}"
    print(tables.header("A clock's time", command, rates.device))
    print(tables.rates_line(rates), flush=True)
    for name in given.shapes:
        say(f"{name}: started")
        print(shown(name, given.device, folder, rates, given.kernels), flush=True)
    say("done")


def shown(shape: str, device: str, folder: Path, rates: Rates, kernels: int) -> str:
    """A shape's clock as a table, and its longest kernels."""
    base = made_base(folder, shape, device)
    data = write_rows(folder / "even.jsonl", [LENGTH] * ROWS)
    case = Case(name="packed", shape=shape, engine="packed", device=device, base=str(base),
                data=str(data), max_length=LENGTH + 1)
    watch = Watch(case, iter(()), lambda: True, lambda: None)
    with redirect_stdout(sys.stderr):
        engine, _ = prepare(assignment(case), watch)
    with engine.slots() as slots:
        seats = [slots.sit(trial(case, k), watch) for k in range(engine.size.slots)]
        for _ in range(WARM):
            slots.clock.tick(seats)
        clock_ms, steps = timed(slots.clock, seats)
        spent = profiled(slots.clock, seats)
    load = Load(r=case.r, tokens=case.batch_size * LENGTH, length=LENGTH)
    floor = {part: 1e3 * steps * s for part, s in parts(SHAPES[shape], load, rates).items()}
    kinds: Counter[str] = Counter()
    for name, ms in spent.items():
        kinds[kind_of(name)] += ms
    rows = [[kind, f"{kinds[kind]:.2f}", f"{kinds[kind] / clock_ms:.1%}",
             f"{sum(floor[part] for part in FLOORS[kind]):.2f}"]
            for kind in sorted(FLOORS, key=lambda kind: -kinds[kind])]
    gaps = clock_ms - sum(kinds.values())
    rows += [["gaps", f"{gaps:.2f}", f"{gaps / clock_ms:.1%}", "0.00"],
             ["all", f"{clock_ms:.2f}", "100.0%", f"{sum(floor.values()):.2f}"]]
    text = [f"### {shape}: {steps:.3g} steps a clock, {1e3 * steps / clock_ms:.4g} a second\n",
            tables.table(["kind", "ms of a clock", "share", "floor, ms"], rows)]
    if kernels:
        longest = [[name[:100], f"{ms:.2f}"] for name, ms in spent.most_common(kernels)]
        text.append(tables.table(["kernel", "ms of a clock"], longest))
    return "\n".join(text)


def timed(clock: Clock, seats: Sequence[Seat]) -> tuple[float, float]:
    """Milliseconds of a clock, and the optimizer steps that it completes."""
    torch.cuda.synchronize(clock.losses.device)
    began = time.perf_counter()
    steps = sum(len(clock.tick(seats).steps) for _ in range(TIMED))
    torch.cuda.synchronize(clock.losses.device)
    return 1e3 * (time.perf_counter() - began) / TIMED, steps / TIMED


def profiled(clock: Clock, seats: Sequence[Seat]) -> Counter[str]:
    """Milliseconds of a clock by kernel."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(PROFILED):
            clock.tick(seats)
        torch.cuda.synchronize(clock.losses.device)
    events = found.key_averages()
    return Counter({e.key: e.self_device_time_total / 1e3 / PROFILED for e in events})


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), REST)


if __name__ == "__main__":
    main()
