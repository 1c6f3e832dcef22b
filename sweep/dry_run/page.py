"""What a dry run prints: the first trials, what the probes showed, what the sweep would take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweep.budget import reached, trial_reached
from sweep.config import SweepConfig
from sweep.config.leaves import show
from sweep.dry_run.estimate import Estimate, Whole
from sweep.results import summary, wording
from sweep.results.wording import amount, clean, duration, plural
from sweep.store.runs import HOUR, Used
from trials.contract import Setup, TrialConfig

SHOWN = ("lora", "train", "budget")  # what may differ between trials
SHARED = ("model", "data", "engine")


def first_trials(
    config: SweepConfig, trials: Sequence[TrialConfig], *, certain: bool
) -> RenderableType:
    """The next trials with all of their configuration, a column each."""
    searched = {dimension.name for dimension in config.space.dimensions}
    if "lora.alpha_ratio" in searched:
        searched.add("lora.alpha")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    first = not trials or trials[0].number == 0
    table.add_column("the first trials" if first else "the next trials")
    for trial in trials:
        table.add_column(f"trial {trial.number}", overflow="fold")
    for name in _names(trials[0]) if trials else ():
        style = "bold" if name in searched else "dim"
        row = [Text(clean(show(_leaf(trial, name))), style) for trial in trials]
        table.add_row(Text(name, style), *row)
    parts: list[RenderableType] = [table]
    if trials:
        parts.append(Text(f"all of them: {_shared(trials[0])}", "dim"))
    if not certain:
        parts.append(Text("as things stand now: results until then may change them", "yellow"))
    return Group(*parts)


def probes(config: SweepConfig, found: Sequence[Estimate], setup: Setup) -> RenderableType:
    """A row for each configuration that was tried."""
    price = config.limits.price_per_hour
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("tried", "a whole trial", "evaluation", "memory", "tokens/s"):
        table.add_column(name, no_wrap=True)
    if price:
        table.add_column("money a trial", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for estimate in found:
        cost = [Text(_money(estimate, price))] if price else []
        said = Text(_params(config, estimate.trial))
        table.add_row(clean(estimate.name), *map(Text, _measures(estimate, setup)), *cost, said)
    return table


def lines(
    config: SweepConfig, found: Sequence[Estimate], sweep: Whole | None, used: Used
) -> RenderableType:
    """The sweep's time and money, what its budgets make of them, and what does not run."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(config, found, sweep, used):
        grid.add_row(name, text)
    return grid


def _lines(
    config: SweepConfig, found: Sequence[Estimate], sweep: Whole | None, used: Used
) -> Iterator[tuple[str, Text]]:
    if sweep is None:
        yield "sweep", Text("its time is not known: no trial ran far enough", "yellow")
    else:
        yield "sweep", Text(_sweep(config, sweep))
        yield from _limits(config, found, sweep, used)
    for estimate in found:
        if estimate.why_not is None:
            continue
        what = "cannot fit" if not estimate.fits else "fails"
        said = _params(config, estimate.trial)
        yield what, Text(f"{clean(said)}: {clean(estimate.why_not, limit=600)}", "bold red")
        if not estimate.fits:
            yield "", Text(f"such trials end as infeasible. Type {_smaller(config)}.", "yellow")


def _sweep(config: SweepConfig, sweep: Whole) -> str:
    at_once = f"{sweep.at_once} at once on {plural(sweep.devices, 'device')}"
    span = _span(_time(sweep.least_s), _time(sweep.most_s))
    hours = _span(*(amount(sweep.device_hours(s)) for s in (sweep.least_s, sweep.most_s)))
    price = config.limits.price_per_hour
    money = (sweep.device_hours(s) * (price or 0.0) for s in (sweep.least_s, sweep.most_s))
    cost = f" · money {_span(*map(amount, money))}" if price else ""
    prunes = "nothing is pruned" if config.pruner.name == "none" else (
        f"less, as far as {clean(config.pruner.name)} prunes"
    )
    return (
        f"{_trials(config, sweep)}, {at_once}: at most {span} ({_time(sweep.loaded_s)} of it "
        f"loading; {prunes}) · {hours} device-hours{cost}"
    )


