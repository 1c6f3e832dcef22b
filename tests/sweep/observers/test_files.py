"""The study's folder: what lies there, whole at every moment, and the recipe that loads again."""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from pathlib import Path

import pytest
import staged

from sweep.config import SweepConfig, compose
from sweep.observers import Closed
from sweep.observers.console import PlainConsole
from sweep.observers.files import Files
from sweep.observers.tally import Tally
from sweep.results.recipe import render
from trials.contract import CONTINUE, Outcome, Setup, TrialConfig, from_json


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return staged.config(tmp_path / "results")


def _rows(config: SweepConfig) -> list[dict[str, str]]:
    with (config.study_dir / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_everything_of_a_sweep_lies_in_its_folder(config: SweepConfig) -> None:
    staged.play(Files(), config)
    folder = config.study_dir
    names = sorted(str(p.relative_to(config.results_dir)) for p in config.results_dir.rglob("*"))
    trials = [f"lora_rank/trials/{number}.json" for number in range(6)]
    assert names == sorted(
        ["lora_rank", "lora_rank/config.yaml", "lora_rank/setup.json", "lora_rank/trials",
         "lora_rank/trials.csv", "recipe", "recipe/lora_rank.yaml", *trials]
    )  # fmt: skip
    assert (folder / "config.yaml").read_text() == config.resolved
    assert from_json(Setup, (folder / "setup.json").read_text()) == staged.setup(config, "$")
    stored = from_json(TrialConfig, (folder / "trials" / "4.json").read_text())
    assert stored == staged.trial(config, 4)


def test_the_table_has_a_row_for_each_trial(config: SweepConfig) -> None:
    staged.play(Files(), config)
    rows = _rows(config)
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["outcome"] for row in rows][:4] == ["complete", "pruned", "failed", "diverged"]
    best = rows[5]
    assert float(best["eval_loss"]) == pytest.approx(staged.losses(5)[-1])
    assert float(best["first_rung_loss"]) == pytest.approx(staged.losses(5)[0])
    assert (best["lora.r"], best["train.learning_rate"]) == ("4", "0.0002")
    assert (best["ticks"], best["examples"], best["trainable_parameters"]) == ("4", "160", "1234")
    assert rows[1]["reason"] == "asha: not among the best third"


def test_a_row_is_there_as_soon_as_its_trial_ended(config: SweepConfig) -> None:
    files = Files()
    files.opened(staged.opened(config))
    for number in range(3):
        staged.run_trial(files, config, number)
        assert len(_rows(config)) == number + 1


def test_text_is_no_formula_to_a_spreadsheet(config: SweepConfig) -> None:
    files = Files()
    files.opened(staged.opened(config))
    staged.run_trial(files, config, 0, Outcome.FAILED, '=HYPERLINK("http://x")\n\x1b[2J')
    assert _rows(config)[0]["reason"] == '\'=HYPERLINK("http://x")␊␛[2J'


def test_earlier_trials_keep_their_rows(config: SweepConfig) -> None:
    past = staged.play(Files(), config, trials=3)
    files = Files()
    files.opened(staged.opened(config, past))
    staged.run_trial(files, config, 4)
    assert [row["number"] for row in _rows(config)] == ["0", "1", "2", "4"]


def _with_adapters(config: SweepConfig, trials: int) -> set[str]:
    files = Files()
    files.opened(staged.opened(config))
    adapters = config.study_dir / "adapters"
    for number in range(trials):
        (adapters / str(number)).mkdir(parents=True)
        (adapters / str(number) / "adapter_model.safetensors").write_bytes(b"x")
        pruned = number == trials - 1
        outcome = Outcome.PRUNED if pruned else Outcome.COMPLETE
        staged.run_trial(files, config, number, outcome, adapter=str(adapters / str(number)))
    return {path.name for path in adapters.iterdir()}


KEPT = [(0, set()), (1, {"3"}), (2, {"2", "3"}), (9, {"0", "1", "2", "3", "4"})]


@pytest.mark.parametrize(("keep", "kept"), KEPT)
def test_the_best_adapters_stay(tmp_path: Path, keep: int, kept: set[str]) -> None:
    config = staged.config(tmp_path / "results", f"keep_adapters={keep}")
    assert _with_adapters(config, 5) == kept  # the last was pruned
    assert {row["number"] for row in _rows(config) if row["adapter"]} == kept  # before the end


