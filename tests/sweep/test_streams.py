"""A terminal that is closed or full, and signals that come early, as a user meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweep.ending import COMPLETE, INTERRUPTED

ROOT = Path(__file__).parent.parent.parent
COMMAND = f"{sys.executable} -m sweep +search=lora_rank engine=simulated tracking=none n_trials=1"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("lost", ["| true; exit ${PIPESTATUS[0]}", "> /dev/full", ">&-"])
def test_a_sweep_outlives_its_standard_output(lost: str, tmp_path: Path) -> None:
    done = shell(f"{COMMAND} engine.seconds_per_tick=0 {lost}", tmp_path)
    assert done.returncode == COMPLETE
    assert len(done.stderr.splitlines()) == 1 and "cannot be written to" in done.stderr
    log = (tmp_path / "results" / "lora_rank" / "logs" / "sweep.log").read_text()
    assert "1 of 1 trial" in log


def test_a_page_whose_reader_has_seen_enough(tmp_path: Path) -> None:
    done = shell(f"{sys.executable} -m sweep --help | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_are_loaded_is_one_line(
    number: signal.Signals, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        COMMAND.split(), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    _wait_until_it_listens(process.pid)
    process.send_signal(number)
    assert process.communicate()[1] == "sweep: interrupted; the same command goes on\n"
    assert process.returncode == INTERRUPTED
    assert list(tmp_path.iterdir()) == []


def _wait_until_it_listens(pid: int) -> None:
    status, deadline = Path(f"/proc/{pid}/status"), time.monotonic() + 30
    while time.monotonic() < deadline:
        caught = next(x for x in status.read_text().splitlines() if x.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    raise AssertionError("no handler")
