"""`python -m sweep.results`: the leaderboard from the database alone, at any time, in a second."""

from __future__ import annotations

import csv
import dataclasses
import io
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import staged

from sweep.observers.files import Files
from sweep.results import summary
from sweep.results.__main__ import main
from sweep.store import RunRecord, Store, StudyRecord, schema
from trials.contract import Outcome, Sample


def _study(name: str, uuid: str, results: Path) -> StudyRecord:
    return StudyRecord(
        study=name, uuid=uuid, n_trials=10, ticks=4, first_rung=1, baseline_loss=staged.BASELINE,
        baseline_accuracy=0.03, model="demo", data="demo", device="a processor",
        dimensions=("lora.r", "lora.alpha_ratio", "train.learning_rate"),
        results_dir=str(results), started_at=1_700_000_000.0, seconds=75.0, versions={},
    )  # fmt: skip


def _fill(folder: Path, *names: str) -> None:
    """Studies with a complete, a pruned, a failed and a running trial each; no driver is left."""
    config = staged.config(folder)
    setup = staged.setup(config)
    store = Store(f"sqlite:///{folder / 'sweep.db'}", create=True)
    for name in names:
        uuid = f"{name}-uuid"
        store.open_study(_study(name, uuid, folder), setup)
        for number in range(4):
            trial = dataclasses.replace(staged.trial(config, number), study=name)
            store.start(uuid, trial, staged.params(number), "w0", setup)
            last = staged.report(number, 1, staged.losses(number)[0])
            store.tick(uuid, last, first_rung=1)
            if number < 3:
                outcome = (Outcome.COMPLETE, Outcome.PRUNED, Outcome.FAILED)[number]
                reason = "why so" if number else None
                ended = staged.result(last, number, outcome, reason=reason)
                store.finish(uuid, ended, first_rung_loss=last.eval_loss)
    store.close()


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def _said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def test_the_only_study_is_shown(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(results, "lora_rank")
    shown = _said(capsys)
    assert "lora_rank: 2 of 10 trials in 1:15, 1 not finished" in shown
    assert "loss 2.0000 → 1.9000, 5.0 % below the untouched base" in shown
    order = [shown.index(mark) for mark in ("✓ ", "✂ ", "✗ ")]
    assert order[0] == min(order)
    assert "why so" in shown and "stopped" in shown and "running" not in shown
    assert "python -m trials results/lora_rank/trials/0.json" in shown
    assert "\x1b" not in shown


def lock(results: Path, *, host: str) -> None:
    """Leaves the lock of a driver that was heard 20 s ago; on this host its process is gone."""
    store, now = Store(f"sqlite:///{results / 'sweep.db'}", create=True), time.time()
    with store.engine.begin() as db:
        db.execute(schema.locks.insert().values(
            study="lora_rank", token="t", host=host, pid=1, process_started=-1000.0, since=0,
            alive_at=now - 20))  # fmt: skip
        db.execute(schema.trials.update().values(started_at=now - 3000))
    store.close()


def test_times_go_on_while_a_driver_lives(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(results, "lora_rank")
    lock(results, host="elsewhere")
    told = _said(capsys)
    assert "in 1:35" in told or "in 1:36" in told
    running = next(line for line in told.splitlines() if "▸" in line)
    assert "50:0" in running


def test_nothing_runs_once_the_driver_of_this_host_is_gone(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(results, "lora_rank")
    lock(results, host=socket.gethostname())
    told = _said(capsys)
    assert "in 1:15, 1 not finished" in told
    assert "▸" not in told and "stopped" in told


def test_what_samples_cost_is_said(tmp_path: Path) -> None:
    records = staged.play(Files(), staged.config(tmp_path / "more"))
    assert "samples" not in dict(summary.costs(records, staged.TICKS))["training"]
    counted = [dataclasses.replace(r, sample_seconds=0.02 * r.seconds) for r in records]
    said = dict(summary.costs(counted, staged.TICKS))["training"]
    assert said.endswith("10 % of it evaluation, 2.0 % writing samples")


def test_what_all_runs_cost_is_said_where_there_was_a_price(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(results, "lora_rank")
    assert "money" not in _said(capsys, "lora_rank")
    store = Store(f"sqlite:///{results / 'sweep.db'}", create=True)
    for run, price in enumerate((2.0, 3.0)):
        ran = RunRecord(run=run, host="h", pid=1, devices=4, price_per_hour=price, started_at=0.0,
                        seconds=1800.0)  # fmt: skip
        store.spent("lora_rank-uuid", 1800.0 * (run + 1), ran)
    store.close()
    told = _said(capsys, "lora_rank")
    assert "used by all runs  4.00 device-hours · money 10.00" in told


def test_trials_that_share_a_worker_are_said_to(tmp_path: Path) -> None:
    records = staged.play(Files(), staged.config(tmp_path))
    spans = ((0.0, 9.0), (1.0, 4.0), (4.0, 8.0), (5.0, 6.0))
    for workers, most in (("wwww", 3), ("wxwx", 2), ("wxyz", 1)):
        ran = [
            dataclasses.replace(record, worker=worker, started_at=began, finished_at=ended)
            for record, worker, (began, ended) in zip(records, workers, spans, strict=False)
        ]
        assert summary.at_once(ran) == most
        said = dict(summary.costs(ran, staged.TICKS))["training"]
        assert ("at once on a device" in said) == (most > 1)


def test_samples_are_shown_beside_the_untouched_bases(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(results, "lora_rank")
    assert main(["lora_rank", "--samples"]) == 2
    assert "No trial has samples" in capsys.readouterr().err
    hostile = "two\x1b[31m\nlines " + "x" * 5000
    written = Sample(prompt="How much?", reference="285", generated=hostile)
    store = Store(f"sqlite:///{results / 'sweep.db'}", create=True)
    config = staged.config(results)
    base = staged.setup(config, baseline_samples=(dataclasses.replace(written, generated="511"),))
    store.open_study(_study("lora_rank", "lora_rank-uuid", results), base)
    last = staged.report(0, 1, 0.5)
    ended = dataclasses.replace(staged.result(last, 0, Outcome.COMPLETE), samples=(written,))
    store.finish("lora_rank-uuid", ended, first_rung_loss=0.5)
    store.close()
    for asked in (["--samples"], ["--samples", "0"]):
        told = _said(capsys, "lora_rank", *asked)
        for text in ("How much?", "285", "untouched base", "511", "trial 0", "two"):
            assert text in told
        assert "\x1b" not in told and "x" * 2001 not in told
    assert main(["lora_rank", "--samples", "2"]) == main(["lora_rank", "--samples", "9"]) == 2
    said = capsys.readouterr().err
    assert "Trial 2 has no samples" in said and "There is no trial 9" in said


def test_top_limits_the_rows(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(results, "lora_rank")
    assert "… and 2 trials more" in _said(capsys, "lora_rank", "--top", "2")
    assert "more" not in _said(capsys, "lora_rank", "--top", "0")
    assert main(["lora_rank", "--top", "-1"]) == 2
    assert "--top -1: it must be at least 1, or 0 for all rows" in capsys.readouterr().err


def test_several_studies_are_listed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(results, "lora_rank", "schedule")
    shown = _said(capsys)
    assert "lora_rank" in shown and "schedule" in shown
    assert "1.9000" in shown and "5.0 % below" in shown
    assert "python -m sweep.results NAME" in shown
    assert "schedule: 2 of 10 trials" in _said(capsys, "schedule")


def test_csv_has_every_trial(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(results, "lora_rank")
    rows = list(csv.DictReader(io.StringIO(_said(capsys, "lora_rank", "--csv"))))
    assert [row["outcome"] for row in rows] == ["complete", "pruned", "failed", "stopped"]
    assert [row["lora.r"] for row in rows] == ["4", "8", "16", "32"]
    assert rows[1]["reason"] == "why so"
    assert rows[3]["reason"] == "its run was killed; the same command goes on"


def test_an_unknown_study_names_the_nearest(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(results, "lora_rank", "schedule")
    assert main(["lora_rnk"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Study 'lora_rnk' is unknown. Did you mean 'lora_rank'?" in said.err


@pytest.mark.parametrize("url", [None, "sqlite:///elsewhere/none.db"])
def test_no_database_is_said_and_none_is_made(
    results: Path, capsys: pytest.CaptureFixture[str], url: str | None
) -> None:
    assert main(["--storage", url] if url else []) == 2
    assert "There is no database" in capsys.readouterr().err
    assert list(results.iterdir()) == []
    assert not Path("elsewhere").exists()


def test_what_is_no_database_is_said_in_a_line(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "sweep.db").write_text("not a database, but some text that is long enough")
    assert main([]) == 2
    assert main(["--storage", "nonsense"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_empty_database_says_what_to_type(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(f"sqlite:///{results / 'sweep.db'}", create=True).close()
    assert main([]) == 2
    assert "python -m sweep +search=" in capsys.readouterr().err


def test_passwords_stay_out_of_errors(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage", "mysql+nothing://me:geheim@host/db"]) == 2
    assert "geheim" not in capsys.readouterr().err


def test_another_results_folder(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(results, "lora_rank")
    results.rename(results.parent / "other")
    shown = _said(capsys, "--results-dir", "other")
    assert "--storage sqlite:///other/sweep.db" in shown


def test_it_answers_in_about_a_second_without_heavy_imports(results: Path) -> None:
    _fill(results, "lora_rank")
    heavy = ("torch", "optuna", "hydra", "wandb", "numpy", "transformers")
    script = (
        "import sys; from sweep.results.__main__ import main; code = main([]);"
        f"sys.exit(code or ', '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    )
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={
        "PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "80"})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "lora_rank" in ended.stdout
    assert time.perf_counter() - began < 5  # about 0.6 s on an idle core
