"""Optuna's dashboard in the browser, at any time, also while the sweep runs.

python -m sweep.dashboard                    prints its address; Ctrl-C ends it
python -m sweep.dashboard lora_rank --open   opens the study's page, too

It listens on 127.0.0.1 alone: from another machine, ssh -L 8080:127.0.0.1:8080 there.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from sweep.dashboard.files import FOLDER
from sweep.names import unknown
from sweep.reading import add_source, read
from sweep.store import Store, StudyRecord
from trials.contract import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 after Ctrl-C, or 2 where there is nothing to show."""
    try:
        return read(_parser().parse_args(argv), _serve)
    except KeyboardInterrupt:  # the way to end it
        return 0


def _serve(asked: argparse.Namespace, url: str) -> None:
    studies = _studies(url)
    if asked.study is not None and asked.study not in {study.study for study in studies}:
        raise InputError(unknown("Study", asked.study, [study.study for study in studies]))
    from sweep.dashboard.server import application, open_storage, serve

    storage = open_storage(url)
    page = f"/studies/{storage.get_study_id_from_name(asked.study)}" if asked.study else ""
    folders = [Path(asked.results_dir), *(Path(study.results_dir) for study in studies)]
    app = application(storage, [path.absolute() / FOLDER for path in dict.fromkeys(folders)])
    with serve(app, asked.port) as server:
        address = f"{server.address}/dashboard{page}"
        print(f"Optuna's dashboard: {address}   (Ctrl-C ends it)", flush=True)
        if asked.open:
            webbrowser.open(address)
        server.serve_forever()


def _studies(url: str) -> list[StudyRecord]:
    store = Store(url)
    try:
        return store.studies()
    finally:
        store.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.dashboard",
        description="Starts Optuna's dashboard on 127.0.0.1, also while a sweep runs.",
    )
    parser.add_argument("study", nargs="?", help="the study to begin with; default: a list of all")
    add_source(parser)
    parser.add_argument("--port", type=int, help="default: 8080, or one that is free")
    parser.add_argument("--open", action="store_true", help="opens the browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
