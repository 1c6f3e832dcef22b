"""What the cases found, as Markdown: a header that says how, and a table for each shape."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from tests.benchmarks.launch import Found
from tests.benchmarks.roofline import Load, Rates, parts, step_seconds
from tests.benchmarks.shapes import SHAPES

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
TO_REACH = {"0.5B": 12.0, "1B": 7.0, "8B": 3.3}  # times the best TRL
ALONE = {"plain": "TRL", "trl": "engine=trl"}  # what trains one trial a process
OF_CEILING = 0.85
COLUMNS = (
    "case", "trials", "trial-steps/s", *(f"over the best {name}" for name in ALONE.values()),
    "tokens/s", "of the ceiling",
    "gradient norm (least)", "loss", "process GiB", "device GiB", "idle", "evaluation", "start s",
)
GIB = 2**30


def header(title: str, command: str, device: str) -> str:
    """Title, date, machine, versions and command."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    machine = [str(datetime.date.today()), device, f"Python {platform.python_version()}"]
    return "\n".join([
        f"## {title}", "",
        f"{' · '.join(machine)}, {', '.join(versions)}", "",
        "```", command, "```", "",
    ])


def rates_line(rates: Rates) -> str:
    """What the device does."""
    products = ", ".join(f"{size} {rate / 1e12:.4g}" for size, rate in rates.products.items())
    return (f"GEMM {rates.flops / 1e12:.4g} TFLOP/s, the best of {products}; "
            f"copy {rates.bytes / 1e12:.4g} TB/s, read and written.\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def speed_table(founds: Sequence[Found], rates: Rates, length: Mapping[str, float]) -> str:
    """One shape's cases; `length` is the data's mean over tokens (`Load.length`), by file."""
    best = [steps_per_s(one) if (one := best_of(founds, kind)) else 0.0 for kind in ALONE]
    return table(COLUMNS, [_row(found, rates, length, best) for found in founds])


def best_of(founds: Sequence[Found], engine: str) -> Found | None:
    """The quickest of an engine's cases that were measured."""
    done = [found for found in founds if found.reason is None and found.case.engine == engine]
    return max(done, key=steps_per_s, default=None)


def _row(
    found: Found, rates: Rates, length: Mapping[str, float], best: Sequence[float]
) -> list[str]:
    if found.reason is not None:
        return [found.case.name, "-", found.reason.replace("|", "/"), *["-"] * (len(COLUMNS) - 3)]
    steps, measured = steps_per_s(found), found.measured
    norm = _mean([one.grad_norm for one in measured])
    least = min(one.least_grad_norm for one in measured)
    idle = measured[0].idle
    return [
        found.case.name,
        str(trials(found)),
        f"{steps:.4g}",
        *(f"{steps / other:.2f}x" if other else "-" for other in best),
        f"{tokens_per_s(found):,.0f}",
        f"{of_ceiling(found, rates, length):.1%}",
        f"{norm:.3g} ({least:.3g})",
        f"{_mean([one.loss for one in measured]):.3f}",
        gib(sum(one.reserved_bytes for one in measured)),
        gib(found.device_bytes or 0),
        "-" if idle is None else f"{idle:.1%}",
        f"{evaluation(found):.1%}",
        f"{max(one.prepared_s for one in measured):.0f}",
    ]


def ceiling_line(name: str, rates: Rates, load: Load) -> str:
    """The ceiling of a uniform trial, and what it is made of."""
    shape = SHAPES[name]
    taken = parts(shape, load, rates)
    pieces = ", ".join(f"{what} {seconds * 1e3:.3g}" for what, seconds in taken.items())
    return (f"Ceiling of {name}: {1 / sum(taken.values()):.4g} trial-steps/s; of a trial's step, "
            f"ms: {pieces}.\n")


def goal_lines(
    name: str, founds: Sequence[Found], rates: Rates, length: Mapping[str, float]
) -> str:
    """How far the best pack is from what it should reach."""
    best = best_of(founds, "packed")
    if best is None:
        return ""
    lines = [f"{best.case.name}: {of_ceiling(best, rates, length):.1%} of the ceiling; "
             f"goal {OF_CEILING:.0%}."]
    for kind, called in ALONE.items():
        if other := best_of(founds, kind):
            goal = f"; to reach {TO_REACH[name]:g}x" if kind == "plain" and name in TO_REACH else ""
            ratio = steps_per_s(best) / steps_per_s(other)
            walls = ratio * (1 - evaluation(best)) / (1 - evaluation(other))
            lines.append(f"{best.case.name} over {other.case.name}, the best {called}: "
                         f"{ratio:.2f}x ({walls:.2f}x with evaluation){goal}.")
    return "\n".join(lines) + "\n"


def mixed_line(even: Found, mixed: Found, rates: Rates, length: Mapping[str, float]) -> str:
    """How much of its speed per token a pack keeps where its trials differ."""
    if even.reason or mixed.reason:
        return ""
    ratio = tokens_per_s(mixed) / tokens_per_s(even)
    walls = ratio * (1 - evaluation(mixed)) / (1 - evaluation(even))
    fair = of_ceiling(mixed, rates, length) / of_ceiling(even, rates, length)
    return (f"Mixed over even, tokens/s: {ratio:.1%} ({walls:.1%} with evaluation); to reach: 80%. "
            f"Of their ceilings: {fair:.1%}.\n")


def steps_per_s(found: Found) -> float:
    """Optimizer steps, all trials together; time spent evaluating is not counted."""
    return sum(pace.steps_per_s for one in found.measured for pace in one.paces)


def tokens_per_s(found: Found) -> float:
    """Tokens without padding, all trials together."""
    return sum(pace.tokens_per_s for one in found.measured for pace in one.paces)


def trials(found: Found) -> int:
    """How many were trained at once."""
    return sum(len(one.paces) for one in found.measured)


def evaluation(found: Found) -> float:
    """Share of the time."""
    return _mean([one.evaluation for one in found.measured])


def of_ceiling(found: Found, rates: Rates, length: Mapping[str, float]) -> float:
    """The least seconds that a second's work could have taken."""
    shape, mean = SHAPES[found.case.shape], length[found.case.data]
    return sum(
        pace.steps_per_s
        * step_seconds(shape, Load(pace.r, pace.tokens_per_s / pace.steps_per_s, mean), rates)
        for one in found.measured for pace in one.paces
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def gib(count: int) -> str:
    """Bytes in GiB; a dash where nothing was measured."""
    return f"{count / GIB:.2f}" if count else "-"
