"""The search space: Hydra's grammar in, proposals inside the space and complete trials out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweep.config import SweepConfig, compose
from sweep.config.checks import check_batches
from sweep.config.grammar import distribution, parse_value
from sweep.config.leaves import LEAVES, SEARCHABLE
from sweep.space import Dimension, assignment, overlay
from trials.contract import (
    DataFacts,
    DeviceFacts,
    InputError,
    ModelFacts,
    RenderedSample,
    Setup,
    TrialConfig,
    from_json,
    to_json,
)


def read(name: str, text: str) -> BaseDistribution:
    return distribution(name, LEAVES[name], parse_value(name, text), text)


def setup(config: SweepConfig, train_examples: int = 1000) -> Setup:
    return Setup(
        worker="w",
        model=config.model,
        data=config.data,
        model_facts=ModelFacts(
            name="m", revision=None, architecture="a", parameters=1, linear_modules=(),
            presets={}, loaded_bytes=1,
        ),
        data_facts=DataFacts(
            content_hash="h", columns={}, guessed=(), train_examples=train_examples,
            eval_examples=10, mean_length=1.0, max_length=2, truncated=0, dropped=0,
        ),
        device=DeviceFacts(name="d", kind="cpu", memory_bytes=1, dtype="fp32", versions={}),
        rendered=RenderedSample(pieces=()),
        baseline_loss=1.0,
    )  # fmt: skip


def searching(tmp_path: Path, text: str, *overrides: str) -> SweepConfig:
    """A sweep over a search file with this text."""
    (tmp_path / "search").mkdir(exist_ok=True)
    (tmp_path / "search" / "mine.yaml").write_text(text)
    return compose(["+search=mine", *overrides], tmp_path)


def proposals(config: SweepConfig, count: int = 30) -> list[dict[str, Any]]:
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    return [config.space.suggest(study.ask(), config.values) for _ in range(count)]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lora.r", "choice(4, 8)", CategoricalDistribution([4, 8])),
        ("lora.r", "4,8", CategoricalDistribution([4, 8])),
        ("lora.r", "sort(8, 4)", CategoricalDistribution([4, 8])),
        ("lora.r", "int(choice(4.0, 8.0))", CategoricalDistribution([4, 8])),
        ("lora.r", "range(4, 65, 4)", IntDistribution(4, 64, step=4)),
        ("lora.r", "range(1, 10, 2)", IntDistribution(1, 9, step=2)),
        ("lora.r", "range(10, 1, -3)", IntDistribution(4, 10, step=3)),
        ("lora.r", "range(8, 9)", IntDistribution(8, 8)),
        ("lora.r", "int(interval(4, 64))", IntDistribution(4, 64)),
        ("lora.r", "tag(log, int(interval(4, 64)))", IntDistribution(4, 64, log=True)),
        ("lora.r", "tag(log, range(1, 65))", IntDistribution(1, 64, log=True)),
        ("lora.alpha", "choice(8, 16.5)", CategoricalDistribution([8.0, 16.5])),
        ("lora.alpha", "int(interval(4, 64))", IntDistribution(4, 64)),
        ("lora.dropout", "interval(0, 0.5)", FloatDistribution(0.0, 0.5)),
        ("lora.dropout", "range(0, 0.3, 0.1)", FloatDistribution(0.0, 0.2, step=0.1)),
        ("lora.dropout", "range(0.1, 0.75, 0.2)", FloatDistribution(0.1, 0.7, step=0.2)),
        (
            "train.learning_rate",
            "tag(log, interval(1e-5, 2e-3))",
            FloatDistribution(1e-5, 2e-3, log=True),
        ),
        ("lora.rslora", "choice(true, false)", CategoricalDistribution([True, False])),
        ("train.scheduler", "linear,cosine", CategoricalDistribution(["linear", "cosine"])),
        (
            "lora.target_modules",
            "choice(qv, all-linear, q_proj+v_proj, 'up_proj')",
            CategoricalDistribution(["qv", "all-linear", "q_proj+v_proj", "up_proj"]),
        ),
    ],
)
def test_the_grammar(name: str, text: str, expected: BaseDistribution) -> None:
    assert read(name, text) == expected


@pytest.mark.parametrize("name", SEARCHABLE)
def test_every_searchable_leaf_can_be_searched(name: str) -> None:
    leaf = LEAVES[name]
    texts = {"int": "1,2", "float": "0.25,0.5", "bool": "true,false", "modules": "qv,mlp"}
    text = texts.get(leaf.kind) or ",".join(leaf.known[:2])
    config = compose([f"{name}={text}", "budget.ticks=1", "train.batch_size=1"]
                     if name != "train.batch_size" else [f"{name}={text}"])  # fmt: skip
    assert [d.name for d in config.space.dimensions] == [name]
    assert config.space.size() == 2


NUMBERS = st.one_of(
    st.integers(-5, 100), st.floats(-2, 100, allow_nan=False).map(lambda x: round(x, 6))
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([name for name in SEARCHABLE if LEAVES[name].kind in ("int", "float")]),
    st.sampled_from(["interval({}, {})", "int(interval({}, {}))", "range({}, {}, {})",
                     "choice({}, {}, {})", "tag(log, interval({}, {}))", "{},{}",
                     "tag(log, int(interval({}, {})))", "range({}, {})", "sort({}, {})"]),
    NUMBERS, NUMBERS, NUMBERS,
)  # fmt: skip
def test_what_is_accepted_is_inside_the_rules(
    name: str, form: str, a: float, b: float, c: float
) -> None:
    text = form.format(a, b, c)
    try:
        found = read(name, text)
    except InputError as error:
        assert name in str(error) and text in str(error)
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        value = study.ask({name: found}).params[name]
        assert LEAVES[name].holds(LEAVES[name].convert(name, value))
        if "interval" in form:
            assert math.floor(min(a, b)) <= value <= max(a, b)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_choice_is_its_values_or_refused_for_a_repetition(values: list[int]) -> None:
    text = f"choice({','.join(map(str, values))})"
    if len(set(values)) == len(values):
        assert read("lora.r", text) == CategoricalDistribution(values)
    else:
        with pytest.raises(InputError, match="twice"):
            read("lora.r", text)


@given(st.integers(1, 100), st.integers(1, 200), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_a_range_is_python_s(start: int, stop: int, step: int) -> None:
    assume(start < stop)
    text = f"range({start}, {stop}, {step})"
    dimension = Dimension(name="lora.r", distribution=read("lora.r", text), expression=text)
    assert dimension.points() == list(range(start, stop, step))


CONDITIONAL = """
train:
  scheduler: choice(constant, linear, cosine)
  warmup:
    space: interval(0, 0.2)
    when: {train.scheduler: [linear, cosine]}
