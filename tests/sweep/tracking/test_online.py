"""W&B over two days against a stub of its server: what the real client sends, and what it costs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sweeping
from tracked import OFFLINE, command, losses, runs, swept, tables, ticks
from wandb_stub import RemoteArtifact, WandbStub

from sweep.config import SweepConfig
from sweep.tracking.observer import Tracking
from sweep.tracking.wandb import run_id, sync_command
from sweep.tracking.wandb.server import unreachable
from trials.contract import CONTINUE, Driver, Outcome, Report, Sample, TrialConfig, TrialResult

KEY = "0123456789" * 4
ONLINE = ("tracking=wandb", "tracking.mode=online", "tracking.close_timeout_s=90")
SAMPLE = Sample(prompt="<b>What?</b>", reference="149", generated="12 €")


@dataclass
class Study:
    """A study and what the server has of it."""

    config: SweepConfig
    server: WandbStub
    notes: list[str] = field(default_factory=list)

    def run(self, number: int | str) -> Any:
        return self.server.runs[run_id(tables(self.config)[0], number)]

    def artifacts(self, kind: str) -> dict[str, RemoteArtifact]:
        return {k: a for k, a in self.server.artifacts.items() if a.kind == kind}


@pytest.fixture(scope="module")
def server() -> Iterator[WandbStub]:
    with pytest.MonkeyPatch.context() as patch:
        stub = WandbStub()
        patch.setenv("WANDB_BASE_URL", stub.address)
        patch.setenv("WANDB_API_KEY", KEY)
        yield stub
        stub.stop()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, server: WandbStub) -> Study:
    """Trial 0 on one day, trial 1 begun; on the next day trial 1 to its end, the best."""
    folder = tmp_path_factory.mktemp("days")
    made = Study(sweeping.sweep_config(folder, *ONLINE, "n_trials=2"), server)
    driver, link = sweeping.ready(made.config, Tracking("wandb", made.notes.append))
    _train(link, _take(link), made.config, best=0.6)
    link.report(_report(_take(link), 1, 0.5))
    driver.stop(3, "interrupted")
    driver.close()
    driver, link = sweeping.ready(made.config, Tracking("wandb", made.notes.append))
    _train(link, _take(link), made.config, best=0.3)
    driver.close()
    return made


def _take(link: Driver) -> TrialConfig:
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    return trial


def _train(link: Driver, trial: TrialConfig, config: SweepConfig, best: float) -> None:
    """Five ticks, and an adapter of its own."""
    for tick in range(1, 6):
        last = _report(trial, tick, best)
        assert link.report(last) == CONTINUE
    adapter = config.study_dir / "adapters" / str(trial.number)
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights %d" % trial.number)
    link.finish(TrialResult(
        trial=trial.number, attempt=trial.attempt, outcome=Outcome.COMPLETE, ticks=5,
        eval_loss=last.eval_loss, examples=last.examples, adapter=str(adapter), samples=(SAMPLE,),
    ))  # fmt: skip


def _report(trial: TrialConfig, tick: int, best: float) -> Report:
    examples = trial.budget.examples // trial.budget.ticks * tick
    return Report(trial=trial.number, attempt=trial.attempt, tick=tick, examples=examples,
                  eval_loss=best + 0.01 * (5 - tick), tokens=100, seconds=1.0, utilisation=0.5,
                  memory_bytes=2**20, worker="w0")  # fmt: skip


def test_two_days_make_one_run_for_each_trial(study: Study) -> None:
    for record in tables(study.config)[1]:
        run = study.run(record.number)
        assert losses(run.history) == ticks(study.config, record.number)
        assert [row["_step"] for row in run.history] == list(range(len(run.history)))
        assert (run.group, run.job_type) == ("test", "trial")
        assert run.config["lora"]["r"] == record.params["lora.r"]
        assert run.summary["eval_loss"] == record.eval_loss and run.complete
    assert study.run("baseline").summary["eval_loss"] == pytest.approx(1.2)
    assert len(study.server.runs) == 3


def test_samples_are_tables(study: Study) -> None:
    table = study.run(0).summary["samples"]
    path = f"/put/{run_id(tables(study.config)[0], 0)}/{table['path']}"
    written = json.loads(study.server.files[path])
    assert written["columns"] == ["prompt", "reference", "base", "generated"]
    assert written["data"] == [[SAMPLE.prompt, SAMPLE.reference, "", SAMPLE.generated]]


def test_the_data_set_is_one_version_by_its_content_that_all_trials_use(study: Study) -> None:
    ((key, data),) = study.artifacts("dataset").items()
    digest = data.metadata["content_hash"]
    assert {"latest", digest[:12]} <= data.aliases and data.metadata["train_examples"]
    assert key in study.run("baseline").logged
    assert all(key in study.run(number).used for number in (0, 1))
    assert list(data.manifest["contents"]) == ["description.yaml"]  # not a row of it


def test_kept_adapters_are_models_with_the_best_marked(study: Study) -> None:
    models = study.artifacts("model")
    aliases = {frozenset(model.aliases - {"latest"}) for model in models.values()}
    assert aliases == {frozenset({"trial-0"}), frozenset({"trial-1", "best"})}
    for key, model in models.items():
        number = model.metadata["trial"]
        assert key in study.run(number).logged
        stored = study.server.files[f"/artifact/{key}/adapter_model.safetensors"]
        assert stored == b"weights %d" % number


def test_a_view_is_saved_once_and_its_address_told(study: Study) -> None:
    (view,) = study.server.views.values()
    panels = {
        panel["viewType"]: panel["config"]
        for section in view["spec"]["section"]["panelBankConfig"]["sections"]
        for panel in section["panels"]
    }
    columns = [c["accessor"] for c in panels["Parallel Coordinates Plot"]["columns"]]
    searched = ["config:lora.value.r", "config:train.value.learning_rate"]
    assert columns == [*searched, "summary:eval_loss"]
    assert {"Parameter Importance", "Run History Line Plot", "Weave"} <= set(panels)
    address = f"{study.server.address}/me/qlora-sweep?nw={_short(view['name'])}"
    assert study.notes == [f"W&B: {address}"] * 2  # on each of the two days


def _short(name: str) -> str:
    return name.removeprefix("nw-").removesuffix("-v")


def test_no_key_is_sent_but_to_log_in(study: Study) -> None:
    assert len(study.server.received) > 1000
    assert KEY.encode() not in study.server.received
    assert str(study.config.storage).encode() not in study.server.received
    assert sync_command(study.config) is None


def test_what_is_synced_on_two_days_is_one_picture(tmp_path: Path, server: WandbStub) -> None:
    """Trial 0 is synced half, continued and synced again; twice, and then brought up to date."""
    config = sweeping.sweep_config(tmp_path, *OFFLINE, "n_trials=1")
    study = Study(config, server)
    driver, link = sweeping.ready(config, Tracking("wandb", study.notes.append))
    trial = _take(link)
    for tick in (1, 2):
        link.report(_report(trial, tick, 0.5))
    driver.stop(3, "interrupted")
    driver.close()
    _sync(config)
    assert losses(study.run(0).history) == ticks(config, 0)[:2]
    driver, link = sweeping.ready(config, Tracking("wandb", study.notes.append))
    _train(link, _take(link), config, best=0.5)
    driver.close()
    for _ in range(2):
        _sync(config)
        _check_whole(study)
    said = command("--storage", config.storage)
    assert "nw=" in said and "has all of test" in said
    _check_whole(study)
    assert len(study.run("baseline").history) == 1 and study.notes == []


def _sync(config: SweepConfig) -> None:
    """What the last lines of an offline sweep tell the user to type."""
    folders = map(str, (config.study_dir / "wandb").glob("offline-run-*"))
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *folders], capture_output=True)
    assert done.returncode == 0, done.stderr


def _check_whole(study: Study) -> None:
    run = study.run(0)
    assert losses(run.history) == ticks(study.config, 0)
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    assert [row["samples"]["nrows"] for row in run.history if "samples" in row] == [1]
    assert run.summary["outcome"] == "complete"
    (data,) = [a for k, a in study.artifacts("dataset").items() if k in run.used]
    assert "latest" in data.aliases
    (model,) = [a for k, a in study.artifacts("model").items() if k in run.logged]
    assert {"best", "trial-0"} <= model.aliases


@pytest.fixture(params=["refuses", "stalls", pytest.param("nonsense", marks=pytest.mark.slow)])
def trouble(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that cannot be used."""
    stub = WandbStub(nonsense=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stalls = f"http://127.0.0.1:{server.getsockname()[1]}"  # connects, and never answers
        with socket.create_server(("127.0.0.1", 0)) as gone:
            refuses = f"http://127.0.0.1:{gone.getsockname()[1]}"
        places = {"refuses": refuses, "stalls": stalls, "nonsense": stub.address}
        monkeypatch.setenv("WANDB_BASE_URL", places[request.param])
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield request.param
    stub.stop()


def test_a_server_that_cannot_be_used_costs_nothing_and_loses_nothing(
    trouble: str, tmp_path: Path
) -> None:
    config = sweeping.sweep_config(tmp_path, *ONLINE, "n_trials=2")
    notes = swept(config)
    assert [r.outcome for r in tables(config)[1]] == ["complete", "complete"]
    assert len(runs(config)) == 3
    assert len([note for note in notes if "goes on offline" in note]) == 1
    assert "python -m sweep.tracking test" in notes[-1] and len(notes) <= 3


def test_a_server_that_stalls_later_holds_up_the_end_for_so_long_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = WandbStub()
    monkeypatch.setenv("WANDB_BASE_URL", stub.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = sweeping.sweep_config(tmp_path, *ONLINE[:2], "tracking.close_timeout_s=1")
    notes: list[str] = []
    driver, link = sweeping.ready(config, Tracking("wandb", notes.append))
    stub.stalls.set()
    _train(link, _take(link), config, best=0.5)
    driver.close()
    stub.stop()
    assert tables(config)[1][0].outcome == "complete"
    assert len(notes) <= 2 and "was ended" in notes[-1]


def test_a_stalling_server_is_told_from_a_working_one(
    server: WandbStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreachable(timeout_s=5) is None
    with socket.create_server(("127.0.0.1", 0)) as stalling:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{stalling.getsockname()[1]}")
        assert "does not answer" in (unreachable(timeout_s=0.2) or "")
