"""The leaderboard at any time, also while the sweep runs.

python -m sweep.results                      the only study, or a list of all
python -m sweep.results lora_rank            one study
python -m sweep.results lora_rank --csv      its trials as CSV
python -m sweep.results lora_rank --samples  what its best trial writes now, beside the base

Imports neither torch nor Optuna nor Hydra: it answers in about a second.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, cast

from rich.console import Console
from rich.text import Text

from sweep.names import unknown
from sweep.reading import add_source, read
from sweep.results import leaderboard, samples, summary, wording
from sweep.results.tables import Column, fit
from sweep.results.trials_csv import TrialsCsv
from sweep.results.wording import amount, clean, plural
from sweep.secrets import masked
from sweep.store import Store, StudyRecord, TrialRecord
from sweep.store.runs import HOUR, Used, used_by
from sweep.streams import Steady
from trials.contract import InputError

TOP = 20
BEST = -1  # in the place of a trial's number
PLAIN_WIDTH = 120  # cells, where there is no terminal to ask


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 where there is nothing to show."""
    return read(_parser().parse_args(argv), _show)


def _show(asked: argparse.Namespace, url: str) -> None:
    if asked.top < 0:
        raise InputError(f"--top {asked.top}: it must be at least 1, or 0 for all rows.")
    store = Store(url)
    try:
        studies = {record.study: record for record in store.studies()}  # the latest of a name
        if asked.study is None and len(studies) > 1:
            _print_studies(store, list(studies.values()))
            return
        study = _chosen(asked.study, studies, url)
        records = store.trials(study.uuid)
        used = used_by(store.runs(study.uuid), None, study.seconds)
        beaten_at = store.beaten_at(study.study)
        if asked.samples is not None:
            number = None if asked.samples == BEST else asked.samples
            _console().print(samples.page(store, study.uuid, records, number))
            return
    finally:
        store.close()
    if beaten_at is not None:
        study, records = _as_of_now(study, records, beaten_at)
    else:
        records = leaderboard.left_behind(records)
    if asked.csv:
        _print_csv(study, records)
    else:
        _print_page(study, records, used, url, asked.top or None)


def _as_of_now(
    study: StudyRecord, records: Sequence[TrialRecord], beaten_at: float
) -> tuple[StudyRecord, list[TrialRecord]]:
    """What still runs goes on since it was last written."""
    now = time.time()
    return replace(study, seconds=study.seconds + now - beaten_at), [
        replace(r, seconds=max(r.seconds, now - r.started_at)) if r.outcome == "running" else r
        for r in records
    ]


def _chosen(name: str | None, studies: dict[str, StudyRecord], url: str) -> StudyRecord:
    if not studies:
        raise InputError(f"There is no study in {masked(url)}. Type: python -m sweep +search=...")
    if name is None:
        return next(iter(studies.values()))
    if name not in studies:
        raise InputError(unknown("Study", name, studies))
    return studies[name]


def _print_csv(study: StudyRecord, records: Sequence[TrialRecord]) -> None:
    table = TrialsCsv(study.dimensions)
    for record in records:
        table.put(record)
    print(table.text(), end="", file=_stdout(), flush=True)


def _print_page(
    study: StudyRecord, records: Sequence[TrialRecord], used: Used, url: str, top: int | None
) -> None:
    console = _console()
    console.print(Text(_headline(study, records), "bold"))
    console.print(Text(_about(study), "dim"))
    console.print(summary.page(study, records, top))
    if used.money is not None:
        told = [f"{amount(used.device_seconds / HOUR)} device-hours", f"money {amount(used.money)}"]
        console.print(summary.used(told))
    best = leaderboard.best(records)
    commands = summary.commands(study.study, Path(study.results_dir), url, best)
    console.print(summary.Commands(list(commands)), crop=False)


def _headline(study: StudyRecord, records: Sequence[TrialRecord]) -> str:
    done = sum(leaderboard.counts_towards_total(record) for record in records)
    unfinished = sum(map(leaderboard.unfinished, records))
    live = f", {unfinished} not finished" if unfinished else ""
    total = plural(study.n_trials, "trial")
    return f"{clean(study.study)}: {done} of {total} in {wording.duration(study.seconds)}{live}"


def _about(study: StudyRecord) -> str:
    since = datetime.fromtimestamp(study.started_at)
    base = wording.loss(study.baseline_loss)
    return (
        f"{clean(study.model)} on {clean(study.data)}, {clean(study.device)}, "
        f"since {since:%Y-%m-%d %H:%M}; the untouched base has loss {base}"
    )


def _print_studies(store: Store, studies: Sequence[StudyRecord]) -> None:
    best = {s.study: leaderboard.best(store.trials(s.uuid)) for s in studies}
    console = _console()
    console.print(fit(_study_columns(studies, best), console.width))
    console.print(Text("\none of them: ", "dim") + Text("python -m sweep.results NAME", "bold"))


def _study_columns(
    studies: Sequence[StudyRecord], best: dict[str, TrialRecord | None]
) -> list[Column]:
    def winner(study: StudyRecord) -> TrialRecord | None:
        return best[study.study]

    def cells(texts: Sequence[str], style: str = "") -> list[Text]:
        return [Text(text, style) for text in texts]

    losses = [wording.loss(w.eval_loss if (w := winner(s)) else None) for s in studies]
    gains = [
        wording.below(s.baseline_loss, w.eval_loss) if (w := winner(s)) else "" for s in studies
    ]
    params = [wording.params(w.params) if (w := winner(s)) else "" for s in studies]
    ages = [f"{wording.duration(time.time() - s.started_at)} ago" for s in studies]
    return [
        Column(header="study", cells=cells([clean(s.study) for s in studies], "bold")),
        Column(header="loss", cells=cells(losses), right=True),
        Column(header="vs base", cells=cells(gains), rank=2, right=True),
        Column(header="best", cells=cells(params), rank=1, flexible=True),
        Column(header="model", cells=cells([clean(s.model) for s in studies]), rank=3),
        Column(header="data", cells=cells([clean(s.data) for s in studies]), rank=4),
        Column(header="begun", cells=cells(ages), rank=5, right=True),
    ]


def _console() -> Console:
    stream = _stdout()
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, highlight=False, markup=False, width=width)


def _stdout() -> IO[str]:
    """Standard output; its reader may have seen enough."""
    return cast(IO[str], Steady(sys.stdout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.results",
        description="Prints the leaderboard of a study, also while it runs.",
    )
    parser.add_argument("study", nargs="?", help="its name; not needed if there is one only")
    add_source(parser)
    parser.add_argument("--top", type=int, default=TOP, help=f"rows, 0 for all; default: {TOP}")
    parser.add_argument("--csv", action="store_true", help="all trials as CSV instead")
    parser.add_argument(
        "--samples", type=int, nargs="?", const=BEST, metavar="TRIAL",
        help="what a trial writes for the evaluation prompts instead; default: the best trial",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
