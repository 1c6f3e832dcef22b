"""Brings W&B or TensorBoard up to date with a study: whatever they have missed, and the view.

python -m sweep.tracking lora_rank                      uploads to W&B what it has not got yet
python -m sweep.tracking lora_rank --offline            writes offline runs, for `wandb sync`
python -m sweep.tracking lora_rank --tracker tensorboard
python -m sweep.tracking --fetch wandb:me/project/data:v4    data that `data.path` has named

Runs have the ids that the sweep gives them: nothing is there twice, however often this is typed.
"""

from __future__ import annotations

import argparse
import queue
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.names import unknown
from sweep.results.wording import clean
from sweep.secrets import masked
from sweep.store import Store, StudyRecord
from sweep.streams import tell
from sweep.tracking import NAMES
from sweep.tracking.process import Events, follow
from sweep.tracking.wandb.server import base_url, key_known
from trials.contract import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, 1 where not everything has arrived, or 2 for a wrong input."""
    asked = _parser().parse_args(argv)
    try:
        return _fetched(asked.fetch) if asked.fetch else _followed(asked)
    except InputError as error:
        tell(clean(masked(str(error)), lines=True))
        return 2


def _fetched(reference: str) -> int:
    from sweep.tracking.wandb.reference import fetch

    print(fetch(reference, "--fetch"))
    return 0


def _followed(asked: argparse.Namespace) -> int:
    url = asked.storage or f"sqlite:///{Path(asked.results_dir).absolute() / 'sweep.db'}"
    study = _study(url, asked.study)
    if asked.tracker == "wandb" and not asked.offline and not key_known():
        raise InputError(
            f"There is no key for {base_url()}. Type wandb login or set WANDB_API_KEY, "
            "or type --offline to write runs that wandb sync uploads later."
        )
    folder = Path(study.results_dir) / study.study
    opening = {
        "tracker": asked.tracker, "storage": url, "uuid": study.uuid, "folder": str(folder),
        "options": _options(asked, folder),
    }  # fmt: skip
    waiting: Events = queue.Queue()
    waiting.put({"closed": True})
    troubles: list[str] = []
    follow(opening, waiting, lambda answer: _tell(answer, troubles))
    if not troubles:
        print(f"{NAMES[asked.tracker]} has all of {clean(study.study)}")
    return int(bool(troubles))


def _study(url: str, name: str | None) -> StudyRecord:
    """The study asked for, if nobody else is writing it down just now."""
    store = Store(url)
    try:
        studies = {record.study: record for record in store.studies()}
        if name is None and len(studies) == 1:
            name = next(iter(studies))
        if name not in studies:
            raise InputError(unknown("Study", name or "", studies))
        alive = store.beaten_at(name) is not None
    finally:
        store.close()
    if alive:
        raise InputError(f"Study {name!r} is running, and its trackers with it. Wait for its end.")
    return studies[name]


def _options(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the sweep was told about tracking, and what is typed now."""
    from omegaconf import OmegaConf

    file = folder / "config.yaml"
    tree = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    assert isinstance(tree, dict)
    options = {str(name): value for name, value in (tree.get("tracking") or {}).items()}
    typed = {"project": asked.project, "entity": asked.entity}
    options |= {name: value for name, value in typed.items() if value}
    return options | {"mode": "offline" if asked.offline else "online"}


def _tell(answer: Mapping[str, Any], troubles: list[str]) -> None:
    if "view" in answer:
        print(clean(answer["view"]), flush=True)
    if "note" in answer:
        troubles.append(str(answer["note"]))
        tell(clean(masked(str(answer["note"]))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.tracking",
        description="Writes to W&B or TensorBoard what it has not got of a study yet.",
    )
    parser.add_argument("study", nargs="?", help="its name; not needed if there is one only")
    parser.add_argument("--tracker", choices=sorted(NAMES), default="wandb", help="default: wandb")
    parser.add_argument("--offline", action="store_true", help="W&B runs on disk, for wandb sync")
    parser.add_argument("--project", help="at W&B; default: that of the sweep")
    parser.add_argument("--entity", help="at W&B; default: that of the sweep")
    parser.add_argument("--storage", help="a database URL; default: sweep.db in the results folder")
    parser.add_argument("--results-dir", default="results", help="default: results")
    parser.add_argument("--fetch", metavar="ARTIFACT", help="only download a data set from W&B")
    return parser


if __name__ == "__main__":
    sys.exit(main())