def _trials(config: SweepConfig, sweep: Whole) -> str:
    """How many trials there are to run, and why no more."""
    asked, size = config.limits.n_trials, config.space.size()
    if sweep.trials == asked:
        return plural(asked, "trial")
    left = f"{plural(sweep.trials, 'trial')} left of {asked}"
    if size is None or size >= asked:
        return left
    return f"{left}, for the space has {plural(size, 'point')}"


def _limits(
    config: SweepConfig, found: Sequence[Estimate], sweep: Whole, used: Used
) -> Iterator[tuple[str, Text]]:
    """Which budgets end the sweep before its last trial does, or a trial before its last tick."""
    limits = config.limits
    least, most = (used.later(s, sweep.devices, limits.price_per_hour)
                   for s in (sweep.least_s, sweep.most_s))  # fmt: skip
    if over := reached(limits, most):
        certainly = "ends" if reached(limits, least) else "may end"
        key = over.reason.partition(" ")[0]
        yield "budget", Text(f"{key} {certainly} it before all trials are done", "yellow")
    for estimate in found:
        seconds = estimate.seconds or 0.0
        if why := trial_reached(limits, seconds, seconds * min(1.0, sweep.devices / sweep.at_once)):
            key = why.partition(" ")[0]
            yield "", Text(f"{key} prunes the {estimate.name} trial before its end", "yellow")


def _measures(estimate: Estimate, setup: Setup) -> Iterator[str]:
    if estimate.seconds is None:
        yield "does not run" if estimate.why_not else "not known"
        yield from (wording.NOTHING,) * 3
        return
    device = setup.device.memory_bytes
    of = f" of {wording.size(device)}" if device else ""
    yield _time(estimate.seconds)
    yield wording.share(estimate.eval_seconds / estimate.seconds if estimate.seconds else None)
    yield f"{wording.size(estimate.memory_bytes)}{of}"
    speed = estimate.tokens_per_s
    yield wording.count(speed) if speed else wording.NOTHING


def _money(estimate: Estimate, price: float) -> str:
    return wording.NOTHING if estimate.seconds is None else amount(estimate.seconds / HOUR * price)


def _smaller(config: SweepConfig) -> str:
    """What takes less memory, of what this sweep has not got yet."""
    values, ways = config.values, []
    for name in ("lora.r", "train.batch_size", "lora.target_modules"):
        if any(dimension.name == name for dimension in config.space.dimensions):
            ways.append(f"{name}=choice(...) with less")
    if values.get("train.micro_batch_size") != 1:
        ways.append("train.micro_batch_size=1")
    if values.get("train.gradient_checkpointing") is False:
        ways.append("train.gradient_checkpointing=true")
    ways.append(f"data.max_length={config.data.max_length // 2}")
    if config.model.quantisation == "none":
        ways.append("model.quantisation=nf4")
    return " or ".join(ways)


def _params(config: SweepConfig, trial: TrialConfig) -> str:
    """The searched values of a trial."""
    names = [dimension.name for dimension in config.space.dimensions]
    shown = {
        name: _leaf(trial, name) if name != "lora.alpha_ratio" else trial.lora.alpha / trial.lora.r
        for name in names
        if name != "budget.epochs"
    }
    return wording.params(shown)


def _leaf(trial: TrialConfig, name: str) -> Any:
    group, _, key = name.partition(".")
    return getattr(getattr(trial, group), key) if key else getattr(trial, group)


def _names(trial: TrialConfig) -> list[str]:
    fields = [(group, dataclasses.fields(getattr(trial, group))) for group in SHOWN]
    return [f"{group}.{entry.name}" for group, entries in fields for entry in entries]


def _shared(trial: TrialConfig) -> str:
    """What all trials have in common, as far as it is set."""
    said = [f"seed={trial.seed}"]
    for group in SHARED:
        part = getattr(trial, group)
        for entry in dataclasses.fields(part):
            value = getattr(part, entry.name)
            if value not in (None, {}):
                options = value if isinstance(value, dict) else {"": value}
                said += [f"{group}.{key or entry.name}={show(v)}" for key, v in options.items()]
    return clean(" ".join(said))


def _time(seconds: float) -> str:
    """A clock's time, or seconds where there are few."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _span(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def commands(command: str) -> RenderableType:
    """How to start what was only looked at."""
    return summary.Commands([(clean(command), "runs it")])
