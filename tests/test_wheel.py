"""The built wheel, installed outside the checkout: configuration and base travel with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", *words, "--no-deps", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    wheel = next(folder.glob("*.whl"))
    pip("install", "--no-index", "--no-compile", "--target", str(folder / "site"), str(wheel))
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_wheel_is_what_runs(site: Path, tmp_path: Path) -> None:
    code = "import sweep, trials; print(sweep.__file__, trials.__file__)"
    shown = run(site, tmp_path, "-c", code)
    assert shown.stdout.count(str(site)) == 2


def test_the_wheel_holds_the_base(site: Path) -> None:
    assert (site / "trials" / "assets" / "demo" / "model.safetensors").stat().st_size > 1_000_000


def test_a_sweep_runs_from_the_wheel(site: Path, tmp_path: Path) -> None:
    words = ["-m", "sweep", "+search=lora_rank", "engine=simulated", "n_trials=3", "tracking=none"]
    done = run(site, tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results" / "sweep.db").exists()
