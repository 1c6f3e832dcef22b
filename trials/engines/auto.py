"""Packs where they can be, else one trial at a time: `engine=auto`.

A prepared worker says in its setup which engine it took, and every trial's configuration names it.
"""

from __future__ import annotations

from dataclasses import replace

from trials.contract import Assignment, Driver, Engine, EngineConfig, Setup
from trials.engines import packed, trl
from trials.engines.packed.refusals import NoRoom, Refused


def prepare(assignment: Assignment, driver: Driver) -> tuple[Engine, Setup]:
    """The packed engine, or the TRL engine with a note that says why. Raises InputError.

    What does not fit into a share of the memory that the user has named is refused.
    """
    options = assignment.engine.options
    try:
        return packed.prepare(_by("packed", assignment, options), driver)
    except Refused as refusal:
        if isinstance(refusal, NoRoom) and options.get("memory_fraction") is not None:
            raise  # one trial at a time would take more than it was given
        driver.note(f"trains one trial at a time (engine=trl): {refusal.why}")
    return trl.prepare(_by("trl", assignment, {}), driver)


def _by(name: str, assignment: Assignment, options: dict[str, object]) -> Assignment:
    return replace(assignment, engine=EngineConfig(name=name, options=options))
