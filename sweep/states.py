"""The states of interrupted trials, a folder each: workers write them, the driver removes them."""

from __future__ import annotations

import shutil
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which needs the space, which needs this
    from sweep.config import SweepConfig


def folder(config: SweepConfig) -> Path:
    """Where they are."""
    return config.study_dir / "states"


def forget(config: SweepConfig, number: int) -> None:
    """Removes the state of a trial that has ended."""
    shutil.rmtree(folder(config) / str(number), ignore_errors=True)
    _drop_if_empty(folder(config))


def forget_others(config: SweepConfig, numbers: Container[int]) -> None:
    """Removes all states but those of the trials that are to be continued."""
    with suppress(OSError):
        for place in list(folder(config).iterdir()):
            if not (place.name.isdecimal() and int(place.name) in numbers):
                shutil.rmtree(place, ignore_errors=True)
    _drop_if_empty(folder(config))


def _drop_if_empty(place: Path) -> None:
    with suppress(OSError):
        place.rmdir()
