"""The terminal: live and plain, narrow and wide, with hostile text, with 2,000 trials."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from pathlib import Path

import pytest
import staged
from rich.cells import cell_len
from rich.console import Console

from sweep.observers import Closed, Opened
from sweep.observers.console import LiveConsole, PlainConsole, build_console
from sweep.observers.console_table import Running
from sweep.observers.opening import opening
from sweep.observers.tally import Tally
from sweep.store import Store, StudyRecord
from trials.contract import CONTINUE, Outcome

HOSTILE = "[bold]b[/bold] [/] \x1b[31;45mred\x1b]0;title\x07 \x9b2J \u202etxt \r back\x08 :smile:"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def a_common_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def _plain(folder: Path, *overrides: str) -> str:
    config = staged.config(folder, *overrides)
    stream = io.StringIO()
    staged.play(PlainConsole(config, stream), config)
    return stream.getvalue()


def test_plain_lines_have_a_time_and_no_control_codes(tmp_path: Path) -> None:
    shown = _plain(tmp_path)
    assert "\x1b" not in shown and "\r" not in shown
    lines = shown.splitlines()
    event = re.compile(r" trial \d+ (started|tick|pruned|complete)")
    events = [line for line in lines if event.search(line)]
    assert len(events) == 6 + 4 * 3 + 2 * 3 + 4
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in events)
    assert any("trial 1 pruned: asha: not among the best third" in line for line in lines)
    assert any("trial 5 complete, loss 1.5500, the best so far" in line for line in lines)
    assert "trial 0 tick 1/4: loss 1.9000 (5.0 % below the untouched base)" in shown


def test_what_was_found_is_said_before_the_first_trial(tmp_path: Path) -> None:
    shown = _plain(tmp_path, "lora.r=8", "lora.dropout=choice(0, 0.1)")
    start = shown[: shown.index("trial 0 started")]
    for said in (
        "LlamaForCausalLM",
        "3.5M parameters",
        "1,000 examples to train on, 100 to evaluate",
        "columns guessed: prompt = 'question'",
        "2 samples are shortened",
        "loss 2.0000 · 3.0 % exactly right",
        "lora.r is fixed at 8 by the command line",
        "choice(0, 0.1)",
        "asha prunes from tick 1",
        "w0: tokenising 5 of 10",
    ):
        assert said in start


def test_what_carries_loss_is_green_or_in_brackets(tmp_path: Path) -> None:
    page = opening(staged.opened(staged.config(tmp_path), text="Price is $"))
    colour = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=100)
    colour.print(page)
    assert "Price is $\x1b[1;32m149</s>\x1b[0m" in colour.file.getvalue()  # type: ignore[attr-defined]
    for console in (
        Console(file=io.StringIO(), width=100),
        Console(file=io.StringIO(), width=100, force_terminal=True, no_color=True),
    ):
        console.print(page)
        assert "Price is $⟦149</s>⟧" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_finite_space_says_its_size(tmp_path: Path) -> None:
    config = staged.config(tmp_path, "train.learning_rate=1e-4")
    console = Console(file=io.StringIO(), width=100)
    console.print(opening(staged.opened(config)))
    assert "20 points" in console.file.getvalue()  # type: ignore[attr-defined]


def _hostile(folder: Path) -> Opened:
    opened = staged.opened(staged.config(folder), text=HOSTILE)
    facts = dataclasses.replace(opened.setup.data_facts, warnings=(HOSTILE,))
    model = dataclasses.replace(opened.setup.model_facts, name=HOSTILE, architecture=HOSTILE)
    setup = dataclasses.replace(opened.setup, data_facts=facts, model_facts=model)
    return dataclasses.replace(opened, setup=setup)


@pytest.mark.parametrize("kind", [LiveConsole, PlainConsole])
def test_hostile_text_is_shown_and_not_obeyed(
    tmp_path: Path, kind: type[LiveConsole] | type[PlainConsole]
) -> None:
    stream = Terminal() if kind is LiveConsole else io.StringIO()
    config = staged.config(tmp_path)
    console = kind(config, stream)
    console.progress("w0", HOSTILE, 1, 2)
    console.opened(_hostile(tmp_path))
    console.note(HOSTILE)
    staged.run_trial(console, config, 0, Outcome.FAILED, HOSTILE)
    records = list(console.tally.records.values()) if console.tally else []
    console.closed(Closed(complete=False, reason=HOSTILE, records=records))
    shown = stream.getvalue()
    assert "[bold]b[/bold] [/]" in shown and ":smile:" in shown
    for obeyed in ("\x1b[31;45m", "\x1b]", "\x07", "\x9b", "\u202e", "\x08", "back\r"):
        assert obeyed not in shown


@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_live_console_respects_no_color(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    config, stream = staged.config(tmp_path), Terminal()
    staged.play(LiveConsole(config, stream), config)
    assert bool(COLOUR.search(stream.getvalue())) == (no_color == "")
    assert ("⟦149</s>⟧" in stream.getvalue()) == (no_color == "1")


def test_the_live_console_gives_the_terminal_back(tmp_path: Path) -> None:
    config, stream = staged.config(tmp_path), Terminal()
    staged.play(LiveConsole(config, stream), config)
    shown = stream.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "best" in shown[shown.rindex("\x1b[?25h") :]  # the leaderboard stays


@pytest.mark.parametrize(
    ("tty", "term", "kind"),
    [(True, "xterm", LiveConsole), (True, "dumb", PlainConsole), (False, "xterm", PlainConsole)],
)
def test_the_console_suits_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tty: bool, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many CI machines do: still no live table in a file
    console = build_console(staged.config(tmp_path), Terminal() if tty else io.StringIO())
    assert type(console) is kind
    console.closed(Closed(complete=False, reason="", records=()))


def _tally(folder: Path, trials: int, running: int) -> Tally:
    config = staged.config(folder, "+search=[lora_rank,schedule]", n_trials=trials)
    tally = Tally(staged.opened(config))
    outcomes = [(Outcome.COMPLETE, None), (Outcome.PRUNED, "asha: " + "long " * 30)]
    for number in range(trials - running):
        staged.run_trial(tally, config, number, *outcomes[number % 3 > 0])
    for number in range(trials - running, trials):
        tally.started(staged.trial(config, number), staged.params(number), "a-worker-of-a-far-host")
        tally.reported(staged.report(number, 1, 1.5), CONTINUE)
    return tally


@pytest.mark.parametrize(("width", "height"), [(40, 16), (80, 24), (100, 40), (200, 60)])
@pytest.mark.parametrize(("trials", "running"), [(1, 1), (12, 2), (200, 64)])
def test_the_table_fits_the_terminal(
    tmp_path: Path, width: int, height: int, trials: int, running: int
) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    tally = _tally(tmp_path, trials, running)
    console.print(Running(tally, [], 10.0, height))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < height
    assert max(cell_len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert f"{tally.done} of {trials} trials" in text
    assert "▸" in text and ("1/4" in text or width < 80)


def test_the_table_says_who_runs_what_and_why_not(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160, height=40)
    console.print(Running(_tally(tmp_path, 12, 2), [], 10.0, 40))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "on w0" in text  # the worker that the last report named
    assert re.search(r"✂ +\d+ .*pruned +asha: long", text)
    assert re.search(r"✓ +\d+ .*█\S*▁ .* 4/4 .*complete", text)
    assert "best 1." in text and "below the untouched base 2.0000" in text


def test_2000_trials_are_drawn_in_no_time(tmp_path: Path) -> None:
    tally = _tally(tmp_path, 2000, 64)
    console = Console(file=io.StringIO(), width=120, height=50)
    console.print(Running(tally, [], 10.0, 50))
    began = time.perf_counter()
    for _ in range(5):
        console.print(Running(tally, [], 10.0, 50))
    assert (time.perf_counter() - began) / 5 < 0.25  # 0.02 s on an idle core, four times a second


def test_the_time_left_follows_from_the_trials_so_far(tmp_path: Path) -> None:
    now = [100.0]
    config = staged.config(tmp_path, n_trials=10)
    tally = Tally(staged.opened(config), now=lambda: now[0])
    assert tally.remaining_s() is None
    for number in (0, 1):
        tally.started(staged.trial(config, number), staged.params(number), f"w{number}")
    tally.reported(staged.report(0, 1, 1.9), CONTINUE)  # 2 s to the first of four ticks
    now[0] += 2.0
    assert tally.remaining_s() == pytest.approx((8 * 8 + 6 + 6) / 2)


def _closed(folder: Path, complete: bool, *overrides: str, **changes: object) -> str:
    config = staged.config(folder, *overrides, **changes)  # type: ignore[arg-type]
    stream = io.StringIO()
    console = PlainConsole(config, stream)
    console.opened(staged.opened(config))
    for number in range(3):
        outcome = Outcome.PRUNED if number == 1 else Outcome.COMPLETE
        staged.run_trial(console, config, number, outcome, "asha" if number == 1 else None)
    records = list(console.tally.records.values()) if console.tally else []
    console.closed(Closed(complete=complete, reason="the end", records=records))
    return stream.getvalue().rpartition("3 of ")[2]


def test_the_end_says_what_was_found_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    end = _closed(tmp_path / "results", True, "tracking=wandb", "tracking.mode=offline")
    for said in (
        "loss 2.0000 → 1.5800, 21 % below the untouched base; exactly right 3.0 % → 25 %",
        "1 of 3 trials, saved 17 % of the budget, about 0:04 of training",
        "10 % of it evaluation",
        "trial 2: r 16, alpha/r 2, lr 2e-4",
        "results/lora_rank/",
        "results/recipe/lora_rank.yaml",
        "wandb sync results/lora_rank/wandb/offline-run-*",
        "python -m sweep.dashboard lora_rank --open",
        "python -m trials results/lora_rank/trials/2.json",
        "python -m sweep +recipe=lora_rank",
        "python -m sweep.results lora_rank",
    ):
        assert said in end
    assert "goes on where this stopped" not in end


def test_an_unfinished_study_says_the_same_command_again(tmp_path: Path) -> None:
    end = _closed(tmp_path, False, command="python -m sweep +search=lora_rank n_trials=9")
    assert "python -m sweep +search=lora_rank n_trials=9  # goes on where this stopped" in end
    assert "wandb" not in end


def test_passwords_stay_out_of_the_terminal(tmp_path: Path) -> None:
    end = _closed(tmp_path, True, storage="postgresql://me:geheim@host/db")
    assert "geheim" not in end
    assert "--storage 'postgresql://me:***@host/db' --open" in end


def test_commands_are_whole_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    end = _closed(tmp_path / "a-results-folder-with-a-long-name", True)
    assert "/a-results-folder-with-a-long-name/lora_rank/trials/2.json\n" in end


def test_a_study_that_had_all_its_trials_shows_its_leaderboard(tmp_path: Path) -> None:
    config = staged.config(tmp_path)
    stream = io.StringIO()
    records = staged.play(PlainConsole(config, io.StringIO()), config)
    _store(tmp_path / "sweep.db", tmp_path, config.study)
    console = PlainConsole(config, stream)
    console.closed(Closed(complete=True, reason="has all its trials already", records=records))
    assert "has all its trials already" in stream.getvalue()
    assert "best      trial 5" in stream.getvalue()


def _store(file: Path, results: Path, study: str) -> None:
    setup = staged.setup(staged.config(results))
    store = Store(f"sqlite:///{file}", create=True)
    store.open_study(
        StudyRecord(
            study=study, uuid=staged.UUID, n_trials=6, ticks=4, first_rung=1, baseline_loss=2.0,
            baseline_accuracy=None, model="demo", data="demo", device="cpu",
            dimensions=("lora.r",), results_dir=str(results), started_at=0.0, seconds=1.0,
            versions={},
        ),
        setup,
    )  # fmt: skip
    store.close()


@pytest.mark.parametrize(
    ("reason", "said"),
    [("interrupted; type the same command again", True), ("InputError: no such column", False)],
)
def test_an_end_before_the_study_is_open_says_why_unless_the_command_does(
    tmp_path: Path, reason: str, said: bool
) -> None:
    stream = io.StringIO()
    console = PlainConsole(staged.config(tmp_path), stream)
    console.closed(Closed(complete=False, reason=reason, records=()))
    assert (reason in stream.getvalue()) == said
