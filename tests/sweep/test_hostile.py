"""What a model writes and what data contains is shown, and obeyed nowhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sweep.__main__ import main
from sweep.results.__main__ import main as results
from trials.contract import DataFacts, InputError, RenderedSample, Sample, Setup
from trials.engines import simulated

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\x00\x08[bold red]loud[/bold red]\u202etxt.exe\u2066\r"
    "<script>alert(1)</script><img src=x onerror=alert(1)>](javascript:alert(1))"
)
OBEYED = "\x1b\x07\x9b\x00\x08\u202e\u2066\r"  # by terminals
LIVE = ("<script>alert", "<img src=x", "](javascript:")  # in a page, in a note
TYPED = ["engine=simulated", "engine.seconds_per_tick=0", "executor=inline", "tracking=none",
         "lora.r=4,8", "study=kept", "n_trials=2", "samples=1"]  # fmt: skip


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An engine whose base, data and samples say such things; the working directory."""
    made = simulated._setup
    sample = Sample(prompt=HOSTILE, reference=HOSTILE, generated=HOSTILE)

    def setup(*args: Any, **kwargs: Any) -> Setup:
        found: Setup = made(*args, **kwargs)
        facts = {"columns": {"prompt": HOSTILE}, "guessed": ("prompt",), "warnings": (HOSTILE,)}
        data: DataFacts = dataclasses.replace(found.data_facts, **facts)  # type: ignore[arg-type]
        return dataclasses.replace(
            found,
            data_facts=data,
            model_facts=dataclasses.replace(found.model_facts, architecture=HOSTILE),
            device=dataclasses.replace(found.device, name=HOSTILE),
            rendered=RenderedSample(pieces=((HOSTILE, False), (HOSTILE, True))),
            baseline_samples=(sample,),
        )

    monkeypatch.setattr(simulated, "_setup", setup)
    monkeypatch.setattr(simulated, "trial_samples", lambda *_: (sample,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_terminal_log_page_and_notes_obey_nothing(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(TYPED) == 0
    assert results(["kept"]) == 0
    told = capsys.readouterr()
    log = (hostile / "results" / "kept" / "logs" / "sweep.log").read_bytes().decode()
    for text in (told.out, told.err, log):
        assert [c for c in OBEYED if c in text] == []
    assert "loud" in told.out and "[bold red]" in told.out
    for page in (hostile / "results").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert [mark for mark in LIVE[:2] if mark in html] == []


def test_an_error_with_such_a_text_obeys_nothing(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise InputError(f"data.path: the columns are {HOSTILE}")

    monkeypatch.setattr(simulated, "prepare", refuse)
    assert main(TYPED) == 2
    told = capsys.readouterr()
    assert "the columns are" in told.err
    assert [c for c in OBEYED if c in told.err + told.out] == []
