"""A worker's whole life: prepare, say so, then run the engine until the driver has no more work.

Imports nothing heavy until it starts, so that a driver may import this module.
"""

from __future__ import annotations

from trials.contract import Assignment, Driver
from trials.downloads import ARTIFACT as ARTIFACT  # this and the next two: the driver's side
from trials.downloads import artifact_folder as artifact_folder
from trials.downloads import artifact_parts as artifact_parts
from trials.engines import engine_module, reads_data
from trials.garbage import settle


def work(assignment: Assignment, driver: Driver) -> None:
    """Loads what the assignment names and trains what the driver hands out.

    Raises `InputError` where the user must change something, before the first trial.
    """
    if reads_data(assignment.engine.name):
        _check_data(assignment, driver)
    driver.progress("loading libraries", 0, 0)  # it takes seconds, so say so first
    engine, setup = engine_module(assignment.engine.name).prepare(assignment, driver)
    settle()
    driver.prepared(setup)
    engine.run(driver)


def _check_data(assignment: Assignment, driver: Driver) -> None:
    """Before the libraries and the base, which take seconds to minutes to be there."""
    from trials.data import check_rows
    from trials.positions import check_length

    check_rows(assignment.data, driver.progress)
    check_length(assignment.data, assignment.model)
