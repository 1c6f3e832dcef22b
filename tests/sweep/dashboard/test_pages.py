"""What a sweep leaves in Optuna's dashboard, asked of its HTTP API: our numbers, and nothing twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa
from dashing import HOSTILE, Client, hostile_sweep, served, swept
from optuna.exceptions import StorageInternalError
from sweeping import Recorder, ready, run_inline, stored, sweep_config

from sweep.config import SweepConfig
from sweep.dashboard.files import ADAPTER, FOLDER
from sweep.dashboard.pages import Pages
from sweep.observers import Observers
from sweep.observers.dashboard import Dashboard
from sweep.observers.files import Files
from sweep.report.figures import FIGURES
from sweep.results import leaderboard
from sweep.run import run_sweep
from sweep.store import Store
from sweep.study import look
from trials.contract import Outcome, Report, TrialConfig, TrialResult

STATES = {"complete": "Complete", "pruned": "Pruned", "diverged": "Pruned", "infeasible": "Pruned",
          "failed": "Fail"}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A sweep that is over, with every outcome a trial can have."""
    faults = "engine.faults=[nan@1:2,oom@2:1,exception@3:2]"
    found = sweep_config(tmp_path_factory.mktemp("swept"), "n_trials=12", "samples=2", faults)
    assert swept(found) == []
    return found


@pytest.fixture(scope="module")
def client(config: SweepConfig) -> Iterator[Client]:
    with served(config) as found:
        yield found


@pytest.fixture(scope="module")
def study(config: SweepConfig, client: Client) -> dict[str, Any]:
    return client.study(config.study)


def test_its_numbers_are_ours(config: SweepConfig, study: Mapping[str, Any]) -> None:
    records = stored(config)[1]
    assert {record.outcome for record in records} == set(STATES)
    assert [trial["number"] for trial in study["trials"]] == [r.number for r in records]
    for trial, record in zip(study["trials"], records, strict=True):
        assert trial["state"] == STATES[record.outcome]
        told = [loss for loss in record.losses if loss == loss]  # Optuna knows none that is not
        assert [step["value"] for step in trial["intermediate_values"]] == told
        shown = {p["name"]: p["param_external_value"] for p in trial["params"]}
        assert shown == {name: str(value) for name, value in record.params.items()}
        if record.outcome in ("complete", "pruned"):
            assert trial["values"] == [record.eval_loss]
    assert study["directions"] == ["minimize"] and study["objective_names"] == ["eval_loss"]


def test_its_best_is_ours(config: SweepConfig, study: Mapping[str, Any]) -> None:
    best = leaderboard.best(stored(config)[1])
    assert best is not None
    [shown] = study["best_trials"]
    assert (shown["number"], shown["values"]) == (best.number, [best.eval_loss])
    assert f"**Best: trial {best.number}**" in study["note"]["body"]


def test_the_study_has_a_note(study: Mapping[str, Any]) -> None:
    body = study["note"]["body"]
    for said in (
        "**12 of 12 trials** over 2 dimensions",
        "| `lora.r` | `choice(4,8,16,32,64)` |",
        "loss 1.2000, exactly right 30 %",
        "`simulated`",
        "python -m sweep.results test",
        "+recipe=test",
    ):
        assert said in body


def test_each_trial_has_a_note(config: SweepConfig, study: Mapping[str, Any]) -> None:
    records, store = stored(config)[1], Store(config.storage)
    for trial, record in zip(study["trials"], records, strict=True):
        body = trial["note"]["body"]
        assert trial["note"]["version"] == 1
        assert body.startswith(f"**{record.outcome}** at tick {record.ticks} of 5")
        assert not record.reason or f"Why: `{record.reason}`" in body
        assert f"trials/{record.number}.json" in body
        shown = json.loads(body.partition("```json\n")[2].partition("```")[0])
        number = stored(config)[0].uuid, record.number
        assert shown == json.loads(_json(store.trial_config(*number)))
    store.close()


def _json(trial: TrialConfig) -> str:
    from trials.contract import to_json

    return to_json(trial)


