"""Keys, tokens and passwords: planted wherever a user could put one, looked for in every output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sweeping import Recorder, ready, stored, sweep_config

from sweep.__main__ import main
from sweep.secrets import in_url, masked
from trials.contract import Outcome, TrialConfig, TrialResult

ROOT = Path(__file__).parents[2]
PLANTED = {
    "WANDB_API_KEY": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGhJkLzXcVbNm1234567",
    "OPENAI_API_KEY": "sk-proj-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYplanted",
    "PGPASSWORD": "correct-horse-battery",
    "HTTPS_PROXY": "http://me:proxy-hush-word@127.0.0.1:9",
    "MY_DATABASE": "postgresql+nodriver://me:database-hush-word@host/db",
}
WORDS = [*PLANTED.values(), "proxy-hush-word", "database-hush-word"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's environment."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def found(text: str | bytes) -> list[str]:
    """The planted words in a text or in a file's bytes."""
    data = text.encode() if isinstance(text, str) else text
    return [word for word in WORDS if word.encode() in data]


def found_in(folder: Path) -> dict[str, list[str]]:
    """The files with planted words in them, in their names, too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    hits = {str(path): found(path.read_bytes()) + found(str(path)) for path in files}
    return {path: words for path, words in hits.items() if words}


def test_a_whole_sweep_leaves_no_secret_anywhere(planted: None, tmp_path: Path) -> None:
    """W&B's files are read, too."""
    home = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "WANDB_CONFIG_DIR"), str(tmp_path / "home"))
    home["WANDB_NOTES"] = f"logged in with {TOKEN}"
    (tmp_path / "home").mkdir()
    typed = [
        "engine=simulated", "engine.seconds_per_tick=0", "device=cpu", "study=kept", "n_trials=2",
        "lora.r=choice(4,8)", "tracking.mode=offline", "engine.faults=[exception@1:1:0]",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *typed],
        cwd=tmp_path,
        env={**os.environ, **home, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert found(done.stdout + done.stderr) == []
    assert (tmp_path / "results" / "sweep.db").stat().st_size > 0
    assert list((tmp_path / "results" / "kept" / "wandb").rglob("*.wandb"))
    assert found_in(tmp_path) == {}


TOKEN = PLANTED["HF_TOKEN"]
HUB = "https://me:proxy-hush-word@hub/data"
RUNS = ["engine=simulated", "tracking=none", "lora.r=4,8"]


@pytest.mark.parametrize(
    "typed",
    [
        f"data.revision={TOKEN}", f"model.revision={TOKEN}", f"study={TOKEN}", f"seed={TOKEN}",
        f"results_dir={TOKEN}", f"train.scheduler={TOKEN}", f"lora.target_modules={TOKEN}",
        f"lora.target_modules=choice(qv,{TOKEN})", f"nothing.of.that.name={TOKEN}", TOKEN,
        f"data.name={PLANTED['PGPASSWORD']}", "data.name='${oc.env:PGPASSWORD}'",
        f"hf_token={TOKEN[3:]}", f"+hub_token={TOKEN[3:]}", f"engine.key='a(b{TOKEN}'",
        f"tracking.api_key={PLANTED['WANDB_API_KEY']}", f"model={TOKEN}", f"+search={TOKEN}",
        f"data.path='{HUB}'", f"model.name='{HUB}'", f"data.split='{HUB}'",
        "data.path='https://hub/x?token=proxy-hush-word'", "storage='${oc.env:MY_DATABASE}'",
        "storage='sqlite:////tmp/x.db?password=proxy-hush-word'",
        "storage='sqlite://me:proxy-hush-word@/x.db'", "storage='me:proxy-hush-word@host'",
        "storage='sqlite:///file:x.db?uri=true&key=proxy-hush-word'",
    ],
)  # fmt: skip
def test_a_secret_that_would_be_written_is_refused_without_being_repeated(
    typed: str, planted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*RUNS, typed]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("sweep: ") and "Traceback" not in told.err
    assert found(told.err + told.out) == [] and "hush" not in told.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group, rest", [("tracking", "name: none"), ("engine", "name: simulated")])
def test_a_users_own_group_with_a_key_in_it_is_refused(
    group: str, rest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(f"{rest}\napi_key: abcdefg-planted\n")
    typed = [text for text in RUNS if not text.startswith(group)]
    assert main(["--config-dir", str(tmp_path), *typed, f"{group}=mine"]) == 2
    told = capsys.readouterr().err
    assert f"{group}.api_key=***" in told and "HF_TOKEN" in told and "planted" not in told


def test_the_printed_configuration_hides_a_password(
    planted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cfg", "job", *RUNS, "storage=postgresql://me:proxy-hush-word@host/db"]) == 0
    told = capsys.readouterr().out
    assert "postgresql://me:***@host/db" in told and found(told) == []


def test_a_database_with_a_password_runs_and_no_file_knows_it(
    planted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Server, "file", tmp_path / "served.db")
    registry.impls["mysql.planted"] = lambda: Server
    typed = [*RUNS, "executor=inline", "n_trials=2", "engine.seconds_per_tick=0", "study=served"]
    storage = "storage='mysql+planted://me:database-hush-word@host/db?sslkey=proxy-hush-word'"
    for _ in range(2):  # anew, and once more when it is finished
        assert main([*typed, storage]) == 0
        told = capsys.readouterr()
        assert "mysql+planted://me:***@host" in told.out and found(told.out + told.err) == []
    assert Server.file.stat().st_size > 0
    assert found_in(tmp_path) == {}


class Server(SQLiteDialect_pysqlite):
    """A database of which one must know the password, as far as its URL goes."""

    file = Path()
    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> tuple[list[str], dict[str, object]]:
        assert url.password == "database-hush-word"
        return [str(self.file)], {"check_same_thread": False}


def test_a_reason_with_a_secret_in_it_is_hidden_before_it_is_stored(
    planted: None, tmp_path: Path
) -> None:
    config = sweep_config(tmp_path)
    driver, link = ready(config, Recorder())
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    why = f"OSError: https://me:proxy-hush-word@hub said no to {TOKEN}"
    link.finish(
        TrialResult(trial=0, attempt=0, outcome=Outcome.FAILED, eval_loss=None, reason=why)
    )
    driver.close()
    assert stored(config)[1][0].reason == "OSError: https://me:***@hub said no to ***"
    assert found_in(tmp_path) == {}


@pytest.mark.parametrize("name, text, hidden", [
    ("MY_KEY", "of a short word", False), ("MY_KEY", "/home/me/some.key", False),
    ("MY_NAME", "nothing-to-hide-here", False), ("MY_TOKEN", "something-to-hide", True),
])  # fmt: skip
def test_the_environments_secrets_are_hidden_wherever_they_stand(
    name: str, text: str, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = text if text != "of a short word" else "short"
    monkeypatch.setenv(name, value)
    assert masked(f"it said {value}.") == (f"it said {'***' if hidden else value}.")


@pytest.mark.parametrize("text", [
    "results/sk-learn-experiments/data.jsonl", "meta-llama/Llama-3.1-8B",
    "task-1234567890123456789", "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "sqlite:////home/me/results/sweep.db",
])  # fmt: skip
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert masked(text) == text and not in_url(text)
