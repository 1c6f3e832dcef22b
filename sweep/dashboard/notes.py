"""What the dashboard says of a study and of each trial, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sweep.config import SweepConfig
from sweep.config.leaves import show
from sweep.dashboard.markdown import block, code, table
from sweep.results import leaderboard, summary, wording
from sweep.results.wording import here, plural
from sweep.store import StudyRecord, TrialRecord
from trials.contract import Sample, Setup, TrialConfig, to_json

SAMPLE_LIMIT = 160  # characters of each cell; the samples' own file has more
WIDTH = 96  # characters of a line of the configuration
LONGEST = 10_000  # characters of a note: every database has room for that


def study_note(
    config: SweepConfig,
    setup: Setup,
    study: StudyRecord,
    records: Sequence[TrialRecord],
    storage: str,
) -> str:
    """What was searched, on what, what came out so far, and what to type next."""
    best = leaderboard.best(records)
    done = sum(leaderboard.counts_towards_total(record) for record in records)
    commands = list(_commands(config, storage, best, done < study.n_trials))
    parts = [
        f"**{done} of {plural(study.n_trials, 'trial')}** over "
        f"{plural(len(study.dimensions), 'dimension')}, in {wording.duration(study.seconds)}",
        _best(study, best),
        "### What is searched",
        table(("hyperparameter", "values"), _dimensions(config)),
        "### On what",
        table(("", ""), _facts(config, setup, study)),
        "### At what cost",
        table(("", ""), summary.costs(records, study.ticks)),
        "### Go on with",
        block("\n".join(f"{command}   # {meaning}" for command, meaning in commands), "sh"),
    ]
    return _joined(parts)


def trial_note(
    study: StudyRecord,
    record: TrialRecord,
    trial: TrialConfig,
    written: Sequence[Sample],
    base: Sequence[Sample],
) -> str:
    """How a trial ended and why, what it wrote, how to repeat it, and all that it was."""
    file = Path(study.results_dir) / study.study / "trials" / f"{record.number}.json"
    parts = [
        _outcome(study, record),
        f"Why: {code(record.reason, 500)}" if record.reason else "",
        table(("searched", "value"), _params(record)),
        _used(record),
        "### What it writes" if written else "",
        _samples(record, written, base),
        "### Replay it alone",
        block(f"python -m trials {summary.quoted(here(file))}", "sh"),
        "### Complete configuration",
        block(_configuration(trial), "json"),
    ]
    return _joined(parts)


def _configuration(trial: TrialConfig) -> str:
    """JSON with several entries on a line, so that it is seen at a glance."""
    lines = []
    for name, value in json.loads(to_json(trial)).items():
        if not isinstance(value, dict):
            lines.append(f"  {json.dumps(name)}: {json.dumps(value)}")
            continue
        entries = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
        lines.append(f"  {json.dumps(name)}: {{\n{_filled(entries)}\n  }}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _filled(entries: Sequence[str]) -> str:
    """Entries after one another in lines of at most `WIDTH` characters, a longer one alone."""
    lines = [""]
    for entry in entries:
        if lines[-1] and len(lines[-1]) + len(entry) + 2 > WIDTH:
            lines.append("")
        lines[-1] += f", {entry}" if lines[-1] else entry
    return ",\n".join(f"    {line}" for line in lines)


def _joined(parts: Sequence[str]) -> str:
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= LONGEST else _cut(text)


def _cut(text: str) -> str:
    """The beginning of a note that is too long; an open code block is closed."""
    kept = text[:LONGEST].rpartition("\n")[0]
    return f"{kept}\n{'`' * 60}\n\n(cut)"


def _best(study: StudyRecord, best: TrialRecord | None) -> str:
    if best is None:
        return "No trial is complete yet."
    found = f"**Best: trial {best.number}**, {code(wording.params(best.params), 1000)}"
    return f"{found}\n\n{summary.gain(study, best)}"


def _dimensions(config: SweepConfig) -> Iterator[tuple[str, str]]:
    for dimension in config.space.dimensions:
        when = [f"{name} is {' or '.join(map(show, allowed))}" for name, allowed in dimension.when]
        condition = f" when {code(' and '.join(when))}" if when else ""
        yield code(dimension.name), f"{code(dimension.expression)}{condition}"


def _facts(
    config: SweepConfig, setup: Setup, study: StudyRecord
) -> Iterator[tuple[str, str]]:
    facts, data = setup.model_facts, setup.data_facts
    exact = wording.share(study.baseline_accuracy)
    right = f", exactly right {exact}" if study.baseline_accuracy is not None else ""
    examples = f"{data.train_examples:,} to train on, {data.eval_examples:,} to evaluate on"
    yield "model", f"{code(facts.name)} · {wording.count(facts.parameters)} parameters · " + code(
        f"{setup.model.quantisation}, {setup.device.dtype}"
    )
    yield "data", f"{code(study.data)} · {examples}"
    yield "untouched base", f"loss {wording.loss(study.baseline_loss)}{right}"
    yield "device", code(study.device)
    yield "engine", f"{code((setup.engine or config.engine).name)}, {setup.capacity} at once"
    yield "sampler, pruner", f"{code(config.sampler.name)}, {code(config.pruner.name)}"


def _commands(
    config: SweepConfig, storage: str, best: TrialRecord | None, open_: bool
) -> Iterator[tuple[str, str]]:
    if open_:
        yield config.command, "goes on with the study"
    yield from summary.commands(config.study, config.results_dir, storage, best)


def _outcome(study: StudyRecord, record: TrialRecord) -> str:
    told = [f"**{record.outcome}** at tick {record.ticks} of {study.ticks}"]
    if record.eval_loss is not None:
        below = wording.below(study.baseline_loss, record.eval_loss)
        told.append(f"loss **{wording.loss(record.eval_loss)}**, {below} the untouched base")
    if record.eval_accuracy is not None:
        told.append(f"exactly right {wording.share(record.eval_accuracy)}")
    return " · ".join(told)


def _params(record: TrialRecord) -> Iterator[tuple[str, str]]:
    for name, value in record.params.items():
        yield code(name), code(wording.value(value))


def _samples(record: TrialRecord, written: Sequence[Sample], base: Sequence[Sample]) -> str:
    before = {sample.prompt: sample.generated for sample in base}
    rows = [
        [code(text, SAMPLE_LIMIT) for text in (
            sample.prompt, sample.reference, before.get(sample.prompt, ""), sample.generated
        )]
        for sample in written
    ]  # fmt: skip
    header = ("prompt", "reference", "the untouched base writes", f"trial {record.number} writes")
    return table(header, rows)


def _used(record: TrialRecord) -> str:
    parts = [wording.duration(record.seconds)]
    for what, seconds in (("evaluating", record.eval_seconds), ("samples", record.sample_seconds)):
        if seconds >= 0.5:
            parts.append(f"{wording.duration(seconds)} of it {what}")
    parts.append(f"{record.tokens:,} tokens")
    parts.append(f"{wording.size(record.memory_bytes)} at most")
    parts.append(f"{wording.count(record.trainable_parameters)} parameters trained")
    return " · ".join([*parts, f"on {code(record.worker)}"])
