"""The command line becomes one checked SweepConfig, or one message that says what to type."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sweep.config import SweepConfig, compose
from sweep.secrets import masked
from sweep.store.database import shown
from trials.contract import InputError

RANK = "+search=lora_rank"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        compose(overrides, config_dir)
    return str(caught.value)


BAD: list[tuple[Sequence[str], Sequence[str]]] = [
    # unknown names: the nearest, and the known ones
    (["modle=demo", RANK], ["modle", "model=", "Groups"]),
    (["model=dem", RANK], ["'demo'", "llama3_1_8b"]),
    (["+search=lora_rnk"], ["'lora_rank'", "target_modules"]),
    (["+search=[lora_rank,alpah]"], ["'alpha'"]),
    (["pruner=ahsa", RANK], ["'asha'", "hyperband"]),
    (["lora.rank=8", RANK], ["lora.rank", "'lora.r'", "lora.dropout"]),
    (["train.lr=1e-3", RANK], ["'train.learning_rate'"]),
    (["n_trial=3", RANK], ["'n_trials'"]),
    (["train.scheduler=cosin", RANK], ["'cosine'", "linear"]),
    (["train.optimizer=adam", RANK], ["'adamw'", "sgd"]),
    (["model.quantisation=nf8", RANK], ["'nf4'", "int8"]),
    (["pruner.min_fractoin=0.5", RANK], ["pruner=asha", "'pruner.min_fraction'"]),
    (["pruner=none", "pruner.min_fraction=0.5", RANK], ["no options"]),
    (["executor=inline", "executor.workers=4", RANK], ["executor=inline", "state_every_s"]),
    (["lorra.r=4,8"], ["lorra.r", "'lora.r'"]),
    (["+recipe=best", RANK], ["recipe", "no recipe yet"]),
    # Hydra's own grammar and habits
    (["search=lora_rank"], ["+search=lora_rank", "plus"]),
    (["lora.r", RANK], ["key=value"]),
    (["lora.r=choice(1", RANK], ["cannot be read", "choice(4, 8, 16)"]),
    (["~lora.r", RANK], ["nothing can be deleted"]),
    (["hydra.run.dir=/tmp/x", RANK], ["results_dir"]),
    (["lora@x=default", RANK], ["without @"]),
    (["model=[demo,hub]", RANK], ["one file"]),
    (["lora={r:3}", RANK], ["lora.key="]),
    (["model=null", RANK], ["demo"]),
    (["search.lora.r=4,8"], ["Type lora.r="]),
    (["study=${nothing}", RANK], ["study", "nothing"]),
    # types and bounds
    (["lora.r=8.5", RANK], ["lora.r=8.5", "whole number"]),
    (["lora.r=8.5,16"], ["8.5 is not", "whole number"]),
    (["lora.r=1e400", RANK], ["lora.r=inf", "whole number"]),
    (["lora.r=true", RANK], ["lora.r=true", "whole number"]),
    (["lora.r=", RANK], ["lora.r", "whole number"]),
    (["lora.r=0", RANK], ["at least 1"]),
    (["lora.dropout=1", RANK], ["below 1"]),
    (["lora.rslora=1", RANK], ["true or false"]),
    (["lora.target_modules=[]", RANK], ["preset"]),
    (["train.learning_rate=0", RANK], ["above 0"]),
    (["train.learning_rate=inf", RANK], ["above 0"]),
    (["train.warmup=-0.1", RANK], ["at least 0"]),
    (["n_trials=0", RANK], ["at least 1"]),
    (["seed=-1", RANK], ["at least 0"]),
    (["keep_adapters=-1", RANK], ["at least 0"]),
    (["executor.workers=0", RANK], ["at least 1"]),
    (["pruner.min_fraction=1.5", RANK], ["at most 1"]),
    (["n_trials=10000000", RANK], ["at most 1000000"]),
    ([f"n_trials=1{'0' * 400}", RANK], ["at most 1000000"]),
    (["executor.workers=5000", RANK], ["at most 1024"]),
    (["seed=-1", RANK], ["at most 4294967295"]),
    (["engine=simulated", "engine.capacity=0", RANK], ["at least 1"]),
    (["engine=simulated", "engine.seconds_per_tick=-1", RANK], ["at least 0"]),
    (["engine=simulated", "engine.noise=inf", RANK], ["at least 0"]),
    (["engine=simulated", "engine.faults=3", RANK], ["kind@trial:tick"]),
    (["engine=simulated", "engine.faults=[boom@1:2]", RANK], ["boom", "crash@3:2"]),
    (["budget.examples=null", RANK], ["budget.examples=1200", "budget.epochs=1"]),
    (["study=sweep.db", RANK], ["taken", "study=my_sweep.db"]),
    (["study=recipe", RANK], ["taken", "study=my_recipe"]),
    (["study=artifacts", RANK], ["taken", "study=my_artifacts"]),
    (["samples=65", RANK], ["at most 64"]),
    (["samples=0", "samples_at_ticks=true", RANK], ["Type samples=3"]),
    (["lora.r=interval(64,4)"], ["'int(interval(4, 64))'"]),
    (["lora.r=int(interval(4.5,8))"], ["4.5", "'int(interval(4, 8))'"]),
    (["lr=1", RANK], ["'train.learning_rate'"]),
    (["rank=1", RANK], ["'lora.r'"]),
    (["epochs=1", RANK], ["'budget.epochs'"]),
    (["Lora.R=1", RANK], ["Did you mean 'lora.r'"]),
    (["train.optimizer=AdamW", RANK], ["Did you mean 'adamw'"]),
    (["lora.r=${(}"], ["lora.r", "cannot be read"]),
    (["data=hub", "data.path=https://me:hush@host/x", RANK], ["data.path", "***", "HF_TOKEN"]),
    (["data=hub", 'data.path="https://h/x?token=hush"', RANK], ["token=***", "HF_TOKEN"]),
    (["data=local", RANK], ["data.path", "Type data.path="]),
    (["model=hub", RANK], ["Type model.name="]),
    # what is not searchable
    (["model=demo,hub"], ["run two studies"]),
    (["+search=lora_rank,alpha"], ["run two studies", "+search=[a,b]"]),
    (["model.name=a,b"], ["run two studies"]),
    (["data.max_length=128,256"], ["run two studies"]),
    (["budget.ticks=4,8"], ["run two studies"]),
    (["seed=1,2"], ["run two studies"]),
    (["pruner.min_fraction=0.1,0.2"], ["run two studies"]),
    # sweeps
    (["lora.dropout=interval(0.3, 0.1)"], ["low 0.3", "high 0.1"]),
    (["lora.dropout=interval(0, 1)"], ["below 1"]),
    (["train.weight_decay=tag(log, interval(0, 1))"], ["logarithmic", "above 0"]),
    (["lora.r=choice()"], ["empty"]),
    (["lora.r=choice(8, 8)"], ["twice"]),
    (["lora.alpha=choice(1, 1.0)"], ["twice"]),
    (["lora.r=choice(8, big)"], ["big", "whole number"]),
    (["lora.r=interval(4, 64)"], ["lora.r='int(interval(4, 64))'"]),
    (["lora.r=tag(log, interval(4, 64))"], ["lora.r='tag(log, int(interval(4, 64)))'"]),
    (["lora.r=range(8, 8)"], ["no value"]),
    (["lora.r=range(0, 8, 2)"], ["at least 1"]),
    (["lora.r=tag(log, range(1, 64, 2))"], ["no step"]),
    (["lora.r=tag(lgo, choice(1, 2))"], ["log, int"]),
    (["lora.r=shuffle(choice(1, 2))"], ["shuffle"]),
    (["lora.r=glob(*)"], ["glob"]),
    (["lora.rslora=interval(0, 1)"], ["only a choice"]),
    (["lora.target_modules=choice([q_proj,v_proj],qv)"], ["q_proj+v_proj"]),
    (["lora.r=[choice(1,2)]"], ["stands alone"]),
    # two values that do not go together
    (["lora.alpha=16", "lora.alpha_ratio=2", "lora.r=4,8"], ["both given", "null"]),
    (["lora.alpha=16", RANK], ["both given", "lora.alpha_ratio=null"]),
    (["lora.alpha=8,16", RANK], ["both given"]),
    (["budget.examples=100", "budget.epochs=1", RANK], ["both given"]),
    (["budget.examples=100", "+search=epochs"], ["both given"]),
    (["train.batch_size=256", RANK], ["larger than a tick", "240", "budget.ticks=4"]),
    (["train.batch_size=8,500", "lora.r=4,8"], ["train.batch_size=500"]),
    (["budget.examples=30,2000"], ["budget.examples=30", "larger than a tick"]),
    (["sampler=grid", RANK], ["train.learning_rate", "choice"]),
    (["pruner=threshold", RANK], ["pruner.upper="]),
    (["pruner=threshold", "pruner.upper=1", "pruner.lower=2", RANK], ["not below"]),
    # places
    (["study=../x", RANK], ["'../x'", "Type study=x"]),
    (["study=.hidden", RANK], ["study"]),
    (["study=a/b", RANK], ["study=a_b"]),
    (["study=日本語", RANK], ["'日本語'", "letters, digits and . _ + = -", "Type study=my_study"]),
    (["study=a~b", RANK], ["Type study=a_b"]),
    (["lora.r=é", RANK], ["lora.r=é is not a whole number"]),
    (["model=é", RANK], ["'é' is unknown", "llama3_1_8b"]),
    (["device=é", RANK], ["'é' is unknown", "cuda"]),
    ([f"study={'x' * 101}", RANK], ["100"]),
    (["study=recipe", RANK], ["taken"]),
    (["storage=results/x.db", RANK], ["Type storage=sqlite:///results/x.db"]),
    (["storage=sqlite://", RANK], ["not a file"]),
    (["storage=postgre://u:p@h/d", RANK], ["'postgresql'"]),
    (["device=gpu", RANK], ["'cuda'", "cpu"]),
    (["device=cuda:x", RANK], ["cuda:0"]),
    (["data=local", "data.path=nope.jsonl", RANK], ["nope.jsonl", "no such file"]),
    (["model=local", "model.name=./nope", RANK], ["./nope", "no such file"]),
    (["tracking.mode=online", RANK], ["WANDB_API_KEY", "tracking.mode=offline"]),
    (["tracking.mode=onlin", RANK], ["'online'"]),
    (["tracking=[wandb,tensorbord]", RANK], ["'tensorbord'", "'tensorboard'"]),
    (["tracking=[none,wandb]", RANK], ["none goes with no other", "tracking=[wandb]"]),
    (["tracking=tensorboard", "tracking.mode=offline", RANK], ["tracking.mode", "close_timeout_s"]),
    (["data=local", "data.path=wandb:me/data", RANK], ["wandb:entity/project/name:v4"]),
    # nothing to search
    ([], ["+search=lora_rank", "How large must the rank be?", "target_modules"]),
    (["+search=dropout", "lora.dropout=0.1"], ["Nothing is left", "lora.dropout"]),
]


@pytest.mark.parametrize(("overrides", "said"), BAD, ids=lambda part: " ".join(part)[:60])
def test_bad_input_gets_one_message_and_leaves_nothing(
    overrides: Sequence[str], said: Sequence[str], place: Path
) -> None:
    text = message(*overrides)
    assert [part for part in said if part not in text] == []
    assert "Traceback" not in text
    assert list(place.iterdir()) == []


def test_a_sweep_is_complete_and_leaves_nothing(place: Path) -> None:
    config = compose([RANK])
    assert isinstance(config, SweepConfig)
    assert config.study == "lora_rank"
    assert config.storage == f"sqlite:///{place}/results/sweep.db"
    assert config.study_dir == place / "results" / "lora_rank"
    assert {d.name for d in config.space.dimensions}.isdisjoint(config.values)
    assert config.values["train.batch_size"] == 8
    assert list(place.iterdir()) == []


def test_two_sweeps_in_one_process() -> None:
    assert compose([RANK]) == compose([RANK])
    assert not GlobalHydra.instance().is_initialized()


def test_values_of_the_command_line_win() -> None:
    config = compose([RANK, "seed=7", "n_trials=3", "study=007", "model.name=org/m", "device=cpu"])
    assert (config.seed, config.limits.n_trials, config.study) == (7, 3, "007")
    assert (config.model.name, config.device) == ("org/m", "cpu")


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_plus_before_a_leaf_changes_nothing(plus: str) -> None:
    config = compose([f"{plus}lora.r=4,8", f"{plus}lora.dropout=0.25"])
    assert [d.name for d in config.space.dimensions] == ["lora.r"]
    assert config.values["lora.dropout"] == 0.25


@pytest.mark.parametrize(
    ("overrides", "study"),
    [
        (["+search=[lora_rank,schedule]"], "lora_rank+schedule"),
        (["+search=lora_rank", "+search=schedule"], "lora_rank+schedule"),
        (["lora.r=4,8", "train.learning_rate=1e-4,1e-3"], "r+learning_rate"),
        ([RANK, "study=mine"], "mine"),
    ],
)
def test_the_study_is_named_after_its_search(overrides: list[str], study: str) -> None:
    assert compose(overrides).study == study


def test_what_is_asked_for_displaces_what_a_file_of_a_group_says() -> None:
    config = compose(["lora=qlora_paper", RANK])
    assert config.values["lora.alpha"] is None
    config = compose(["budget.epochs=2", RANK])
    assert (config.values["budget.examples"], config.values["budget.epochs"]) == (None, 2.0)
    config = compose(["lora.alpha=16", "lora.alpha_ratio=null", RANK])
    assert config.values["lora.alpha"] == 16.0


def test_secrets_stay_out_of_what_is_written() -> None:
    for url in ("sqlite:////tmp/a.db?password=hush", "nosuch://me:hush@host/db"):
        assert "hush" not in masked(message(RANK, f"storage='{url}'"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush@host/db",
        "postgresql://me:p@hush@host/db",
        "postgresql://me:hush/p@host/db",
        "postgresql://host/db?user=me&password=hush",
        "postgresql://host/db?PassWd=hush&x=1",
        "postgresql://host/db?sslpassword=hush",
        "postgresql://host/db?token=hush",
        "postgresql://host/db?api_key=hush",
    ],
)
def test_a_url_is_shown_without_what_is_secret_in_it(url: str) -> None:
    assert "hush" not in masked(f"see storage={url} now") and "hush" not in shown(url)
    assert "host/db" in masked(url) and "host/db" in shown(url)
    assert masked(f"see {url} now").endswith(" now")


def test_the_resolved_configuration_is_complete(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    config = compose([RANK, "lora.dropout=0.2", "train.learning_rate=1e-4"])
    tree = OmegaConf.create(config.resolved)
    assert tree.lora.dropout == 0.2
    assert tree.search.lora.r == "choice(4, 8, 16, 32, 64)"
    assert tree.study == "lora_rank"
    assert tree.train.max_grad_norm == 1.0


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own" / "search").mkdir(parents=True)
    mine = tmp_path / "own" / "search" / "mine.yaml"
    mine.write_text("defaults: [lora_rank, schedule]\nlora: {dropout: 0.1}\n")
    config = compose(["+search=mine", "model=hub", "model.name=a/b"], tmp_path / "own")
    names = [d.name for d in config.space.dimensions]
    assert names[:2] == ["lora.r", "lora.alpha_ratio"] and "train.warmup" in names
    assert config.values["lora.dropout"] == 0.1
    assert "--config-dir" in config.command
    mine.write_text("lora: [")
    assert "cannot be composed" in message("+search=mine", config_dir=tmp_path / "own")
    assert "no such folder" in message(RANK, config_dir=tmp_path / "none")


def test_a_recipe_is_where_the_results_are(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "recipe"
    folder.mkdir(parents=True)
    (folder / "lora_rank+schedule.yaml").write_text(
        "# python -m sweep +recipe=...\n# @package _global_\n"
        "lora: {r: 24, alpha: 12.0, alpha_ratio: null}\n"
        "budget: {examples: null, epochs: 1.5}\n"
    )
    overrides = ["results_dir=elsewhere", "+recipe=lora_rank+schedule", "+search=learning_rate"]
    config = compose(overrides)
    assert (config.values["lora.r"], config.values["lora.alpha"]) == (24, 12.0)
    assert config.values["budget.epochs"] == 1.5
    assert "lora_rank+schedule" in message("results_dir=elsewhere", "+recipe=lora", RANK)


@pytest.mark.parametrize(
    "typed",
    ["lora.r=interval(0, 8)", "lora.r=interval(1.5, 8)", "lora.r=interval(0.2, 0.8)",
     "lora.r=interval(-9, -1)", "lora.r=tag(log, interval(0, 8.5))", "lora.r=interval(8, 0)",
     "lora.r=int(interval(0.5, 8))", "lora.alpha=int(interval(0.5, 8))",
     "lora.alpha=tag(int, interval(0.5, 8))", "lora.dropout=int(interval(0.1, 0.5))",
     "train.weight_decay=tag(log, int, interval(0.1, 8))"],
)  # fmt: skip
def test_an_interval_that_a_message_advises_works(typed: str) -> None:
    advice = re.search(r"Type (\S+='.+')", message(typed))
    assert advice is not None
    assert compose(shlex.split(advice[1])).space.dimensions[0].name == typed.partition("=")[0]


def test_whole_numbers_may_have_a_point(tmp_path: Path) -> None:
    typed = ("lora.r=8.0", "n_trials=1e3", "engine=simulated", "engine.capacity=4.0")
    config = compose([RANK, *typed])
    whole = (config.values["lora.r"], config.limits.n_trials, config.engine.options["capacity"])
    assert whole == (8, 1000, 4) and {type(number) for number in whole} == {int}
    (tmp_path / "own" / "search").mkdir(parents=True)
    mine = tmp_path / "own" / "search" / "mine.yaml"
    mine.write_text("lora: {r: 8.0}\ntrain: {batch_size: 'choice(4.0, 8)'}\n")
    config = compose(["+search=mine"], tmp_path / "own")
    assert repr((config.values["lora.r"], config.space.dimensions[0].points())) == "(8, [4, 8])"


@pytest.mark.parametrize(
    ("point", "none"),
    [("4.0,8", "4,8"), ("choice(4.0, 8)", "choice(4, 8)"), ("range(4.0, 9.0, 2)", "range(4, 9, 2)"),
     ("int(interval(4.0, 8.0))", "int(interval(4, 8))")],
)  # fmt: skip
def test_whole_numbers_in_a_search_may_have_a_point(point: str, none: str) -> None:
    one, other = (compose([f"lora.r={text}"]).space.dimensions[0] for text in (point, none))
    assert repr(one.distribution) == repr(other.distribution)


@pytest.mark.parametrize("name", ["données.jsonl", "日本.jsonl", "a~b#1.jsonl", "~/x.jsonl"])
def test_a_text_with_any_characters_needs_no_quotes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / Path(name).name).write_text("{}\n")
    typed = [f"data.path={name}", f'data.path="{name}"']
    paths = {compose(["data=local", path, RANK]).data.path for path in typed}
    assert paths == {str(tmp_path / Path(name).name)}


def test_local_paths_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text("{}\n")
    config = compose(["data=local", "data.path=my.jsonl", RANK])
    assert config.data.path == str(tmp_path / "my.jsonl")
    for place in range(20):
        (tmp_path / f"part-{place}.parquet").touch()
    (tmp_path / ".hidden.jsonl").mkdir()
    told = message("data=local", "data.path=me.jsonl", RANK)
    assert "Did you mean 'my.jsonl'?" in told and "part-" in told and "and 13 more" in told
    assert "hidden" not in told


@pytest.mark.parametrize("typed, told", [
    (["data.split=dev"], "data.path"),
    (["data.eval_path=other.jsonl", "data.eval_split=dev"], "data.eval_path"),
])
def test_a_split_of_one_file_is_refused(
    typed: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my.jsonl", "other.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=rf"{typed[-1]}: {told}=.* is one file"):
        compose(["data=local", "data.path=my.jsonl", *typed, RANK])
    compose(["data=local", f"data.path={tmp_path}", "data.split=dev", RANK])
    compose(["data=chat", "data.path=my.jsonl", RANK])  # whose own split is another one


def test_online_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert compose([RANK, "tracking.mode=online"]).tracking.options["mode"] == "online"


KEYS = st.sampled_from(
    ["lora.r", "lora.dropout", "lora.target_modules", "train.learning_rate", "train.scheduler",
     "lora.rslora", "budget.epochs", "study", "storage", "device", "n_trials", "model.name",
     "data.path", "model", "search", "+search", "pruner", "pruner.min_fraction", "x", "lora",
     "+recipe", "results_dir", "train", ""]
)  # fmt: skip
PIECES = st.sampled_from(
    ["choice", "interval", "range", "tag", "int", "float", "sort", "log", "(", ")", "[", "]", "{",
     "}", ",", ":", "'", '"', "=", "${", "}", "1", "0", "-3", "0.5", "1e-4", "nan", "inf", "null",
     "true", "qv", "linear", " ", "\\", "@", "~", "+", "a/b", "..", "\n", "é"]
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(KEYS, st.lists(PIECES, max_size=9).map("".join), st.booleans())
@example("lora.r", "range(1, 2, 1e-320)", False)
@example("lora.dropout", "range(0, 0.5, 1e-9)", False)
@example("lora.r", "int(interval(-inf, inf))", False)
@example("study", "${oc.env:NOTHING_OF_THAT_NAME}", True)
def test_whatever_is_typed_gives_a_sweep_or_a_message(key: str, value: str, search: bool) -> None:
    overrides = [f"{key}={value}", *([RANK] if search else [])]
    try:
        config = compose(overrides)
    except InputError as error:
        assert str(error)
    else:
        assert config.space.dimensions
    assert os.listdir() == []


def test_a_file_in_a_missing_folder_names_the_folder(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(InputError, match=f"there is no folder {missing}"):
        compose(["+search=lora_rank", "data=local", f"data.path={missing / 'x.jsonl'}"])
