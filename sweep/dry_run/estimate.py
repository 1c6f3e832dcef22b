"""What probes say about whole trials, and trials about the sweep: seconds, memory, money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sweep.dry_run.rehearsal import Probe
from sweep.store.runs import HOUR
from trials.contract import Outcome, Report, TrialConfig

TRIED = (Outcome.STOPPED, Outcome.COMPLETE, Outcome.DIVERGED)  # it fitted, however it ended


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One configuration. Times are of a whole trial that nobody prunes, beside others at once."""

    name: str
    trial: TrialConfig
    seconds: float | None = None  # null: not known, or it does not run
    eval_seconds: float = 0.0  # of these
    tokens_per_s: float | None = None  # of training
    memory_bytes: int = 0  # the most that a worker held
    why_not: str | None = None  # why it does not run
    fits: bool = True


def estimates(probes: Sequence[Probe]) -> list[Estimate]:
    """One for each configuration that was tried, in that order."""
    names = list(dict.fromkeys(probe.name for probe in probes))
    return [_estimate([p for p in probes if p.name == name]) for name in names]


def _estimate(probes: Sequence[Probe]) -> Estimate:
    """Of one configuration; a second probe of it was cut down to one evaluation."""
    whole, trial = probes[0], probes[0].trials[0]
    ended = [result for probe in probes for result in probe.results.values()]
    died = next((probe.died for probe in probes if probe.died is not None), None)
    bad = next((result for result in ended if result.outcome not in TRIED), None)
    if died is not None:
        return Estimate(name=whole.name, trial=trial, why_not=f"its worker ended: {died}")
    if bad is not None:
        fits = bad.outcome is not Outcome.INFEASIBLE
        return Estimate(name=whole.name, trial=trial, why_not=bad.reason, fits=fits)
    pace = _pace(probes)
    if pace is None:
        return Estimate(name=whole.name, trial=trial)
    once, example_s, tick_s, tokens = pace
    evaluating = tick_s * trial.budget.ticks
    return Estimate(
        name=whole.name,
        trial=trial,
        seconds=once + example_s * trial.budget.examples + evaluating,
        eval_seconds=evaluating,
        tokens_per_s=tokens / example_s if example_s > 0 else None,
        memory_bytes=max(result.memory_bytes for result in ended),
    )


def _pace(probes: Sequence[Probe]) -> tuple[float, float, float, float] | None:
    """Seconds once, per example and per tick, and tokens per example: means over trials at once."""
    whole, last = probes[0], probes[-1]
    ticked = [reports for reports in last.reports.values() if reports]
    if not ticked:
        return None
    tick_s = fmean(_evaluating(reports[-1]) / reports[-1].tick for reports in ticked)
    if last is whole:
        paces = [_between(reports) for reports in ticked]
        once, example_s, tokens = (fmean(part) for part in zip(*paces, strict=True))
        return once, example_s, tick_s, tokens
    seen = [result for result in whole.results.values() if result.examples]
    if not seen:  # not one step: the small one is all there is
        seen_reports = [_between(reports[:1]) for reports in ticked]
        once, example_s, tokens = (fmean(part) for part in zip(*seen_reports, strict=True))
        return once, example_s, tick_s, tokens
    example_s = fmean(result.seconds / result.examples for result in seen)
    return 0.0, example_s, tick_s, fmean(result.tokens / result.examples for result in seen)


def _between(reports: Sequence[Report]) -> tuple[float, float, float]:
    """Seconds once, seconds and tokens per example: from the first tick to the last."""
    first, last = reports[0], reports[-1]
    tokens = last.tokens / max(last.examples, 1)
    if last is first:
        return 0.0, _training(last) / max(last.examples, 1), tokens
    example_s = (_training(last) - _training(first)) / max(last.examples - first.examples, 1)
    return max(0.0, _training(first) - example_s * first.examples), example_s, tokens


def _evaluating(report: Report) -> float:
    return report.eval_seconds + report.sample_seconds


def _training(report: Report) -> float:
    return report.seconds - _evaluating(report)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """The sweep, if no trial is pruned: between all trials light and all trials heavy."""

    trials: int
    at_once: int
    devices: int
    loaded_s: float
    least_s: float
    most_s: float

    def device_hours(self, seconds: float) -> float:
        """Of all devices, held all the time."""
        return seconds * self.devices / HOUR


def whole(
    found: Sequence[Estimate], *, trials: int, at_once: int, devices: int, loaded_s: float
) -> Whole | None:
    """The sweep as the estimates have it; null where none of them has a time."""
    times = [estimate.seconds for estimate in found if estimate.seconds is not None]
    if not times:
        return None
    rounds = max(1.0, trials / max(at_once, 1)) if trials else 0.0
    return Whole(
        trials=trials,
        at_once=min(at_once, max(trials, 1)),
        devices=devices,
        loaded_s=loaded_s,
        least_s=loaded_s + rounds * min(times),
        most_s=loaded_s + rounds * max(times),
    )