def test_each_trial_has_its_curve_and_complete_ones_their_samples(
    config: SweepConfig, client: Client, study: dict[str, Any]
) -> None:
    row, records = stored(config)
    store = Store(config.storage)
    for record in records:
        there = client.artifacts(study, record.number)
        complete = record.outcome == "complete"
        assert list(there) == ["learning_curve.svg", *(["samples.jsonl"] if complete else [])]
        picture, headers = client.get(there["learning_curve.svg"])
        dots = ElementTree.fromstring(picture).findall("{http://www.w3.org/2000/svg}circle")
        assert len(dots) == sum(loss == loss for loss in record.losses)
        assert headers["Content-Type"] == "image/svg+xml"
        assert "sandbox" in headers["Content-Security-Policy"]
        if complete:
            lines = client.get(there["samples.jsonl"])[0].decode().splitlines()
            base = store.baseline_samples(row.uuid)
            [written] = store.samples(row.uuid, record.number).values()
            assert [(json.loads(line)["untouched base"], json.loads(line)["this trial"])
                    for line in lines] == [
                (b.generated, s.generated) for b, s in zip(base, written, strict=True)
            ]  # fmt: skip
    store.close()


def test_our_plots_are_the_dashboards_own_graphs(study: Mapping[str, Any]) -> None:
    graphs = {graph["id"]: json.loads(graph["graph_object"])
              for graph in study["plotly_graph_objects"]}  # fmt: skip
    assert set(graphs) == {f"sweep_{name}" for name in FIGURES}
    assert all(graph["data"] and graph["layout"]["title"]["text"] for graph in graphs.values())


def test_a_study_that_is_over_is_left_as_it_is(config: SweepConfig) -> None:
    notes: list[str] = []
    before = _attributes(config)
    assert run_sweep(config, Observers([Dashboard(notes.append)], note=notes.append)) == 0
    after = _attributes(config)
    assert {k: v for k, v in after.items() if "plot_data" not in k} == {
        k: v for k, v in before.items() if "plot_data" not in k
    }
    assert notes == []


def _attributes(config: SweepConfig) -> dict[str, str]:
    engine = sa.create_engine(config.storage)
    with engine.connect() as db:
        rows = db.execute(sa.text("select key, value_json from study_system_attributes")).all()
    engine.dispose()
    return {key: value for key, value in rows}


def test_what_a_killed_driver_left_undone_is_done(tmp_path: Path) -> None:
    config = sweep_config(tmp_path)
    run_inline(config, Files())  # as if it had been killed before it wrote anything for us
    notes: list[str] = []
    run_sweep(config, Observers([Dashboard(notes.append)], note=notes.append))
    with served(config) as client:
        study = client.study("test")
        for trial in study["trials"]:
            assert trial["note"]["version"] == 1 and trial["artifacts"]
        assert "**8 of 8 trials**" in study["note"]["body"]
    files = len(list((config.results_dir / FOLDER).iterdir()))
    assert files == sum(len(trial["artifacts"]) for trial in study["trials"])
    assert notes == []


def test_a_note_that_a_user_changed_stays(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "n_trials=3")
    assert swept(config) == []
    mine = {"body": "mine", "version": 2}
    with served(config) as client:
        study = client.study("test")
        for place in ("", f"/{study['trials'][1]['trial_id']}"):
            _put(client, f"/api/studies/{study['id']}{place}/note", _renewed(study, place, mine))
    assert swept(sweep_config(tmp_path, "n_trials=5")) == []
    with served(config) as client:
        study = client.study("test")
        assert study["note"]["body"] == study["trials"][1]["note"]["body"] == "mine"
        assert all(trial["note"]["body"] for trial in study["trials"]) and len(study["trials"]) == 5


def _renewed(study: Mapping[str, Any], place: str, note: Mapping[str, Any]) -> dict[str, Any]:
    version = study["trials"][1]["note"]["version"] if place else study["note"]["version"]
    return {**note, "version": version + 1}


def _put(client: Client, path: str, body: Mapping[str, Any]) -> None:
    import urllib.request

    headers = {"Content-Type": "application/json"}
    data = json.dumps(body).encode()
    asked = urllib.request.Request(client.address + path, data, headers, method="PUT")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 204


def test_kept_adapters_are_there_and_dropped_ones_are_not(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "keep_adapters=2", "n_trials=4")
    notes: list[str] = []
    driver, link = ready(config, Observers([Files(), Dashboard(notes.append)]))
    for loss in (0.9, 0.5, 0.7, 0.8):
        trial = link.next_trial()
        assert isinstance(trial, TrialConfig)
        folder = config.study_dir / "adapters" / str(trial.number)
        folder.mkdir(parents=True)
        for name in ADAPTER:
            (folder / name).write_text(f"{name} of {loss}")
        link.report(Report(trial=trial.number, attempt=0, tick=5, eval_loss=loss, examples=1200,
                           tokens=1, seconds=1.0))  # fmt: skip
        link.finish(TrialResult(trial=trial.number, attempt=0, outcome=Outcome.COMPLETE, ticks=5,
                                eval_loss=loss, adapter=str(folder)))  # fmt: skip
    driver.close()
    assert notes == []
    with served(config) as client:
        study = client.study("test")
        kept = {n: set(client.artifacts(study, n)) & set(ADAPTER) for n in range(4)}
        assert kept == {0: set(), 1: set(ADAPTER), 2: set(ADAPTER), 3: set()}
        for name, address in client.artifacts(study, 1).items():
            if name in ADAPTER:
                assert client.get(address)[0].decode() == f"{name} of 0.5"
    there = list((config.results_dir / FOLDER).iterdir())
    assert len(there) == sum(len(trial["artifacts"]) for trial in study["trials"]) == 8


