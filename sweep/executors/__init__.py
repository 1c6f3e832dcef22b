"""Where workers run: an executor starts them, carries what they say, and replaces the dead.

`run` returns when every worker has left. The driver decides; an executor only transports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trials.contract import InputError

if TYPE_CHECKING:  # a worker's process imports this package, and needs no Optuna
    from sweep.config import SweepConfig
    from sweep.connection import Answering


class Executor(Protocol):
    """Runs a sweep's workers until the driver has no more work for them."""

    def run(self) -> None:
        """Returns when all workers have left.

        Raises `InputError` for what the user must change, `WorkerError` where workers cannot run.
        """

    def kill(self) -> None:
        """Has `run` end all workers now; may be called by a signal. May raise `AtOnce`."""


class AtOnce(BaseException):
    """The user does not want to wait, and there is no other process to end."""


class WorkerError(Exception):
    """Workers cannot run; the message holds the end of the log and says where it is."""


def executor(config: SweepConfig, driver: Answering) -> Executor:
    """The executor that the configuration names."""
    if config.executor.name == "inline":
        from sweep.executors.inline import Inline

        return Inline(config, driver)
    if config.executor.name == "local":
        from sweep.executors.local import Local

        return Local(config, driver)
    raise InputError(f"executor={config.executor.name} is unknown. Known: inline, local.")
