"""What the commands that read finished and running studies share: results, report, dashboard."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from sweep.results.wording import clean
from sweep.secrets import masked
from sweep.streams import tell
from trials.contract import InputError


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the studies are."""
    parser.add_argument("--storage", help="a database URL; default: sweep.db in the results folder")
    parser.add_argument("--results-dir", default="results", help="default: results")


def read(asked: argparse.Namespace, work: Callable[[argparse.Namespace, str], None]) -> int:
    """Does `work` with the database's URL. Returns 0, or 2 with a message where it cannot be."""
    url = asked.storage or f"sqlite:///{Path(asked.results_dir) / 'sweep.db'}"
    try:
        work(asked, url)
    except InputError as error:
        tell(clean(masked(str(error)), lines=True))
        return 2
    except SQLAlchemyError as error:
        tell(clean(f"storage={masked(url)} cannot be read: {masked(str(error))}"))
        return 2
    return 0
