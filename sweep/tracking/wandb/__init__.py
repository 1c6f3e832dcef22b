"""Weights & Biases: one run for each trial and one for the untouched base, grouped by study.

What is asked of it before its client is there: mode, ids, commands. Imports no client.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sweep.results.wording import clean, here
from sweep.tracking.wandb.server import key_known as key_known

if TYPE_CHECKING:  # reading needs no configuration
    from sweep.config import SweepConfig

PROJECT = "sweep"
BASELINE = "baseline"  # the untouched base's run, in the place of a trial's number


def run_id(study_uuid: str, number: int | str) -> str:
    """The same trial's run, whoever writes it and however often."""
    return hashlib.sha256(f"{study_uuid}/{number}".encode()).hexdigest()[:16]


def mode(options: Mapping[str, Any]) -> str:
    """ "online" or "offline": as told, else as the environment says, else online where a key is."""
    asked = str(options.get("mode") or "auto")
    if asked != "auto":
        return asked
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("offline", "dryrun"):
        return "offline"
    return "online" if key_known() else "offline"


def sync_command(config: SweepConfig) -> str | None:
    """What to type to upload offline runs; None where nothing is tracked offline."""
    if "wandb" not in config.tracking.names or mode(config.tracking.options) != "offline":
        return None
    return f"wandb sync {shlex.quote(clean(here(config.study_dir)))}/wandb/offline-run-*"
