"""`engine=auto`: packs where they can be, else one trial at a time, and it is said which."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import Recorder, Tiny

from trials.contract import Assignment, EngineConfig, InputError, Outcome
from trials.engines.packed import size
from trials.worker import work

OPTIONS = {"capacity": 2, "memory_fraction": 0.9, "resident": "auto", "compile": "auto"}


def assigned(
    tiny: Tiny, options: dict[str, Any] | None = None, **changes: Any
) -> Assignment:
    engine = EngineConfig(name="auto", options=OPTIONS | (options or {}))
    return tiny.assignment(engine=engine, **changes)


def test_packs_where_they_can_be(tiny: Tiny) -> None:
    driver = Recorder([tiny.trial(k) for k in range(3)])
    work(assigned(tiny), driver)
    assert driver.setup is not None
    assert (driver.setup.engine, driver.setup.capacity) == (
        EngineConfig(name="packed", options=OPTIONS), 2)
    assert driver.notes == []
    assert [result.outcome for result in driver.results] == [Outcome.COMPLETE] * 3


def test_else_one_trial_at_a_time_with_its_reason(tiny: Tiny) -> None:
    driver = Recorder([tiny.trial(0, optimizer="adafactor")])
    work(assigned(tiny, optimizers=("adamw", "adafactor")), driver)
    assert driver.setup is not None
    assert (driver.setup.engine, driver.setup.capacity) == (EngineConfig(name="trl"), 1)
    [note] = driver.notes
    assert note.startswith("trains one trial at a time (engine=trl): train.optimizer=adafactor")
    assert driver.results[0].outcome is Outcome.COMPLETE


def test_one_at_a_time_where_no_pack_fits_unless_a_share_was_asked_for(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"engine.memory_fraction=1e-06\).* Type engine.memory_fr"):
        work(assigned(tiny, {"capacity": None, "memory_fraction": 1e-6}), driver := Recorder())
    assert driver.notes == []
    monkeypatch.setitem(size.SHARES, "cpu", 1e-6)
    driver = Recorder([tiny.trial(0)])
    work(assigned(tiny, {"capacity": None, "memory_fraction": None}), driver)
    assert driver.setup is not None and driver.setup.engine == EngineConfig(name="trl")
    assert "are free beside the base" in driver.notes[0]
    assert driver.results[0].outcome is Outcome.COMPLETE


def test_what_no_engine_can_do_is_said_once(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="Did you mean 'q_proj'"):
        work(assigned(tiny, target_modules=("q_porj",)), driver := Recorder())
    assert driver.notes == []
