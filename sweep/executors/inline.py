"""One worker in the driver's own process: for a debugger, and for tests of engines."""

from __future__ import annotations

from sweep.config import SweepConfig
from sweep.connection import Answering
from sweep.executors import AtOnce, remains
from sweep.executors.devices import devices
from sweep.space import assignment
from trials.worker import work

WORKER = "worker-0"


class Inline:
    """Calls the worker; there is no other process, so nothing survives its crash."""

    def __init__(self, config: SweepConfig, driver: Answering) -> None:
        self._config, self._driver = config, driver

    def run(self) -> None:
        """See `sweep.executors.Executor`."""
        remains.wait_for_others(self._driver.note)
        device = devices(self._config.device)[0]
        given = assignment(self._config, worker=WORKER, device=device)
        work(given, self._driver.connect(WORKER))

    def kill(self) -> None:
        """The worker is this process, so it can only be left."""
        raise AtOnce
