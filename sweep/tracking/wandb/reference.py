"""A data set that comes from W&B: `data.path=wandb:entity/project/name:v4`.

python -m sweep.tracking.wandb.reference data.path wandb:me/project/name:latest

Downloaded once, before a worker prepares, into the folder where the workers look for it; a
moving alias becomes the version that it means now, so that a trial can be repeated.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.secrets import masked
from sweep.streams import tell
from sweep.tracking.feed import environment
from sweep.tracking.wandb.server import base_url, key_known
from trials.contract import DataConfig, InputError
from trials.worker import ARTIFACT, artifact_folder, artifact_parts

if TYPE_CHECKING:
    from sweep.config import SweepConfig

TIMEOUT_S = 30  # for each answer
VERSION = re.compile(r"v\d+")


def with_data(config: SweepConfig) -> SweepConfig:
    """The configuration with data from W&B on this machine. Raises InputError."""
    return dataclasses.replace(config, data=_here(config.data))


def fetch(reference: str, key: str) -> str:
    """Downloads an Artifact unless it is there; the reference by version. Raises InputError."""
    if _is_here(reference, key):
        return reference
    entity, project, name, _ = artifact_parts(reference, key)
    artifact = _asked(reference, key)
    found = f"{ARTIFACT}{entity}/{project}/{name}:{artifact.version}"
    if not _is_here(found, key):
        _download(artifact, artifact_folder(found, key), found, key)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the reference by version, once it is here; or why it is not, with 2."""
    key, reference = sys.argv[1:] if argv is None else argv
    try:
        print(fetch(reference, key))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _is_here(reference: str, key: str) -> bool:
    pinned = VERSION.fullmatch(artifact_parts(reference, key)[3])
    return bool(pinned) and artifact_folder(reference, key).is_dir()


def _fetch_apart(reference: str, key: str) -> str:
    """Fetches in a process of its own: W&B's client stays out of this one."""
    if _is_here(reference, key):
        return reference
    _check_key(reference, key)
    tell(f"{key}: fetching {reference} from {base_url()}")
    words = [sys.executable, "-m", "sweep.tracking.wandb.reference", key, reference]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    if done.returncode:
        said = done.stderr.strip() or f"{key}={reference} cannot be fetched."
        raise InputError(said.splitlines()[-1])
    return done.stdout.split()[-1]


def _here(data: DataConfig) -> DataConfig:
    if (data.path or "").startswith(ARTIFACT):
        data = dataclasses.replace(data, path=_fetch_apart(str(data.path), "data.path"))
    if (data.eval_path or "").startswith(ARTIFACT):
        eval_path = _fetch_apart(str(data.eval_path), "data.eval_path")
        data = dataclasses.replace(data, eval_path=eval_path)
    return data


def _asked(reference: str, key: str) -> Any:
    """What the server knows of the Artifact."""
    _check_key(reference, key)
    os.environ.update(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
    import wandb

    try:
        return wandb.Api(timeout=TIMEOUT_S).artifact(reference.removeprefix(ARTIFACT))
    except Exception as error:
        raise _refused(reference, key, error) from None


def _check_key(reference: str, key: str) -> None:
    if not key_known():
        raise InputError(
            f"{key}={reference} needs a key for {base_url()}, and there is none. Type wandb login, "
            f"set WANDB_API_KEY, or download it and type {key}=<the local file>."
        )


def _download(artifact: Any, folder: Path, reference: str, key: str) -> None:
    """Aside and then renamed, so that nobody reads half of it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            written = Path(aside) / "files"
            artifact.download(root=str(written), skip_cache=True)
            written.replace(folder)
    except Exception as error:
        raise _refused(reference, key, error) from None


def _refused(reference: str, key: str, error: Exception) -> InputError:
    why = masked(" ".join(str(error).split())[:300]).rstrip(".") or type(error).__name__
    return InputError(
        f"{key}={reference} cannot be had from {base_url()}: {why}. Check name and version, "
        f"or download it and type {key}=<the local file>."
    )


if __name__ == "__main__":
    sys.exit(main())
