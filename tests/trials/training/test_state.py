"""States on disk: whole or not at all, and of their own trial."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny

from trials.contract import CurvePoint, Report, TrialConfig
from trials.training import state
from trials.training.state import Keeping, Progress, State, Writer, read_state, write_state


@pytest.fixture
def trial() -> TrialConfig:
    """Nothing is loaded for it."""
    return Tiny(Path("base"), Path("data")).trial(7)


@pytest.fixture
def full() -> State:
    """One with everything in it."""
    point = CurvePoint(examples=8, train_loss=float("nan"), learning_rate=1 / 3, grad_norm=0.1,
                       tokens_per_s=1e4)  # fmt: skip
    report = Report(trial=7, attempt=0, tick=1, eval_loss=0.1 + 0.2, examples=16, tokens=99,
                    seconds=1.5, history=(point,))  # fmt: skip
    progress = Progress(steps=2, examples=16, tokens=99, seconds=1.5, reports=(report,),
                        numbers={"schedule": 2, "scaler": None, "limit": {"rows": 4}})  # fmt: skip
    return State(progress=progress, tensors={"a": torch.rand(3, 2), "step": torch.tensor(2.0)})


def test_what_is_read_is_what_was_written(tmp_path: Path, trial: TrialConfig, full: State) -> None:
    write_state(tmp_path, trial, full)
    write_state(tmp_path, trial, full)  # in the place of the last one
    found = read_state(tmp_path, replace(trial, attempt=4))
    assert found is not None
    assert repr(found.progress) == repr(full.progress)  # a NaN equals nothing
    assert found.tensors.keys() == full.tensors.keys()
    assert all(torch.equal(found.tensors[name], full.tensors[name]) for name in full.tensors)
    assert len(list((tmp_path / "7").iterdir())) == 2


def test_an_engine_without_weights_writes_json_alone(
    tmp_path: Path, trial: TrialConfig, full: State
) -> None:
    bare = State(progress=replace(full.progress, reports=()))
    write_state(tmp_path, trial, full)
    write_state(tmp_path, trial, bare)
    assert read_state(tmp_path, trial) == bare
    assert [path.name for path in (tmp_path / "7").iterdir()] == ["state.json"]


def test_no_state_is_none(tmp_path: Path, trial: TrialConfig) -> None:
    assert read_state(tmp_path / "nowhere", trial) is None


def damaged(path: Path) -> None:
    weights = next(path.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def lost(path: Path) -> None:
    next(path.glob("*.safetensors")).unlink()


def cut_off(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])


def changed(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"steps": 2', '"steps": 3'))


def signed(path: Path, **changes: object) -> None:
    body = json.loads((path / "state.json").read_text())["state"] | changes
    text = json.dumps({"sha256": state._digest(body), "state": body})
    (path / "state.json").write_text(text)


@pytest.mark.parametrize("spoil, why", [
    (damaged, "the tensors of its state are damaged"),
    (lost, "its state has lost its tensors"),
    (cut_off, "its state is damaged"),
    (changed, "its state is damaged"),
    (lambda path: (path / "state.json").write_text("[]"), "its state is damaged"),
    (lambda path: (path / "state.json").write_bytes(b"\xff\xfe"), "its state is damaged"),
    (lambda path: signed(path, version=99), "of another version of this program"),
    (lambda path: signed(path, trial="0" * 64), "belongs to another trial"),
    (lambda path: signed(path, tensors="../7/state.json"), "its state is damaged"),
    (lambda path: signed(path, libraries={"torch": "0.1"}), r"made with torch 0\.1, and this is"),
])  # fmt: skip
def test_a_state_that_cannot_be_used_says_why_and_is_ignored(
    tmp_path: Path, trial: TrialConfig, full: State, spoil: Callable[[Path], None], why: str
) -> None:
    write_state(tmp_path, trial, full)
    spoil(tmp_path / "7")
    with pytest.raises(ValueError, match=why):
        read_state(tmp_path, trial)
    notes: list[str] = []
    assert Keeping(tmp_path, trial, notes.append, 0.0).found() is None
    assert len(notes) == 1 and notes[0].startswith("trial 7 starts again: ")


@pytest.mark.parametrize("other", [
    {"number": 8}, {"seed": 9}, {"study": "another"}, {"lora": {"r": 8}}, {"budget": {"ticks": 4}},
    {"data": {"content_hash": "other"}}, {"train": {"learning_rate": 0.5}},
], ids=str)  # fmt: skip
def test_it_is_of_another_trial_if_anything_that_matters_differs(
    trial: TrialConfig, other: dict[str, object]
) -> None:
    changes = {name: replace(getattr(trial, name), **value) if isinstance(value, dict) else value
               for name, value in other.items()}  # fmt: skip
    assert state.identity(replace(trial, **changes)) != state.identity(trial)


def test_what_changes_no_result_may_differ(trial: TrialConfig) -> None:
    train = replace(trial.train, micro_batch_size=2, gradient_checkpointing=True)
    engine = replace(trial.engine, options={"capacity": 4})
    same = replace(trial, attempt=3, train=train, engine=engine)
    assert state.identity(same) == state.identity(trial)


def test_states_are_due_now_and_then(
    tmp_path: Path, trial: TrialConfig, full: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keeping = Keeping(tmp_path, trial, print, every_s=10.0)
    assert not keeping.due
    now = 10.0
    assert keeping.due

    def slow() -> State:
        nonlocal now
        now += 2.0
        return full

    keeping.keep(slow)
    now += 39.0
    assert not keeping.due  # it took 2 s, so 40 s pass
    now += 1.0
    assert keeping.due
    assert not Keeping(None, trial, print, every_s=0.0).due


def test_one_that_is_not_ready_stays_due(tmp_path: Path, trial: TrialConfig) -> None:
    keeping = Keeping(tmp_path, trial, print, every_s=0.0)
    keeping.keep(lambda: None)
    assert keeping.due and read_state(tmp_path, trial) is None


def test_trials_that_train_together_take_turns_writing(
    tmp_path: Path, trial: TrialConfig, full: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    begun, go_on = threading.Event(), threading.Event()
    write = state.write_state

    def slow(*given: Any) -> None:
        nonlocal now
        begun.set()
        assert go_on.wait(60)
        now += 2.0
        write(*given)

    monkeypatch.setattr(state, "write_state", slow)
    writer = Writer()
    other = replace(trial, number=8)
    both = [Keeping(tmp_path, t, print, 10.0, writer) for t in (trial, other)]
    now = 10.0
    assert all(keeping.due for keeping in both)
    both[0].keep(lambda: full)  # comes back while it is written
    assert begun.wait(60) and read_state(tmp_path, trial) is None
    assert not any(keeping.due for keeping in both)
    go_on.set()
    both[0].settle()
    assert read_state(tmp_path, trial) is not None
    now += 39.0
    assert not any(keeping.due for keeping in both)  # it took 2 s, so 40 s pass for each of them
    now += 1.0
    assert all(keeping.due for keeping in both)
    writer.close()


@pytest.mark.parametrize("writer", [None, Writer()])
def test_what_cannot_be_written_is_said_once(
    tmp_path: Path, trial: TrialConfig, full: State, writer: Writer | None
) -> None:
    (tmp_path / "file").write_text("")
    notes: list[str] = []
    keeping = Keeping(tmp_path / "file", trial, notes.append, 0.0, writer)
    for _ in range(3):
        keeping.keep(lambda: full)
    keeping.settle()
    assert len(notes) == 1 and "the state of trial 7 cannot be kept: " in notes[0]