"""


def test_a_conditional_leaf_is_proposed_only_where_its_condition_holds(tmp_path: Path) -> None:
    config = searching(tmp_path, CONDITIONAL, "train.warmup=0.05")
    assert config.space.frozen == (("train.warmup", 0.05),)
    config = searching(tmp_path, CONDITIONAL)
    assert config.values["train.warmup"] == 0.03
    found = proposals(config)
    assert {("train.warmup" in p) == (p["train.scheduler"] != "constant") for p in found} == {True}
    constant = next(p for p in found if p["train.scheduler"] == "constant")
    assert overlay(config, setup(config), constant, number=0, attempt=0).train.warmup == 0.03


def test_a_settled_condition_disappears(tmp_path: Path) -> None:
    config = searching(tmp_path, CONDITIONAL, "train.scheduler=linear")
    assert [(d.name, d.when) for d in config.space.dimensions] == [("train.warmup", ())]
    config = searching(tmp_path, CONDITIONAL, "train.scheduler=constant", "lora.r=4,8")
    assert [d.name for d in config.space.dimensions] == ["lora.r"]
    assert config.space.frozen == (("train.scheduler", "constant"), ("train.warmup", 0.03))


def test_a_sweep_on_the_command_line_keeps_the_condition(tmp_path: Path) -> None:
    config = searching(tmp_path, CONDITIONAL, "train.warmup=choice(0.1, 0.15)")
    warmup = config.space.dimensions[1]
    assert warmup.points() == [0.1, 0.15]
    assert warmup.when == (("train.scheduler", ("linear", "cosine")),)
    assert config.space.size() == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: {rank: 'choice(4, 8)'}", ["lora.rank", "'lora.r'"]),
        ("loar: {r: 'choice(4, 8)'}", ["loar.r", "'lora.r'"]),
        ("lora: {r: [4, 8]}", ["choice(4, 8)"]),
        ("lora: {r: big}", ["lora.r=big", "whole number"]),
        ("lora: {r: 'choice(4'}", ["cannot be read"]),
        ("model: {name: 'choice(a, b)'}", ["run two studies"]),
        ("budget: {ticks: 'choice(2, 4)'}", ["run two studies"]),
        (
            "train:\n  warmup: {space: interval(0, 0.2), when: {train.scheduler: linear}}",
            ["0.2)", "block form", "    space: interval(0, 0.1)\n    when:"],
        ),
        ("train:\n  warmup: {space: 'interval(0, 0.2)'}", ["space and when"]),
        ("train:\n  warmup: {space: 0.1, when: {lora.r: 4}}", ["space and when"]),
        ("train:\n  warmup: {space: linear, when: {lora.r: 4}}", ["no sweep"]),
        (CONDITIONAL.replace("[linear, cosine]", "[lineal]"), ["lineal", "'linear'"]),
        (CONDITIONAL.replace("[linear, cosine]", "[polynomial]"), ["can never be", "choice("]),
        (CONDITIONAL.replace("[linear, cosine]", "[]"), ["names no value"]),
        (CONDITIONAL.replace("{train.scheduler", "{train.schedler"), ["'train.scheduler'"]),
        (CONDITIONAL.replace("{train.scheduler: [linear, cosine]}", "{model.name: demo}"),
         ["model.name"]),
        (CONDITIONAL.replace("  scheduler: choice(constant, linear, cosine)\n", "").replace(
            "[linear, cosine]", "[cosine]"), ["never be searched", "is linear"]),
        (
            "lora:\n  dropout: interval(0, 0.1)\n  r:\n    space: choice(4, 8)\n"
            "    when: {lora.dropout: 0.05}\n",
            ["interval", "no sense"],
        ),
        (
            "lora:\n  r:\n    space: choice(4, 8)\n    when: {lora.alpha: 8}\n"
            "  alpha:\n    space: choice(8, 16)\n    when: {lora.r: 4}\n",
            ["circle", "lora.r -> lora.alpha -> lora.r"],
        ),
        ("lora: {alpha: 'choice(8, 16)', alpha_ratio: 2}", ["both given"]),
        (
            "lora:\n  r: choice(4, 8)\nbudget:\n  epochs:\n    space: choice(1, 2)\n"
            "    when: {lora.r: 4}\n",
            ["budget.epochs", "under a condition"],
        ),
        ("lora: {r: 8}", ["no dimension"]),
        ("lora: {r: 'choice(4, 8)'}\nexecutor: {workers: 2}", ["executor.workers", "unknown"]),
    ],
)  # fmt: skip
def test_a_bad_search_file(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        searching(tmp_path, text)
    assert [part for part in said if part not in str(caught.value)] == []


def test_constants_set_values_and_the_command_line_wins(tmp_path: Path) -> None:
    text = "lora: {r: 'choice(4, 8)', dropout: 0.1, target_modules: [q_proj, v_proj]}"
    config = searching(tmp_path, text + "\nbudget: {ticks: 4}")
    assert config.values["lora.dropout"] == 0.1
    assert config.values["lora.target_modules"] == ("q_proj", "v_proj")
    assert config.values["budget.ticks"] == 4
    assert searching(tmp_path, text, "lora.dropout=0.2").values["lora.dropout"] == 0.2


def test_a_plain_value_freezes_a_dimension() -> None:
    config = compose(["+search=lora_rank", "lora.r=12"])
    assert config.space.frozen == (("lora.r", 12),)
    assert config.values["lora.r"] == 12
    assert "lora.r" not in {d.name for d in config.space.dimensions}


def test_the_size_counts_conditional_proposals_once(tmp_path: Path) -> None:
    text = CONDITIONAL.replace("interval(0, 0.2)", "choice(0, 0.1, 0.2)")
    config = searching(tmp_path, text, "lora.r=4,8")
    seen = {json.dumps(p, sort_keys=True) for p in proposals(config, 300)}
    assert config.space.size() == len(seen) == 14
    assert compose(["+search=lora_rank"]).space.size() is None
    assert compose(["lora.dropout=range(0, 0.3, 0.1)", "lora.r=4,8"]).space.size() == 6


def test_the_signature_is_json_and_tells_spaces_apart(tmp_path: Path) -> None:
    one = searching(tmp_path, CONDITIONAL).space.signature()
    assert json.loads(json.dumps(one)) == one
    assert one == searching(tmp_path, CONDITIONAL, "seed=5").space.signature()
    other = searching(tmp_path, CONDITIONAL, "train.warmup=interval(0, 0.1)").space.signature()
    assert one["train.scheduler"] == other["train.scheduler"]
    assert one["train.warmup"] != other["train.warmup"]


@pytest.mark.parametrize(
    ("overrides", "params", "alpha"),
    [
        ([], {"lora.r": 8}, 16.0),
        (["lora.alpha_ratio=0.5"], {"lora.r": 8}, 4.0),
        (["lora.alpha=12"], {"lora.r": 8}, 12.0),
    ],
)
def test_alpha(overrides: list[str], params: Mapping[str, Any], alpha: float) -> None:
    config = compose(["lora.r=4,8", *overrides])
    assert overlay(config, setup(config), params, number=0, attempt=0).lora.alpha == alpha


def test_a_trial_is_complete(tmp_path: Path) -> None:
    config = compose(["+search=[full,epochs]", "engine=simulated", "seed=3"])
    for number, params in enumerate(proposals(config, 10)):
        trial = overlay(config, setup(config), params, number=number, attempt=1)
        assert from_json(TrialConfig, to_json(trial)) == trial
        assert (trial.study, trial.number, trial.seed) == ("full+epochs", number, 3)
        assert trial.budget.examples == params["budget.epochs"] * 1000
        assert trial.train.batch_size == params["train.batch_size"]
        assert trial.lora.alpha == params["lora.alpha_ratio"] * params["lora.r"]
        assert trial.engine.name == "simulated"


def test_modules_joined_by_plus_become_several() -> None:
    config = compose(["lora.target_modules=choice(qv, q_proj+v_proj)"])
    trial = overlay(
        config, setup(config), {"lora.target_modules": "q_proj+v_proj"}, number=0, attempt=0
    )
    assert trial.lora.target_modules == ("q_proj", "v_proj")
    assigned = assignment(config, worker="w0", device="cpu", threads=2)
    assert assigned.target_modules == ("qv", ("q_proj", "v_proj"))


def test_an_assignment_names_all_that_may_come() -> None:
    config = compose(["train.batch_size=4,16", "train.optimizer=adamw,sgd", "keep_adapters=0"])
    assigned = assignment(config, worker="w0", device="cuda:0", threads=None)
    assert (assigned.max_batch_size, assigned.optimizers) == (16, ("adamw", "sgd"))
    assert (assigned.adapters_dir, assigned.device) == (None, "cuda:0")
    plain = assignment(compose(["lora.r=4,8"]), worker="w", device="cpu")
    assert plain.adapters_dir and not plain.packing
    packs = compose(["train.packing=choice(true,false)"])
    assert assignment(packs, worker="w", device="cpu").packing


def test_batches_against_epochs_are_checked_once_the_data_is_known() -> None:
    config = compose(["budget.epochs=0.5,1", "train.batch_size=4,32", "budget.ticks=5"])
    check_batches(config, 320)
    with pytest.raises(InputError, match=r"budget\.epochs=0\.5 of 317 examples"):
        check_batches(config, 317)
