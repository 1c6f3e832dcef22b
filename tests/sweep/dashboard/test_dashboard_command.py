"""`python -m sweep.dashboard`: what it says, where it listens, whom it answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.artifacts.exceptions import ArtifactNotFound
from sweeping import run_inline, sweep_config

from sweep.config import SweepConfig
from sweep.dashboard.__main__ import main
from sweep.dashboard.server import Artifacts

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    found = sweep_config(tmp_path_factory.mktemp("served"), "n_trials=2")
    run_inline(found)
    return found


@contextmanager
def started(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it printed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "sweep.dashboard", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def status(address: str, **headers: str) -> int:
    asked = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_it_prints_its_address_and_answers_this_machine_alone(config: SweepConfig) -> None:
    folder = config.results_dir.parent
    with started(folder, "test", "--port", "0") as (process, address):
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/dashboard/studies/1", address)
        assert match is not None
        port = match[1]
        assert status(address) == status(f"http://127.0.0.1:{port}/api/studies/1") == 200
        assert status(address, Host=f"localhost:{port}") == 200
        assert status(address, Host="evil.example") == 403
        assert status(address, Host=f"evil.example:{port}") == 403
        assert status(address, Origin=f"http://localhost:{port}") == 200
        for site in ("http://evil.example", "null"):
            assert status(address, Origin=site) == 403
        others = [a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for other in {str(o) for o in others} - {"127.0.0.1"}:
            with pytest.raises(OSError):
                socket.create_connection((other, int(port)), timeout=5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_without_a_port_one_is_found(config: SweepConfig) -> None:
    words = ("--storage", config.storage)
    with started(config.results_dir, *words) as (_, one), started(ROOT, *words) as (_, other):
        assert one != other and status(one) == status(other) == 200


def test_a_taken_port_is_said(config: SweepConfig, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--storage", config.storage, "--port", port]) == 2
    assert f"--port {port}: Address already in use. Type another one" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999999", "65536", "-1"])
def test_a_port_that_cannot_be_is_said(
    port: str, config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--storage", config.storage, "--port", port]) == 2
    assert f"--port {port}: a port is 1 to 65535, or 0 for any" in capsys.readouterr().err


def test_what_is_not_there_is_said(
    config: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results-dir", str(tmp_path)]) == 2
    assert "There is no database" in capsys.readouterr().err
    assert main(["tets", "--results-dir", str(config.results_dir)]) == 2
    assert "Did you mean 'test'?" in capsys.readouterr().err
    assert main(["--storage", "nonsense"]) == 2
    assert "is not a database URL" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_artifacts_of_several_results_folders_are_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"0{name}").write_text(name)
    both = Artifacts([tmp_path / "a", tmp_path / "b"])
    for name in ("a", "b"):
        with both.open_reader(f"0{name}") as file:
            assert file.read() == name.encode()
    both.remove("0b")
    both.remove("0b")  # gone already: then a study can still be deleted
    with pytest.raises(ArtifactNotFound):
        both.open_reader("0b")
