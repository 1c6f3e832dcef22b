"""Whatever is typed or written: one message, or a sweep whose trials lie inside its space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from sweeping import Recorder, prepare

from sweep.config import SweepConfig, compose
from sweep.config.grammar import distribution, parse_value
from sweep.config.leaves import LEAVES, SEARCHABLE
from sweep.driver import SweepDriver
from sweep.space import overlay
from trials.contract import InputError, TrialConfig, from_json, to_json


def fixed(examples: int) -> settings:
    """The same examples each time."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


GOOD: Mapping[str, list[Any]] = {  # values that a leaf may have
    "lora.r": [4, 8, 16, 64],
    "lora.alpha": [4, 8.5, 32],
    "lora.alpha_ratio": [0.5, 1, 2],
    "lora.dropout": [0, 0.05, 0.3],
    "lora.target_modules": ["qv", "all-linear", "q_proj+v_proj", "mlp"],
    "lora.rslora": ["true", "false"],
    "train.learning_rate": [1e-5, 3e-4, 2e-3],
    "train.scheduler": ["constant", "linear", "cosine"],
    "train.warmup": [0, 0.03, 0.1],
    "train.batch_size": [1, 4, 8],
    "train.weight_decay": [0, 0.01, 0.1],
    "train.max_grad_norm": [0, 0.3, 1],
    "budget.examples": [400, 800, 1200],
    "budget.epochs": [0.5, 1, 2],
}
TOKENS = ["choice", "interval", "range", "tag", "int", "float", "log", "sort", "shuffle", "glob",
          "cast", "json_str", "str", "bool", "extend_list", "(", ")", "[", "]", "{", "}", ",", ":",
          "=", "'", '"', "${", "$", "}", "\\", "*", "~", "+", "@", "-", "/", ".", "..", " ", "\t",
          "\n", "\0", "\x1b[31m", "\u202e", "\ud800", "é", "1", "0", "-3", "007", "0.5", "1e-4",
          "1e999", "-1e999", "nan", "inf", "null", "true", "No", "qv", "linear", "0x10",
          "9" * 400, "step=", "start=", "space", "when"]  # fmt: skip
NONSENSE = st.one_of(st.lists(st.sampled_from(TOKENS), max_size=10).map("".join), st.text())


@st.composite
def leaf(draw: st.DrawFn) -> tuple[str, str]:
    """A searchable leaf and a text for it: mostly a sweep that makes sense."""
    name = draw(st.sampled_from(sorted(GOOD)))
    if draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(SEARCHABLE)), draw(NONSENSE)
    low, high = sorted(draw(st.lists(st.sampled_from(range(len(GOOD[name]))), min_size=2,
                                     max_size=2)))  # fmt: skip
    ends = GOOD[name][low], GOOD[name][high]
    chosen = draw(st.permutations(GOOD[name]).map(lambda v: v[: 1 + low]))
    forms = [f"choice({','.join(map(str, chosen))})", ",".join(map(str, chosen)), str(ends[0])]
    if not isinstance(ends[0], str):
        forms += [
            f"interval({ends[0]},{ends[1]})", f"int(interval({ends[0]},{ends[1]}))",
            f"tag(log,interval({ends[0]},{ends[1]}))", f"range({ends[0]},{ends[1]},{ends[0]})",
            f"tag(log,int(interval({ends[0]},{ends[1]})))",
        ]  # fmt: skip
    return name, draw(st.sampled_from(forms))


@fixed(600)
@given(st.sampled_from(sorted(LEAVES)), NONSENSE)
@example("lora.r", "9" * 5000)
@example("lora.dropout", "interval(0," + "9" * 400 + ")")
@example("lora.r", "(" * 2000)
@example("train.learning_rate", "tag(log,interval(1e-320,1))")
@example("lora.r", "range(1,1e308)")
@example("lora.target_modules", "choice('\ud800')")
def test_no_text_gets_through_the_grammar_unchecked(name: str, text: str) -> None:
    try:
        value = parse_value(name, text)
        if hasattr(value, "tags"):
            found = distribution(name, LEAVES[name], value, text)
            assert optuna.distributions.distribution_to_json(found)
    except InputError as error:
        assert str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's configuration and results; nothing may appear but what the tests write."""
    place = tmp_path_factory.mktemp("user")
    (place / "conf" / "search").mkdir(parents=True)
    yield place
    assert {path.name for path in place.iterdir()} == {"conf"}