def test_hostile_texts_are_code_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(4)> `|`.jsonl"
    path.write_text("{}")
    overrides = ("n_trials=2", "data=local", f"data.path='{path}'", "data.prompt_column=p",
                 "data.completion_column=c")  # fmt: skip
    config = sweep_config(tmp_path, *overrides)
    assert hostile_sweep(config) == []
    with served(config) as client:
        study = client.study("test")
        assert client.get(client.artifacts(study, 0)["samples.jsonl"])[0].count(b"\n") == 2
    bodies = [study["note"]["body"], *(trial["note"]["body"] for trial in study["trials"])]
    for body in bodies:
        assert len(body) <= 10_100
        prose = _without_code(body)
        for sign in ("<script", "<img", "![", "](", "evil", "\x1b", "\u202e"):
            assert sign not in prose
    assert HOSTILE[:40] in bodies[1] and HOSTILE[:40] in bodies[2]


def _without_code(markdown: str) -> str:
    """What is left where CommonMark's code spans and fenced blocks are taken out."""
    import re

    kept, fence = [], ""
    for line in markdown.splitlines():
        opened = re.match(r"`{3,}", line)
        if fence:
            closed = re.fullmatch(r"(`{3,})\s*", line)
            fence = "" if closed and len(closed[1]) >= len(fence) else fence
        elif opened and "`" not in line[opened.end():]:
            fence = opened[0]
        else:
            kept.append(re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", line))
    return "\n".join(kept)


def test_a_databases_own_words_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Pages, number: int) -> None:
        try:
            raise sa.exc.OperationalError("insert", {}, Exception("database or disk is full"))
        except sa.exc.OperationalError as error:
            raise StorageInternalError("invalid data, e.g. exceeding max length") from error

    monkeypatch.setattr(Pages, "trial", full)
    notes = swept(sweep_config(tmp_path), Recorder())
    assert notes == [
        "The dashboard's notes and artifacts are left out: database or disk is full"]


def test_trouble_is_said_once_and_costs_no_trial(tmp_path: Path) -> None:
    config = sweep_config(tmp_path)
    config.results_dir.mkdir()
    (config.results_dir / FOLDER).write_text("in the way")
    [note] = swept(config, Recorder())
    assert note.startswith("The dashboard's notes and artifacts are left out: ")
    assert all(record.outcome != "running" for record in stored(config)[1])
    (config.results_dir / FOLDER).unlink()
    assert swept(config) == []  # and later it is done


def test_a_database_that_was_away_is_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.observers.dashboard.PAUSE_S", 0.01)
    written, away = Pages.trial, iter([True])

    def trial(pages: Pages, number: int) -> None:
        if number == 1 and next(away, False):
            raise sa.exc.OperationalError("select", {}, Exception("server closed the connection"))
        written(pages, number)

    monkeypatch.setattr(Pages, "trial", trial)
    config = sweep_config(tmp_path, "n_trials=4")
    assert swept(config) == []
    with served(config) as client:
        assert all(t["note"]["body"] for t in client.study(config.study)["trials"])


def test_a_page_that_is_there_is_not_written_again(config: SweepConfig) -> None:
    standing = look(config)
    assert standing is not None and standing.setup is not None
    before = {path: path.stat().st_ino for path in (config.results_dir / FOLDER).iterdir()}
    pages = Pages(config, standing.setup, standing.uuid)
    pages.catch_up()
    for record in standing.records:
        pages.trial(record.number)
    pages.close()
    after = {path: path.stat().st_ino for path in (config.results_dir / FOLDER).iterdir()}
    assert before and after == before


def test_a_stuck_thread_does_not_hold_up_the_end(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "n_trials=4")
    notes: list[str] = []
    run_inline(config, Observers([Dashboard(notes.append, close_timeout_s=0.0)]))
    assert notes == ["Not all notes of the dashboard are written; the same command does it."]
    shutil.rmtree(config.results_dir / FOLDER, ignore_errors=True)