def test_only_the_studys_own_adapters_are_deleted(tmp_path: Path) -> None:
    config = staged.config(tmp_path / "results", "keep_adapters=0")
    files, elsewhere = Files(), tmp_path / "mine"
    elsewhere.mkdir()
    files.opened(staged.opened(config))
    staged.run_trial(files, config, 0, adapter=str(elsewhere))
    staged.run_trial(files, config, 1, adapter=str(config.study_dir / "adapters" / ".." / "trials"))
    assert elsewhere.is_dir() and (config.study_dir / "trials").is_dir()


def test_the_recipe_composes_to_the_best_trial(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged.play(Files(), config)
    monkeypatch.chdir(config.results_dir.parent)
    loaded = compose(["+recipe=lora_rank", "+search=dropout", "tracking=none"])
    best = staged.trial(config, 5)
    assert loaded.values["lora.r"] == best.lora.r
    assert loaded.values["lora.alpha"] == best.lora.alpha
    assert loaded.values.get("lora.alpha_ratio") is None
    assert tuple(loaded.values["lora.target_modules"]) == best.lora.target_modules
    assert loaded.values["train.learning_rate"] == best.train.learning_rate
    assert loaded.values["budget.examples"] == best.budget.examples
    assert loaded.model == dataclasses.replace(best.model, dtype="auto")
    assert loaded.data == dataclasses.replace(best.data, content_hash=None)
    assert [d.name for d in loaded.space.dimensions] == ["lora.dropout"]


def test_a_group_typed_beside_a_recipe_stays_whole(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    staged.play(Files(), config)
    monkeypatch.chdir(config.results_dir.parent)
    Path("my.jsonl").touch()
    typed = ["model=demo", "data=local", "data.path=my.jsonl", "lora.r=3", "tracking=none"]
    loaded = compose(["+recipe=lora_rank", "+search=dropout", *typed])
    plain = compose(["+search=dropout", *typed])
    assert (loaded.model, loaded.data) == (plain.model, plain.data)
    assert loaded.data.format == "completion" and loaded.study == "dropout"
    best = staged.trial(config, 5)
    assert (loaded.values["lora.r"], loaded.values["lora.alpha"]) == (3, best.lora.alpha)
    assert loaded.from_recipe == ("lora", "train", "budget")
    stream = io.StringIO()
    PlainConsole(loaded, stream).opened(staged.opened(loaded))
    assert "gave lora, train, budget" in stream.getvalue()


def test_the_recipe_follows_the_best_trial(config: SweepConfig) -> None:
    files, recipe = Files(), config.results_dir / "recipe" / "lora_rank.yaml"
    files.opened(staged.opened(config))
    staged.run_trial(files, config, 2)
    first = recipe.read_text()
    staged.run_trial(files, config, 1)  # worse
    assert recipe.read_text() == first
    staged.run_trial(files, config, 3)
    assert "trial 3 of study lora_rank" in recipe.read_text()
    assert recipe.read_text().startswith("# python -m sweep +recipe=lora_rank")


def test_the_end_repairs_a_recipe_that_a_crash_left_behind(config: SweepConfig) -> None:
    records = staged.play(Files(), config)
    recipe = config.results_dir / "recipe" / "lora_rank.yaml"
    recipe.unlink()
    files = Files()
    files.opened(staged.opened(config, records))
    files.closed(Closed(complete=True, reason="done", records=records))
    assert "trial 5 of" in recipe.read_text()


@pytest.mark.parametrize("rate", [1e-5, 2e-05, 0.0003, 1.0, 123456789.0])
def test_numbers_in_a_recipe_are_numbers(config: SweepConfig, rate: float) -> None:
    import yaml

    trial = staged.trial(config, 0)
    trial = dataclasses.replace(
        trial, train=dataclasses.replace(trial.train, learning_rate=rate, optimizer="no")
    )
    loaded = yaml.safe_load(render(trial, 1.0))
    assert loaded["train"]["learning_rate"] == rate
    assert loaded["train"]["optimizer"] == "no"


def test_2000_trials_cost_little_each(tmp_path: Path) -> None:
    config = staged.config(tmp_path, n_trials=2000)
    files, seen = Files(), Tally(staged.opened(config))
    for number in range(1999):
        staged.run_trial(seen, config, number)
    files.opened(staged.opened(config, list(seen.records.values())))
    trial, last = staged.trial(config, 1999), staged.report(1999, 4, 1.0)
    files.started(trial, staged.params(1999), "w0")
    files.reported(last, CONTINUE)
    began = time.perf_counter()
    files.finished(trial, staged.result(last, 1999, Outcome.COMPLETE))
    assert time.perf_counter() - began < 0.1  # about 5 ms
    assert len(_rows(config)) == 2000
