"""`results/artifacts/`: the files that the dashboard shows with a trial, named by their ids.

An id follows from study, trial and file name, so that writing again writes the same file. Adapters
are hard links where the file system has them: they take no room and no time.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from sweep.results.recipe import replace
from sweep.results.wording import clean
from trials.contract import Sample

FOLDER = "artifacts"  # in results_dir
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
KINDS = {
    ".svg": "image/svg+xml",
    ".jsonl": "application/jsonl",
    ".json": "application/json",
    ".safetensors": "application/octet-stream",
}
TEXT_LIMIT = 10_000  # characters of one text in a file of samples


def artifact_id(study_uuid: str, number: int, name: str) -> str:
    """The same for the same file of the same trial, whoever writes it and however often."""
    return str(uuid.uuid5(uuid.UUID(study_uuid), f"{number}/{name}"))


def meta(identity: str, name: str) -> dict[str, str | None]:
    """What Optuna keeps of an artifact."""
    kind = KINDS[Path(name).suffix]
    return {"artifact_id": identity, "filename": name, "mimetype": kind, "encoding": None}


def write(folder: Path, identity: str, text: str) -> None:
    """A small file, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / identity, text)


def link(folder: Path, identity: str, source: Path) -> None:
    """A file that lies elsewhere too; copied where it cannot be linked."""
    folder.mkdir(parents=True, exist_ok=True)
    target, aside = folder / identity, folder / f".{identity}.{os.getpid()}"
    if target.exists() and target.samefile(source):
        return
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(target)


def sample_lines(written: Sequence[tuple[int, Sample]], base: Sequence[Sample]) -> str:
    """One JSON line for each sample and tick, with what the untouched base wrote."""
    before = {sample.prompt: sample.generated for sample in base}
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (
        {
            "tick": tick,
            "prompt": _shown(sample.prompt),
            "reference": _shown(sample.reference),
            "untouched base": _shown(before.get(sample.prompt, "")),
            "this trial": _shown(sample.generated),
        }
        for tick, sample in written
    ))  # fmt: skip


def _shown(text: str) -> str:
    return clean(text, limit=TEXT_LIMIT, lines=True)
