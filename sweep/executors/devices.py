"""Which devices there are, found without torch; whether they work is for their workers to say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.config import SweepConfig

NVIDIA_SMI_S = 20.0  # it can take seconds where the driver is not loaded yet


def devices(device: str) -> list[str]:
    """One name for each worker's device: "cuda:0", "cuda:1", ... or the one asked for.

    `auto` is every visible GPU, or else the CPU; `cuda` is every visible GPU.
    """
    if device not in ("auto", "cuda"):
        return [device]
    gpus = [f"cuda:{index}" for index in range(visible_gpus())]
    return gpus or ["cpu" if device == "auto" else device]


def visible_gpus() -> int:
    """How many NVIDIA GPUs a process started from here would see."""
    there = _installed_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or there == 0:
        return there
    names = [name.strip() for name in visible.split(",")]
    hidden = next((k for k, name in enumerate(names) if name in ("", "-1")), len(names))
    return hidden  # CUDA ignores what follows the first name that is none


def shares(config: SweepConfig) -> list[str]:
    """The device of each worker: one worker each, or so many over all of them in turn.

    There are never more than trials.
    """
    found = devices(config.device)
    workers = min(config.executor.workers or len(found), config.limits.n_trials)
    return [found[k % len(found)] for k in range(workers)]


def threads_of(device: str, among: list[str]) -> int | None:
    """CPU threads for a worker that shares the machine; null: as many as there are."""
    sharing = among.count(device)
    if device.startswith("cuda") or sharing < 2:
        return None
    return max(1, _cores() // sharing)


def too_many_for_cpu(workers: list[str]) -> str | None:
    """What to say where workers on the CPU are more than its cores."""
    asked, cores = workers.count("cpu"), _cores()
    if asked <= cores:
        return None
    return (f"{asked} workers share {cores} CPU core{'s' if cores > 1 else ''}: "
            f"executor.workers={cores} is as fast, and needs less memory")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _installed_gpus() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    try:
        listed = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())
