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

from sqlalchemy.exc import SQLAlchemyError

from sweep.report.studies import write_reports
from sweep.results.wording import clean, here, size
from sweep.secrets import masked
from sweep.streams import tell
from trials.contract import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 where there is nothing to report."""
    asked = _parser().parse_args(argv)
    url = asked.storage or f"sqlite:///{Path(asked.results_dir) / 'sweep.db'}"
    try:
        for written in write_reports(asked.study, url, Path(asked.results_dir), asked.output):
            print(f"{here(written)}  ({size(written.stat().st_size)})", flush=True)
    except InputError as error:
        tell(clean(masked(str(error)), lines=True))
        return 2
    except SQLAlchemyError as error:
        tell(clean(f"storage={masked(url)} cannot be read: {masked(str(error))}"))
        return 2
    except OSError as error:
        tell(clean(f"The report cannot be written: {error}. Type --output <a file>."))
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.report",
        description="Writes the report of a study as one HTML file, also while it runs.",
    )
    parser.add_argument("study", nargs="*", help="its name, or several to see side by side")
    parser.add_argument("--storage", help="a database URL; default: sweep.db in the results folder")
    parser.add_argument("--results-dir", default="results", help="default: results")
    parser.add_argument("--output", type=Path, help="the file; default: the study's report.html")
    return parser


if __name__ == "__main__":
    sys.exit(main())
