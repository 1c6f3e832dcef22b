"""The report as a file: its numbers are the CSV's and the database's, nothing in it is obeyed."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import reported
import sweeping
from reported import HOSTILE, Cells, Planned

from sweep import load_study
from sweep.observers import Closed
from sweep.observers.files import Files
from sweep.observers.report import ReportPage
from sweep.report import rows
from sweep.report.__main__ import main
from sweep.report.figures import Missing
from sweep.report.page import report
from sweep.results.__main__ import main as results
from sweep.store import Store, schema
from trials.contract import InputError, Sample, TrialConfig


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated sweep, as its files and its database have it."""
    folder = tmp_path_factory.mktemp("swept")
    faults = "engine.faults=[oom@3:2,nan@4:1,exception@5:1]"
    config = sweeping.sweep_config(folder, "n_trials=16", "samples=2", faults)
    files = Files()
    sweeping.run_inline(config, files)
    return folder / "results"


def test_the_command_writes_what_the_results_print(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "--results-dir", str(swept)]) == 0
    assert str(swept / "test" / "report.html") in capsys.readouterr().out
    assert results(["test", "--results-dir", str(swept), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    written = (swept / "test" / "trials.csv").read_text()
    assert list(csv.DictReader(io.StringIO(written))) == rows
    shown = {row[1]: row for row in Cells((swept / "test" / "report.html").read_text()).rows if row}
    assert len(rows) == len(shown) >= 16
    for row in rows:
        assert shown[row["number"]][9] == row["seconds"]


def test_the_best_is_the_leaderboards(swept: Path) -> None:
    study = load_study("test", str(swept))
    best = study.trials[study.trials.outcome == "complete"].eval_loss.idxmin()
    assert study.answer.headline.startswith(f"Trial {best} is the best")


def test_a_sweep_writes_its_report_and_says_where(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path)
    said: list[str] = []
    sweeping.run_inline(config, ReportPage(said.append))
    page = config.study_dir / "report.html"
    assert said == [f"report    {page}"]
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "under way" not in text and "so far" not in text.partition("<nav")[0]


def test_a_sweep_that_never_opened_writes_none(tmp_path: Path) -> None:
    ReportPage(print).closed(Closed(complete=False, reason="no such column", records=()))
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_a_running_sweep_says_so(tmp_path: Path) -> None:
    url = reported.write(tmp_path, [*reported.plan(3), Planned(outcome="running", losses=[1.5])])
    store = Store(url, create=True)
    with store.engine.begin() as db:
        db.execute(schema.locks.insert().values(
            study="study", token="t", host="h", pid=1, process_started=0, since=0,
            alive_at=time.time()))  # fmt: skip
    store.close()
    assert main(["study", "--results-dir", str(tmp_path)]) == 0
    page = (tmp_path / "study" / "report.html").read_text().partition("<script")[0]
    assert "running: 3 of 4 trials done, 1 under way" in page
    assert "is the best so far" in page


def test_a_report_of_a_killed_sweep_shows_nothing_as_running(tmp_path: Path) -> None:
    url = reported.write(tmp_path, [*reported.plan(3), Planned(outcome="running", losses=[1.5])])
    frames = load_study("study", url).frames
    assert [record.outcome for record in frames.records].count("running") == 0
    assert "its run was killed; the same command goes on" in report(frames)


def test_no_network_and_plotly_once(swept: Path) -> None:
    page = report(load_study("test", str(swept)).frames)
    assert page.count("plotly.js v") == 1
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe-inline" not in policy[1].partition("script-src")[2].partition(";")[0]
    ours = page.partition("/**\n* plotly.js")[0]
    assert not re.search(r'(?:src|href)="(?!#)', ours)


def hostile(folder: Path) -> str:
    """A study in which every text that comes from outside is hostile; its URL."""
    samples = [Sample(prompt=text, reference=text[::-1], generated=text) for text in HOSTILE]
    trials = [
        Planned(
            outcome="complete" if k % 2 else "pruned", params={**params, "lora.r": text},
            losses=reported.curve(params)[: 5 if k % 2 else 2], worker=text[:200],
            reason=text, samples=samples if k % 2 else (),
        )
        for k, (params, text) in enumerate(zip(reported.proposals(16), HOSTILE * 2, strict=True))
    ]  # fmt: skip
    choices = reported.CategoricalDistribution(list(HOSTILE))
    space = {**reported.SPACE, "lora.r": choices}
    for name in ("<h1 onclick=alert(1)>" + "n" * 400, HOSTILE[3]):
        text = HOSTILE[1] + "x" * 9000
        reported.write(folder, trials, name=name, space=space, text=text, base_samples=samples)
    return f"sqlite:///{folder / 'sweep.db'}"


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    url = hostile(tmp_path)
    for frames in reported.read_studies([], url):
        page = report(frames)
        head = page.partition("/**\n* plotly.js")[0]
        for harm in ("<script>document", "<img", "<b>bold", "<a href='", "<h1 on", "<style>*"):
            assert harm not in head
        assert not set("\x00\x1b\u202e\u2066") & set(head)
        assert head.count("<script") == len(re.findall(r'id="figure-', head)) + 1


def test_long_texts_are_folded_away(tmp_path: Path) -> None:
    long = Sample(prompt="p", reference="r", generated="word " * 6000)
    trials = [Planned(params={"lora.r": 4}, losses=[1.0], samples=[long])]
    page = report(reported.frames(tmp_path, trials))
    assert "the first 20,000 of 30,000 characters" in page


def test_without_samples_it_says_how_to_get_them(tmp_path: Path) -> None:
    assert "samples=3" in report(reported.frames(tmp_path, reported.plan(3)))


def test_samples_stand_next_to_the_untouched_base(swept: Path) -> None:
    study = load_study("test", str(swept))
    page = report(study.frames).partition("<script")[0]
    base = study.samples[study.samples.trial == -1]
    assert len(base) == 2
    for generated in base.generated:
        assert generated in page


def test_several_studies_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, name in enumerate(("one", "two", "empty")):
        reported.write(tmp_path, reported.plan(24, seed=k) if k < 2 else [], name=name)
    assert main(["one", "two", "empty", "--results-dir", str(tmp_path)]) == 0
    page = (tmp_path / "one+two+empty.html").read_text()
    assert page.count('class="figure"') == 3
    assert "found the lowest loss" in page
    assert main(["--results-dir", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*/report.html"))) == 3
    assert "MiB" in capsys.readouterr().out


def test_studies_on_other_data_are_not_compared_by_loss(tmp_path: Path) -> None:
    for name in ("one", "two"):
        reported.write(tmp_path, reported.plan(3), name=name)
    store = Store(f"sqlite:///{tmp_path / 'sweep.db'}", create=True)
    with store.engine.begin() as db:
        db.exec_driver_sql(
            "update study_system_attributes set value_json = replace(value_json, '\"facts\": {', "
            "'\"facts\": {\"data.content_hash\": [\"x\", \"x\"], ') where study_id = 1"
        )
    store.close()
    assert main(["one", "two", "--results-dir", str(tmp_path)]) == 0
    assert "do not share data" in (tmp_path / "one+two.html").read_text()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["stud"], "Did you mean 'study'?"),
        (["--storage", "sqlite:///none.db"], "There is no database"),
        (["--storage", "nonsense"], "is not a database URL"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], said: str
) -> None:
    reported.write(tmp_path, [])
    assert main([*typed, "--results-dir", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported.write(tmp_path, [])
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "report.html")
    assert main(["study", "--results-dir", str(tmp_path), "--output", output]) == 2
    assert "--output" in capsys.readouterr().err


def test_two_thousand_trials_are_written_in_seconds(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(2000))
    began = time.process_time()
    page = report(frames)
    assert time.process_time() - began < 30  # about 4 s; not wall-clock: the machine is shared
    assert len(page) < 11 * 2**20  # of which plotly.js is 4.6 MiB


def test_notebook_users_get_frames_and_figures(tmp_path: Path) -> None:
    url = reported.write(tmp_path, reported.plan(24))
    study = load_study("study", url)
    assert list(study.trials.index) == list(range(24))
    assert set(study.trials.columns) >= {"lora.r", "train.learning_rate", "eval_loss", "reason"}
    assert len(study.curves) == sum(study.trials.ticks)
    assert isinstance(study.samples, pd.DataFrame)
    assert study.importances.name[0] == "train.learning_rate"
    for name in ("importance", "slices", "contour", "learning_curves", "cost", "timeline",
                 "parallel_coordinates"):  # fmt: skip
        assert getattr(study, name)().data
        assert name in repr(study)
    assert "24 trials; best: trial" in repr(study)
    assert study.report(tmp_path / "here.html").is_file()
    assert len(study.refresh().trials) == 24


def test_every_optimizer_step_is_there_and_the_best_trials_are_drawn(swept: Path) -> None:
    study = load_study("test", str(swept))
    store = Store(f"sqlite:///{swept / 'sweep.db'}")
    for number in study.trials.number:
        steps = study.steps[study.steps.trial == number]
        points = store.curves(study.frames.study.uuid, number)
        assert list(steps.train_loss) == [point.train_loss for point in points]
        assert list(steps.examples) == [point.examples for point in points]
    store.close()
    [drawn] = [t for t in study.learning_curves().data if t.name == "its training loss"]
    best = study.frames.best
    assert best and len(drawn.x) == len(store_points := study.frames.best_steps) <= 300
    assert drawn.y[0] == pytest.approx(store_points[0].train_loss, rel=1e-5)
    assert 0 < drawn.x[0] < 1 and drawn.x[-1] == len(best.losses)


def test_a_trial_that_starts_while_one_reads_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweeping.sweep_config(tmp_path, "n_trials=3")
    driver, link = sweeping.ready(config)
    assert isinstance(link.next_trial(), TrialConfig)
    read = rows.attempts

    def slowly(store: Store, uuid: str, now: float | None = None) -> list[rows.Attempt]:
        found = read(store, uuid, now)
        assert isinstance(link.next_trial(), TrialConfig)
        return found

    monkeypatch.setattr(rows, "attempts", slowly)
    assert "timeline" in report(load_study("test", config.storage).frames)
    driver.close()


def test_slots_of_a_worker_stand_below_each_other(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path, "engine.capacity=4", "engine.seconds_per_tick=0.01")
    sweeping.run_inline(config)
    study = load_study("test", config.storage)
    rows = {row for bars in study.timeline().data for row in bars.y}
    assert rows == {f"w0 · slot {slot}" for slot in range(4)}
    page = report(study.frames)
    assert "up to 4 at once on a device" in page and "4 trials at once" in page


def test_load_study_names_the_known_studies(tmp_path: Path) -> None:
    reported.write(tmp_path, [], name="lora_rank")
    with pytest.raises(InputError, match="Did you mean 'lora_rank'"):
        load_study("lora_rnk", str(tmp_path))
    with pytest.raises(Missing, match="need a trial"):
        load_study("lora_rank", str(tmp_path / "sweep.db")).learning_curves()


def test_importing_sweep_loads_nothing() -> None:
    heavy = ("pandas", "plotly", "optuna", "numpy", "sqlalchemy")
    code = f"import sys, sweep; sys.exit(', '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
