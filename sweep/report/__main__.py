"""The report of a study, at any time, also while it runs.

python -m sweep.report                      the only study, or each of them where there are several
python -m sweep.report lora_rank            results/lora_rank/report.html
python -m sweep.report lora_rank schedule   both side by side in results/lora_rank+schedule.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.reading import add_source, read
from sweep.report.studies import write_reports
from sweep.results.wording import here, size
from trials.contract import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 where there is nothing to report."""
    return read(_parser().parse_args(argv), _write)


def _write(asked: argparse.Namespace, url: str) -> None:
    try:
        for written in write_reports(asked.study, url, Path(asked.results_dir), asked.output):
            print(f"{here(written)}  ({size(written.stat().st_size)})", flush=True)
    except OSError as error:
        said = f"The report cannot be written: {error}. Type --output <a file>."
        raise InputError(said) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.report",
        description="Writes the report of a study as one HTML file, also while it runs.",
    )
    parser.add_argument("study", nargs="*", help="its name, or several to see side by side")
    add_source(parser)
    parser.add_argument("--output", type=Path, help="the file; default: the study's report.html")
    return parser


if __name__ == "__main__":
    sys.exit(main())
