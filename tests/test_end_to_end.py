"""The real command, run as a user runs it, and everything it leaves checked from outside."""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# Short trials, so that the whole sweep takes about a minute on two cores.
SHORT = ["+search=lora_rank", "n_trials=5", "budget.examples=160", "budget.ticks=5",
         "data.eval_size=32", "data.train_size=160", "keep_adapters=2"]


@dataclass(frozen=True, kw_only=True)
class Ran:
    folder: Path
    first: subprocess.CompletedProcess[str]

    @property
    def study(self) -> Path:
        return self.folder / "results" / "lora_rank"

    def trials(self) -> list[dict[str, str]]:
        with (self.study / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    def best(self) -> dict[str, str]:
        complete = [row for row in self.trials() if row["outcome"] == "complete"]
        return min(complete, key=lambda row: float(row["eval_loss"]))


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def command(*words: str, cwd: Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("user")
    return Ran(folder=folder, first=command("sweep", *SHORT, cwd=folder))


def test_the_sweep_ends_with_a_leaderboard(ran: Ran) -> None:
    assert ran.first.returncode == 0, ran.first.stdout + ran.first.stderr
    assert "5 of 5 trials" in ran.first.stdout
    assert "below the untouched base" in ran.first.stdout
    assert "pruned at tick" in ran.first.stdout
    assert len(ran.trials()) == 5


def test_optuna_holds_the_same_trials(ran: Ran) -> None:
    with sqlite3.connect(ran.folder / "results" / "sweep.db") as database:
        states = [row[0] for row in database.execute("SELECT state FROM trials")]
        best = database.execute(
            "SELECT MIN(value) FROM trial_values JOIN trials USING (trial_id)"
            " WHERE state = 'COMPLETE'"
        ).fetchone()[0]
    assert len(states) == 5
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert best == pytest.approx(float(ran.best()["eval_loss"]))


def test_each_trial_has_an_offline_wandb_file(ran: Ran) -> None:
    trained = [row for row in ran.trials() if int(row["ticks"]) > 0]
    runs = list(ran.study.glob("wandb/**/run-*.wandb"))
    assert len(runs) == len(trained) + 1  # and the untouched base's


def test_the_kept_adapter_gives_the_reported_loss(ran: Ran) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    from trials.base import load_base
    from trials.contract import TrialConfig, from_json
    from trials.data import load_data
    from trials.evaluate import evaluate, evaluation_batches
    from trials.quiet import quiet
    from trials.training.batches import Limit

    best = ran.best()["number"]
    trial = from_json(TrialConfig, (ran.study / "trials" / f"{best}.json").read_text())
    base = load_base(trial.model, "cpu", silent)
    examples = load_data(trial.data, base, trial.seed, silent).eval
    with quiet():
        options = {"quantization_config": base.model.config.quantization_config}
        folder = ran.study / "adapters" / best
        model = AutoPeftModelForCausalLM.from_pretrained(folder, device_map="cpu", **options)
    batches = evaluation_batches(examples, pad=0, limit=Limit(), device=base.device)
    loss = evaluate(model, batches, torch.float32).loss
    # A plain loader lets bitsandbytes compute in bf16 on CPUs that have it.
    assert loss == pytest.approx(float(ran.best()["eval_loss"]), rel=2e-3)


def test_the_winner_is_a_recipe(ran: Ran) -> None:
    shown = command("sweep", "+recipe=lora_rank", "--cfg", "job", cwd=ran.folder)
    assert shown.returncode == 0, shown.stderr
    best = json.loads((ran.study / "trials" / f"{ran.best()['number']}.json").read_text())
    assert f"r: {best['lora']['r']}" in shown.stdout


def test_results_print_the_same_best(ran: Ran) -> None:
    shown = command("sweep.results", "lora_rank", cwd=ran.folder)
    assert shown.returncode == 0, shown.stderr
    assert f"{float(ran.best()['eval_loss']):.4f}" in shown.stdout


def test_a_replay_gives_the_same_loss(ran: Ran) -> None:
    best = ran.best()
    shown = command("trials", f"results/lora_rank/trials/{best['number']}.json", cwd=ran.folder)
    assert shown.returncode == 0, shown.stderr
    losses = [float(text) for text in re.findall(r"\d+\.\d{3,}", shown.stdout)]
    assert any(loss == pytest.approx(float(best["eval_loss"]), abs=2e-4) for loss in losses)


def test_the_dashboard_shows_the_study(ran: Ran) -> None:
    with dashboard(ran.folder / "results" / "sweep.db") as address:
        studies = json.loads(urllib.request.urlopen(f"{address}/api/studies", timeout=20).read())
    assert [study["study_name"] for study in studies["study_summaries"]] == ["lora_rank"]


def test_the_same_command_goes_no_further(ran: Ran) -> None:
    before = (ran.study / "trials.csv").read_text()
    again = command("sweep", *SHORT, cwd=ran.folder)
    assert again.returncode == 0, again.stdout + again.stderr
    told = " ".join(again.stdout.split())  # its lines are broken where they are long
    assert "the study has all its trials already" in told
    assert (ran.study / "trials.csv").read_text() == before


@contextmanager
def dashboard(database: Path) -> Iterator[str]:
    """The dashboard's own server on a free port of this machine."""
    port = _free_port()
    server = subprocess.Popen(
        [Path(sys.executable).parent / "optuna-dashboard", f"sqlite:///{database}",
         "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(address: str) -> None:
    import time

    for _ in range(150):
        try:
            urllib.request.urlopen(address, timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(address)
