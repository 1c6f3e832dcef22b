"""The command line as a user meets it: help, configuration, completion, errors and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.__main__ import main
from sweep.config import SweepConfig
from sweep.config.compose import conf_dir, options
from sweep.ending import BAD_INPUT, BUDGET, COMPLETE, FAILED, INTERRUPTED
from sweep.names import GROUPS

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "wandb", "datasets", "optuna")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_names_every_group_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "python -m sweep +search=lora_rank" in told
    for group in GROUPS:
        assert [name for name in options(group, [conf_dir()]) if name not in told] == []
    assert "dry_run=true" in told
    codes = told.partition("Exit codes")[2]
    for code in (COMPLETE, FAILED, BAD_INPUT, BUDGET, INTERRUPTED):
        assert f"  {code} " in codes


def test_without_a_search_the_spaces_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    told = capsys.readouterr().err
    for name in options("search", [conf_dir()]):
        line = next(line for line in told.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 4


@pytest.mark.parametrize("argv", [["--cfg", "job", "lora.r=12"], ["lora.r=12", "-c", "job"]])
def test_the_configuration_is_printed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert "  r: 12\n" in capsys.readouterr().out


def test_a_part_of_the_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "--package", "budget", "+search=lora_rank"]) == 0
    assert capsys.readouterr().out.startswith("examples: 1200\n")
    assert main(["--cfg", "job", "--package", "bugdet"]) == 2
    assert "'budget'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--hepl"], "--help"),
        (["--cfg", "hydra"], "job"),
        (["--multirun", "lora.r=4,8"], "not needed"),
        (["--config-dir", "nowhere", "+search=lora_rank"], "nowhere"),
        (["-sc", "install=word"], "bash"),
        (["-sc", "bash"], "install"),
        (["--cfg", "job", "lora.rank=3"], "lora.r"),
        (["+search=lora_rank", "storage=nosuch://me:hush@host/db"], "nosuch"),
        (["+search=lora_rank", "storage=nosuch://me:a@hush/x@host/db"], "nosuch"),
        (["+search=lora_rank", "storage=postgresql:me:hush@host"], "is not a database URL"),
        (["+search=lora_rank", "results_dir=/tmp/100%25"], "holds no %, ? or #"),
        (["+search=lora_rank", "results_dir='/tmp/a#b'"], "results_dir=<a path without>"),
        (["+search=lora_rank", "results_dir='/tmp/a?b'"], "results_dir=<a path without>"),
        (["+search=lora_rank", "storage='no(such://me:hush@host/db"], "cannot be read"),
    ],
)
def test_bad_input(
    argv: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    told = capsys.readouterr()
    assert said in told.err and told.out == ""
    assert "hush" not in told.err and "Traceback" not in told.err
    assert list(place.iterdir()) == []


def test_control_characters_of_an_argument_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["l\x1b[31mr=1", "+search=lora_rank"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("results_dir", ["/proc/zz", "a" * 300, "taken"])
def test_results_that_cannot_be_written(
    results_dir: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "taken").touch()
    argv = ["+search=lora_rank", "engine=simulated", "tracking=none", f"results_dir={results_dir}"]
    assert main(argv) == 2
    assert "Type results_dir=" in capsys.readouterr().err
    assert [entry.name for entry in place.iterdir()] == ["taken"]


def test_a_file_that_is_not_utf8(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "search").mkdir()
    (place / "search" / "odd.yaml").write_bytes(b"# \xff\nlora: {r: 8}\n")
    assert main(["--config-dir", str(place), "+search=odd"]) == 2
    assert main(["--config-dir", str(place)]) == 2
    assert "utf-8" in capsys.readouterr().err


def test_a_good_command_line_runs_its_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[SweepConfig] = []

    def run_sweep(config: SweepConfig) -> int:
        ran.append(config)
        return 7

    monkeypatch.setattr("sweep.run.run_sweep", run_sweep)
    assert main(["+search=lora_rank", "study=mine"]) == 7
    assert ran[0].study == "mine"


def test_ctrl_c_while_there_is_no_sweep_yet_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_sweep(config: SweepConfig) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweep.run.run_sweep", run_sweep)
    assert main(["+search=lora_rank"]) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_completion_knows_groups_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep"])
    assert main(["-sc", "install=bash"]) == 0
    assert "complete" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "sweep +search=lora_rank pruner=")
    assert main(["-sc", "query=bash"]) == 0
    assert "pruner=asha" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "sweep lora.r")
    assert main(["-sc", "query=bash"]) == 0
    assert "lora.rslora=" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), ([], 2), (["+search=lora_rnk"], 2)])
def test_help_and_errors_import_nothing_heavy(argv: list[str], code: int, place: Path) -> None:
    script = (
        "import sys\nfrom sweep.__main__ import main\n"
        f"code = main({argv!r})\nheavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == code, done.stderr.decode()
    assert list(place.iterdir()) == []
