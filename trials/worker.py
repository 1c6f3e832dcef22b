"""A worker's whole life: prepare, say so, then run the engine until the driver has no more work.

Imports nothing heavy until it starts, so that a driver may import this module.
"""

from __future__ import annotations

from trials.contract import Assignment, Driver
from trials.engines import engine_module


def work(assignment: Assignment, driver: Driver) -> None:
    """Loads what the assignment names and trains what the driver hands out.

    Raises `InputError` where the user must change something, before the first trial.
    """
    driver.progress("loading libraries", 0, 0)  # it takes seconds, so say so first
    engine, setup = engine_module(assignment.engine.name).prepare(assignment, driver)
    driver.prepared(setup)
    engine.run(driver)
