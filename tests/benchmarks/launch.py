"""Runs one case in processes of its own, so that a crash of one is a line of the table.

All processes of a case start together and measure together (`watch.py`); where there are
several, they train on until the last one has measured, and are ended then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.case import Case, Measured
from tests.benchmarks.roofline import Rates
from trials.contract import from_json, to_json

ROOT = Path(__file__).parents[2]
FOLDER = Path(tempfile.gettempdir()) / "qlora-sweep-benchmarks"  # bases and data, by default
LOOK_S = 0.2
LOG_LINES = 3  # of the log, shown where a process ends without a word


@dataclass(frozen=True)
class Found:
    """A case's outcome: of all its processes, or the reason why there is none."""

    case: Case
    measured: tuple[Measured, ...]
    reason: str | None
    device_bytes: int | None  # peak in use on the whole device, ours and others'
    seconds: float


def run_case(case: Case, folder: Path, limit_s: float) -> Found:
    """Starts the case's processes and waits for their results, at most so many seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as apart, Gauge(case.device) as gauge:
        inside = Path(apart)
        (inside / "case.json").write_text(to_json(case))
        processes = [_start(inside, index, folder) for index in range(case.processes)]
        try:
            reason = _wait(processes, inside, began + limit_s)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        measured = _results(inside, case.processes)
        reason = reason or next((found.reason for found in measured if found.reason), None)
        return Found(case, measured, reason, gauge.peak, time.monotonic() - began)


def run_tool(words: Sequence[str], folder: Path) -> str:
    """What a module of ours prints. Raises RuntimeError with the end of its errors."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment(folder), capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {end_of(done.stderr)}")
    return done.stdout


def made_base(folder: Path, shape: str, device: str, quantisation: str = "nf4") -> Path:
    """A base of this shape, written now if it is not there yet. Raises RuntimeError."""
    base = folder / f"{shape}-{quantisation}"
    if not (base / "config.json").exists():
        words = ["tests.benchmarks.shapes", shape, str(base), "--device", device]
        run_tool([*words, "--quantisation", quantisation], folder)
    return base


def measured_rates(folder: Path, device: str, shapes: Sequence[str]) -> Rates:
    """What the device does now, measured in a process of its own."""
    words = ["tests.benchmarks.roofline", "--device", device, "--shapes", *shapes]
    return from_json(Rates, json.dumps(json.loads(run_tool(words, folder))["rates"]))


class Gauge:
    """Within, looks at how many bytes are in use on a CUDA device; `peak` is None without one."""

    def __init__(self, device: str) -> None:
        self.peak: int | None = None
        self._index = int(device.partition(":")[2] or 0)
        self._used = _used_bytes(self._index) if device != "cpu" else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Gauge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while self._used is not None and not self._stop.wait(LOOK_S):
            self.peak = max(self.peak or 0, self._used())


def _used_bytes(index: int) -> Callable[[], int] | None:
    import pynvml

    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    name = visible[index] if index < len(visible) and visible[index] else str(index)
    try:
        pynvml.nvmlInit()
        if name.isdigit():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
    except pynvml.NVMLError:  # nothing but a column of the table depends on it
        return None
    return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _start(inside: Path, index: int, folder: Path) -> subprocess.Popen[bytes]:
    words = ["tests.benchmarks.process", str(inside / "case.json"), str(index), str(inside)]
    with (inside / f"log-{index}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment(folder),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )


def environment(folder: Path) -> dict[str, str]:
    """A child's variables: the user's, with a cache apart and nothing from the hub."""
    apart = {"QLORA_SWEEP_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
             "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | apart


def _wait(
    processes: Sequence[subprocess.Popen[bytes]], inside: Path, until: float
) -> str | None:
    """Until all have their results; otherwise the reason why not."""
    count = len(processes)
    while time.monotonic() < until:
        results = _results(inside, count)
        failed = next((found.reason for found in results if found.reason), None)
        if failed is not None or len(results) == count:
            return failed
        for index, process in enumerate(processes):
            if process.poll() is not None and not (inside / f"result-{index}.json").exists():
                end = end_of((inside / f"log-{index}").read_text(errors="replace"))
                return f"process {index} ended with code {process.returncode}: {end}"
        time.sleep(LOOK_S)
    last = end_of((inside / "log-0").read_text(errors="replace"), lines=1)
    return f"out of time; the last that was heard: {last}"


def _results(inside: Path, count: int) -> tuple[Measured, ...]:
    files = [inside / f"result-{index}.json" for index in range(count)]
    return tuple(from_json(Measured, file.read_text()) for file in files if file.exists())


def end_of(text: str, lines: int = LOG_LINES) -> str:
    """The last lines as one."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-lines:])
