"""Who lives on this host, by number and start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from socket import gethostname

import psutil

from sweep.processes import lives, started


def test_a_process_lives_until_its_end_whether_or_not_that_was_asked_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = started(process.pid)
    assert lives(gethostname(), process.pid, since)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert lives(gethostname(), process.pid, since) is False
    process.communicate()
    assert lives(gethostname(), process.pid, since) is False


def test_a_number_that_is_anothers_by_now_is_not_the_process() -> None:
    assert lives(gethostname(), os.getpid(), started(os.getpid()))
    assert lives(gethostname(), os.getpid(), started(os.getpid()) - 60.0) is False


def test_nothing_is_known_of_another_host() -> None:
    assert lives("elsewhere", os.getpid(), started(os.getpid())) is None
