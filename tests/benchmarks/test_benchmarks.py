"""The benchmarks measure what they say: at a tiny shape on the CPU, and by their formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import tables
from tests.benchmarks.case import MIXED, Case, Measured, Pace, trial
from tests.benchmarks.clock_profile import KINDS, REST
from tests.benchmarks.launch import Found, run_case
from tests.benchmarks.process import run
from tests.benchmarks.roofline import Load, Rates, base_flops, parts, step_seconds
from tests.benchmarks.shapes import SHAPES, configuration, log_uniform, save_base, write_rows
from trials.base import load_base
from trials.base.targets import linear_modules
from trials.contract import DataConfig, ModelConfig
from trials.data import load_data

ROOT = Path(__file__).parents[2]
H200 = Rates(790e12, 4.3e12, {})


def silent(*_: object) -> None:
    """Progress that nobody looks at."""


def tool(name: str, *words: str) -> str:
    """What a benchmark prints."""
    line = [sys.executable, "-m", f"tests.benchmarks.{name}", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str) -> dict[str, list[str]]:
    """The rows of Markdown tables by their first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]]
             for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


# --- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), [("0.5B", 494_032_768), ("1B", 1_235_814_400), ("8B", 8_030_261_248)]
)
def test_a_shape_is_the_published_one(name: str, parameters: int) -> None:
    from transformers import AutoModelForCausalLM

    shape = SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(shape, "bfloat16", "none"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    layer = {path.rpartition(".")[2]: (module.in_features, module.out_features)
             for path, module in linear_modules(model).items() if ".layers.0." in path}
    assert layer == shape.linears
    numbers = sum(m.weight.numel() for m in linear_modules(model).values())
    assert base_flops(shape) == 4 * numbers


@pytest.mark.parametrize(("kind", "tied"), [("Llama", True), ("Llama", False), ("Qwen2", True)])
def test_a_base_loads_the_same_from_4_bit_files(tmp_path: Path, kind: str, tied: bool) -> None:
    shape = replace(SHAPES["tiny"], kind=kind, tied=tied)
    ids = torch.arange(1, 40)[None]
    logits = []
    for quantisation in ("nf4", "none"):
        folder = save_base(shape, tmp_path / quantisation, "cpu", quantisation)
        base = load_base(ModelConfig(name=str(folder), dtype="fp32"), "cpu", silent)
        with torch.no_grad():
            logits.append(base.model(ids).logits)
    assert logits[0].std() > 0.05
    assert torch.equal(logits[0], logits[1])


def test_rows_have_as_many_tokens_as_asked_for(tmp_path: Path) -> None:
    lengths = [*log_uniform(40, 8, 64), 64]
    folder = save_base(SHAPES["tiny"], tmp_path / "base", "cpu")
    path = write_rows(tmp_path / "rows.jsonl", lengths)
    base = load_base(ModelConfig(name=str(folder)), "cpu", silent)
    config = DataConfig(format="text", path=str(path), text_column="text", loss_on="all",
                        eval_size=1, max_length=65)
    data = load_data(config, base, 0, silent)
    found = [len(example.input_ids) - 1 for side in (data.train, data.eval) for example in side]
    assert sorted(found) == sorted(lengths)
    assert all(sum(example.loss_mask) == len(example.input_ids) - 1 for example in data.train)


# --- the ceiling -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps_per_s"), [("0.5B", 312), ("1B", 158), ("8B", 29)])
def test_the_ceiling_at_an_h200s_rates(name: str, steps_per_s: float) -> None:
    load = Load(r=16, tokens=4 * 182, length=182)
    assert 1 / step_seconds(SHAPES[name], load, H200) == pytest.approx(steps_per_s, rel=0.02)


def test_the_ceiling_grows_with_the_work() -> None:
    small = parts(SHAPES["1B"], Load(r=16, tokens=100, length=50), H200)
    double = parts(SHAPES["1B"], Load(r=32, tokens=200, length=50), H200)
    assert double["base"] == pytest.approx(2 * small["base"])
    assert double["LoRA, FLOPs"] == pytest.approx(4 * small["LoRA, FLOPs"])
    assert double["optimizer"] == pytest.approx(2 * small["optimizer"])


def test_at_the_ceiling_is_all_of_it() -> None:
    seconds = step_seconds(SHAPES["1B"], Load(r=16, tokens=728, length=182), H200)
    pace = Pace(r=16, batch_size=4, steps_per_s=1 / seconds, tokens_per_s=728 / seconds)
    found = found_of(paces=(pace,), data="even")
    assert tables.of_ceiling(found, H200, {"even": 182}) == pytest.approx(1)


# --- the window ------------------------------------------------------------------------------


def case(**changes: Any) -> Case:
    """Three simulated trials at once, a tick of all of them every 10 ms."""
    given: dict[str, Any] = {
        "name": "simulated", "shape": "1B", "engine": "simulated", "device": "cpu", "base": "none",
        "data": "even", "max_length": 64, "window_s": 0.2, "every": 2,
        "options": {"capacity": 3, "seconds_per_tick": 0.01},
    }  # fmt: skip
    return Case(**given | changes)


def found_of(*, paces: tuple[Pace, ...], data: str = "even", **changes: Any) -> Found:
    """What one process found at these paces."""
    return Found(case(data=data, **changes), (Measured(paces=paces),), None, None, 1.0)


def test_the_window_sees_every_trial_and_counts_its_steps(tmp_path: Path) -> None:
    measured = run(case(), 0, tmp_path)
    assert measured.reason is None
    assert len(measured.paces) == measured.capacity == 3
    assert measured.steps >= 3 * 2 and measured.steps % 2 == 0
    assert all(pace.tokens_per_s == pytest.approx(400 * pace.steps_per_s)
               for pace in measured.paces)  # 4 examples of the simulated 100 tokens
    assert 0 < measured.least_grad_norm <= measured.grad_norm


def test_fewer_trials_than_the_capacity(tmp_path: Path) -> None:
    assert len(run(case(trials=2), 0, tmp_path).paces) == 2


def test_a_trial_that_fails_is_replaced_and_some_more_end_the_case(tmp_path: Path) -> None:
    once = case(options={"capacity": 2, "seconds_per_tick": 0.01, "faults": ["oom@1:1"]})
    assert len(run(once, 0, tmp_path).paces) >= 1
    always = {"capacity": 1, "faults": [f"oom@{number}:1" for number in range(9)]}
    reason = run(case(options=always), 0, tmp_path).reason
    assert reason is not None and "memory" in reason


def test_processes_measure_together(tmp_path: Path) -> None:
    found = run_case(case(processes=2), tmp_path, 300)
    assert found.reason is None
    assert [len(one.paces) for one in found.measured] == [3, 3]


def test_a_process_that_dies_ends_the_case_with_its_code(tmp_path: Path) -> None:
    dying = {"capacity": 1, "seconds_per_tick": 0.01, "faults": ["exit@0:1"]}
    found = run_case(case(processes=2, options=dying), tmp_path, 300)
    assert found.reason is not None and found.reason.startswith("process 0 ended with code 3")


def test_a_case_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    found = run_case(case(window_s=600.0), tmp_path, 3)
    assert found.reason is not None and found.reason.startswith("out of time")


def test_mixed_trials_have_every_rank_and_batch_size() -> None:
    trials = [trial(case(mixed=True), number) for number in range(16)]
    pairs = {(one.lora.r, one.train.batch_size) for one in trials}
    assert len(pairs) == 16
    assert {r for r, _ in pairs} == set(MIXED["r"])
    assert len({one.budget for one in trials}) == 1


# --- the tables ------------------------------------------------------------------------------


def test_processes_add_up_and_the_best_trl_is_1() -> None:
    pace = Pace(r=16, batch_size=4, steps_per_s=2.0, tokens_per_s=1456.0)
    one = found_of(paces=(pace,), engine="plain", name="plain-1")
    two = replace(one, case=replace(one.case, name="plain-2"), measured=one.measured * 2)
    trl = found_of(paces=(pace,) * 3, engine="trl", name="trl-3")
    pack = found_of(paces=(pace,) * 6, engine="packed", name="packed")
    founds = [one, two, trl, pack]
    shown = rows(tables.speed_table(founds, H200, {"even": 182}))
    assert [shown[found.case.name][2:4] for found in founds] == [
        ["0.50x", "0.33x"], ["1.00x", "0.67x"], ["1.50x", "1.00x"], ["3.00x", "2.00x"]]
    assert shown["packed"][:2] == ["6", "12"]
    said = tables.goal_lines("1B", founds, H200, {"even": 182})
    assert "packed over plain-2, the best TRL: 3.00x (3.00x with evaluation); to reach 7x" in said
    assert "packed over trl-3, the best engine=trl: 2.00x (2.00x with evaluation)." in said


def test_a_case_that_fails_shows_its_reason() -> None:
    pace = Pace(r=16, batch_size=4, steps_per_s=2.0, tokens_per_s=1456.0)
    failed = replace(found_of(paces=(), name="packed", engine="packed"), reason="no | memory")
    done = found_of(paces=(pace,), name="trl-1", engine="trl")
    shown = rows(tables.speed_table([failed, done], H200, {"even": 182}))
    assert shown["packed"][1] == "no / memory"
    assert shown["trl-1"][3] == "1.00x"


# --- as they are run -------------------------------------------------------------------------


@pytest.fixture
def with_bases(tmp_path: Path) -> Path:
    """A folder of benchmarks that have been run before, so that no base is written anew."""
    for quantisation in ("nf4", "none"):
        save_base(SHAPES["tiny"], tmp_path / f"tiny-{quantisation}", "cpu", quantisation)
    return tmp_path


def test_trl_and_both_engines_side_by_side(with_bases: Path) -> None:
    words = ["--device", "cpu", "--shapes", "tiny", "--threads", "1", "--window-s", "0.2",
             "--case-s", "240", "--folder", str(with_bases)]
    kept = with_bases / "found.jsonl"
    cases = ["plain-1", "trl-1", "packed-2"]
    shown = rows(tool("packed_speed", *words, "--json", str(kept), "--cases", *cases))
    for name in cases:
        assert shown[name][0] == name.rpartition("-")[2]
        assert float(shown[name][1]) > 0
    found = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [len(one["measured"]) for one in found] == [1, 1, 1]
    assert all(one["least_grad_norm"] > 0 for each in found for one in each["measured"])


def test_a_whole_sweep_is_timed(with_bases: Path) -> None:
    words = ["--device", "cpu", "--shape", "tiny", "--trials", "4", "--steps", "10",
             "--folder", str(with_bases), "--runs", "simulated-2"]
    shown = rows(tool("whole_sweep", *words))["simulated-2"]
    wall_clock, before, after = map(float, shown[:3])
    rounded = 3 * 0.05  # three figures, each shown in tenths
    assert before > 0 and after > 0 and before + after <= wall_clock + rounded
    assert shown[3] == "4 of 4"
    assert int(shown[4]) + int(shown[5]) == 4


def test_a_sweep_that_has_no_time_left_is_a_line_that_says_so(with_bases: Path) -> None:
    shown = rows(tool("whole_sweep", "--device", "cpu", "--shape", "tiny", "--budget-s", "1",
                      "--folder", str(with_bases), "--runs", "packed", "trl-1"))
    assert shown["packed"][0] == shown["trl-1"][0] == "not run: no time left"


def test_calls_of_the_driver_are_timed() -> None:
    found = rows(tool("driver_overhead", "--trials", "20", "--live", "2"))["2"]
    assert found[0] == "20"
    assert all(float(cell) > 0 for cell in found[1:6])


@pytest.mark.gpu
def test_a_clocks_time_is_told_by_kind(with_bases: Path) -> None:
    shown = rows(tool("clock_profile", "--shapes", "tiny", "--folder", str(with_bases)))
    spent = {kind: float(shown[kind][0]) for kind in (*KINDS, REST, "gaps")}
    assert min(spent[kind] for kind in ("products", "LoRA", "losses", "optimizer", REST)) > 0
    assert 0 <= spent["gaps"] < float(shown["all"][0])
