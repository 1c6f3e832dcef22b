"""What the terminal says of budgets, and at the end of failures and of how to go on."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import staged
from rich.console import Console

from sweep.observers import Closed
from sweep.observers.closing import closing, typed_too
from sweep.observers.console import PlainConsole
from sweep.observers.console_table import Running
from sweep.observers.tally import Tally
from sweep.store.runs import Used
from trials.contract import Outcome

LIMITS = ("budget.max_hours=2", "budget.max_money=20", "budget.price_per_hour=3600")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")


def test_the_budgets_are_shown_while_it_runs(tmp_path: Path) -> None:
    config, now = staged.config(tmp_path, *LIMITS), [100.0]
    used = Used(seconds=1800.0, device_seconds=1800.0, money=3.0)
    opened = dataclasses.replace(staged.opened(config), used=used, devices=2)
    tally = Tally(opened, now=lambda: now[0])
    now[0] += 4.0
    console = Console(file=io.StringIO(), width=160, height=40)
    console.print(Running(tally, [], 10.0, 40))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "used 30:04 of 2 h · money 11.00 of 20" in drawn  # two devices at 1 a second each


def test_plain_lines_show_what_is_used_at_the_end_of_a_trial(tmp_path: Path) -> None:
    config, stream = staged.config(tmp_path, *LIMITS), io.StringIO()
    console = PlainConsole(config, stream)
    opened = staged.opened(config)
    console.opened(dataclasses.replace(opened, used=Used(seconds=1800.0, money=3.0)))
    staged.run_trial(console, config, 0, Outcome.COMPLETE)
    told = stream.getvalue()
    assert "used so far: 30:00 of 2 h · money 3.00 of 20" in told
    assert "30:00 of 2 h, money " in told.partition("trial 0 complete")[2]


def closed(folder: Path, *overrides: str, fails: int = 0, **told: object) -> str:
    """What the end says after `fails` failed trials."""
    config, stream = staged.config(folder, *overrides), io.StringIO()
    console = PlainConsole(config, stream)
    console.opened(staged.opened(config))
    log = config.study_dir / "logs" / "w0.log"
    log.parent.mkdir(parents=True)
    log.touch()
    for number in range(fails):
        staged.run_trial(console, config, number, Outcome.FAILED, f"RuntimeError: no {number}")
    records = list(console.tally.records.values()) if console.tally else []
    start = len(stream.getvalue())
    console.closed(Closed(**{"complete": False, "reason": "why", "records": records, **told}))
    return stream.getvalue()[start:]


def test_failures_are_shown_with_their_reasons_and_logs(tmp_path: Path) -> None:
    end = closed(tmp_path, fails=7)
    assert "failed, and 2 before them" in end
    assert "  trial 6: RuntimeError: no 6\n" in end and "  trial 1: " not in end
    assert end.count("w0.log") == 5


@pytest.mark.parametrize(
    ("of_all_runs", "of_this", "told"),
    [
        (372.0, 20.0, "6:12 (0:20 of it in this run)"),
        (372.0, 0.5, "6:12"),  # which found nothing to do
        (20.0, 19.0, "0:19"),
        (None, 19.0, "0:19"),
    ],
)
def test_the_time_of_earlier_runs_counts(
    of_all_runs: float | None, of_this: float, told: str, tmp_path: Path
) -> None:
    config, stream = staged.config(tmp_path), io.StringIO()
    used = None if of_all_runs is None else Used(seconds=of_all_runs)
    over = Closed(complete=False, reason="why", records=(), used=used)
    Console(file=stream, width=200).print(closing(config, staged.opened(config), over, of_this))
    assert f"0 of 6 trials in {told}: why" in stream.getvalue()


def test_a_budget_says_what_to_type_to_go_on(tmp_path: Path) -> None:
    used = Used(seconds=7200.0, device_seconds=7200.0, money=12.5)
    end = closed(tmp_path, *LIMITS, used=used, more="budget.max_hours=4",
                 reason="budget.max_hours=2 is used up (2:00:00)")  # fmt: skip
    assert "0 of 6 trials in" in end
    assert "budget.max_hours=2 is used up (2:00:00); type budget.max_hours=4 to go on" in end
    assert "used by all runs  2:00:00 of 2 h · money 12.50 of 20" in end
    command = next(line for line in end.splitlines() if "goes on where this stopped" in line)
    assert "budget.max_hours=4" in command and "budget.max_hours=2" not in command


def test_a_finished_study_says_how_to_extend_it(tmp_path: Path) -> None:
    end = closed(tmp_path, complete=True, more="n_trials=9")
    assert "why; type n_trials=9 to extend it" in end and "# extends the study" in end


def test_an_interrupted_one_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    assert "interrupted; the same command goes on" in closed(tmp_path, reason="interrupted")
    assert closed(tmp_path / "b", reason="type the same command").count("same command") == 1


@pytest.mark.parametrize(
    ("command", "more", "whole"),
    [
        ("sweep n_trials=4 'a=b c'", "n_trials=8", "sweep 'a=b c' n_trials=8"),
        ("sweep +search=x", "n_trials=8", "sweep +search=x n_trials=8"),
        ("sweep dry_run=true +search=x", "dry_run=", "sweep +search=x"),
        ("sweep +search=x", None, "sweep +search=x"),
    ],
)
def test_what_is_typed_besides_takes_its_old_place(
    command: str, more: str | None, whole: str
) -> None:
    assert typed_too(command, more) == whole