def asked(folder: Path, typed: list[tuple[str, str]], tree: Any) -> SweepConfig | None:
    """The sweep, or null where a message says why there is none."""
    mine = folder / "conf" / "search" / "mine.yaml"
    mine.write_text(json.dumps(tree), encoding="utf-8")
    overrides = ["engine=simulated", "tracking=none", f"results_dir={folder / 'results'}"]
    overrides += ["+search=mine"] if tree else []
    try:
        return compose([*overrides, *(f"{name}={text}" for name, text in typed)], folder / "conf")
    except InputError as error:
        assert str(error)
        return None


def check_trials(config: SweepConfig, count: int = 3) -> None:
    """Proposals obey their conditions and rules, and their trials survive JSON."""
    driver = SweepDriver(config, Recorder())
    setup = prepare(config, driver.connect("w0"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(count):
        params = config.space.suggest(study.ask(), config.values)
        for dimension in config.space.dimensions:
            assert (dimension.name in params) == dimension.active(params, config.values)
            if dimension.name in params:
                value = params[dimension.name]
                inner = dimension.distribution.to_internal_repr(value)
                assert dimension.distribution._contains(inner)
                assert LEAVES[dimension.name].holds(LEAVES[dimension.name].convert("x", value))
        trial = overlay(config, setup, params, number=number, attempt=0)
        assert from_json(TrialConfig, to_json(trial)) == trial
        assert trial.lora.alpha > 0 and trial.lora.r > 0 and trial.budget.examples > 0
        assert trial.train.batch_size * trial.budget.ticks <= trial.budget.examples


@fixed(50)
@given(st.lists(leaf(), min_size=1, max_size=4))
def test_what_is_typed_is_refused_or_trained_within_its_space(
    folder: Path, typed: list[tuple[str, str]]
) -> None:
    config = asked(folder, typed, None)
    event("accepted" if config else "refused")
    if config:
        check_trials(config)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 70), st.floats(-1, 9), NONSENSE)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["lora", "train", "budget", "r", "dropout", "scheduler", "warmup",
                             "space", "when", "train.scheduler", "search", "model", "defaults",
                             "_target_", "engine", "name", ""]),
            inner, max_size=3,
        ),
    ),
    max_leaves=6,
)  # fmt: skip


@st.composite
def search(draw: st.DrawFn) -> dict[str, Any]:
    """A search file: mostly one that makes sense, now and then with anything in it."""
    tree: dict[str, Any] = {}
    for name, text in draw(st.lists(leaf(), min_size=1, max_size=3)):
        group, _, key = name.partition(".")
        tree.setdefault(group, {})[key] = text
    if draw(st.booleans()):
        allowed = draw(st.lists(st.sampled_from(["linear", "cosine", "nosuch"]), max_size=2))
        when = {draw(st.sampled_from(["train.scheduler", "lora.r", "lorra.r"])): allowed}
        tree.setdefault("train", {})["scheduler"] = "choice(constant,linear,cosine)"
        tree["train"]["warmup"] = {"space": "interval(0,0.2)", "when": when}
    if draw(st.integers(0, 3)) == 0:
        tree[draw(st.sampled_from(["lora", "train", "odd", "search"]))] = draw(TREES)
    return tree


@fixed(50)
@given(search())
def test_what_a_file_says_is_refused_or_trained_within_its_space(
    folder: Path, tree: dict[str, Any]
) -> None:
    config = asked(folder, [], tree)
    event("accepted" if config else "refused")
    if config:
        check_trials(config)


NAMES = st.one_of(
    st.sampled_from([
        "..", ".", "../../x", "/etc/x", "a/b", "a\\b", "a\0b", "a" * 101, "a" * 5000, "nul ",
        " a", "a ", "a\n", "ａ", "a\u202eb", "a\u200b", "-rf", "~", "$HOME", "${oc.env:HOME}",
        "recipe", "RECIPE", "sweep.db", "sweep.db-wal", "artifacts", "%2e%2e", "é", "\ud800",
        ".hidden", "a;b", "`id`", "$(id)", "*", "CON", "a..b", "...", "results/../../x",
    ]),
    NONSENSE,
)  # fmt: skip


@fixed(150)
@given(NAMES)
def test_a_study_is_a_folder_of_its_own_or_refused(folder: Path, name: str) -> None:
    from sweep.config.checks import check_study

    results = folder / "results"
    try:
        study = check_study(name, results, f"sqlite:///{results / 'sweep.db'}")
    except InputError as error:
        assert str(error)
        return
    assert study == name and (results / study).resolve().parent == results.resolve()
    assert study.isascii() and study.isprintable() and " " not in study
