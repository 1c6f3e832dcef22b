"""Studies by name: read from a database, written as pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sweep.names import unknown
from sweep.report.frames import StudyFrames, read_study
from sweep.secrets import masked
from sweep.store import Store, StudyRecord
from trials.contract import InputError

REPORT = "report.html"  # in the study's folder
LONGEST = 100  # characters of the name of a page on several studies


def write_reports(
    names: Sequence[str],
    url: str,
    results_dir: Path,
    output: Path | None = None,
    *,
    over: bool = False,
) -> list[Path]:
    """One page for one name, or several side by side; each study's own without a name.

    `over`: the driver that still holds the study does so for this report alone. Raises
    `InputError` where there is no such study, or no database.
    """
    from sweep.report.compare import comparison
    from sweep.report.page import write_page, write_report

    studies = read_studies(names, url)
    if over:
        studies = [replace(frames, alive=False) for frames in studies]
    if len(studies) > 1 and names:
        together = "+".join(frames.study.study for frames in studies)
        name = together if len(together) <= LONGEST else f"{len(studies)} studies"
        return [write_page(comparison(studies), output or results_dir / f"{name}.html")]
    if output and len(studies) > 1:
        known = ", ".join(frames.study.study for frames in studies)
        raise InputError(f"--output is for one page. Name the studies to show: {known}.")
    return [
        write_report(frames, output or results_dir / frames.study.study / REPORT)
        for frames in studies
    ]


def read_studies(names: Sequence[str], url: str) -> list[StudyFrames]:
    """The studies of these names, or all. Raises `InputError` that names the known ones."""
    store = Store(url)
    try:
        known = {record.study: record for record in store.studies()}  # the latest of a name
        if not known:
            raise InputError(
                f"There is no study in {masked(url)}. Type: python -m sweep +search=..."
            )
        chosen = [_known(name, known) for name in dict.fromkeys(names)] or list(known.values())
        return [read_study(store, record, url) for record in chosen]
    finally:
        store.close()


def _known(name: str, known: dict[str, StudyRecord]) -> StudyRecord:
    if name not in known:
        raise InputError(unknown("Study", name, known))
    return known[name]
