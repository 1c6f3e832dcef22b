"""Every file in conf/ composes, says how to use it in its first line, and stays an atom."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sweep.config import SweepConfig, compose
from sweep.config.compose import conf_dir, options
from sweep.names import GROUPS

ATOMS = [(group, name) for group in GROUPS for name in options(group, [conf_dir()])]
NEEDED = {
    ("model", "hub"): ["model.name=org/model"],
    ("model", "local"): ["model.name={folder}"],
    ("data", "local"): ["data.path={file}"],
    ("data", "hub"): ["data.path=org/data"],
    ("pruner", "threshold"): ["pruner.upper=2.5"],
}
PROMISED = {
    "model": "demo llama3_1_8b llama3_2_1b llama3_2_3b open_llama_3b qwen3_0_6b qwen3_8b "
    "qwen2_5_0_5b smollm2_135m gemma3_1b mistral_7b hub local",
    "data": "demo pricer alpaca chat dialogue local hub",
    "search": "lora_rank alpha target_modules dropout learning_rate schedule batch_size epochs "
    "lora full",
    "sampler": "tpe random grid qmc gp",
    "pruner": "asha hyperband median percentile patient threshold none",
    "engine": "trl simulated",
    "executor": "inline local",
    "tracking": "wandb tensorboard none",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own with a file and a folder to point at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    return tmp_path


def composed(group: str, name: str, place: Path) -> SweepConfig:
    more = [text.format(folder=place, file="my.jsonl") for text in NEEDED.get((group, name), [])]
    searched = [] if group == "search" else ["lora.r=4,8"]
    plus = "+" if group == "search" else ""
    return compose([f"{plus}{group}={name}", *searched, *more])


@pytest.mark.parametrize(("group", "name"), ATOMS)
def test_every_atom_composes(group: str, name: str, place: Path) -> None:
    config = composed(group, name, place)
    assert config.space.dimensions
    if group in ("engine", "executor", "sampler", "pruner"):
        assert getattr(config, group).name == name
    if group == "tracking":
        assert config.tracking.names == ((name,) if name != "none" else ())
    assert [entry.name for entry in place.iterdir()] == ["my.jsonl"]


@pytest.mark.parametrize("group", PROMISED)
def test_every_promised_name_is_there(group: str) -> None:
    assert set(PROMISED[group].split()) <= set(options(group, [conf_dir()]))


@pytest.mark.parametrize(("group", "name"), ATOMS)
def test_the_first_line_is_a_command_that_uses_the_file(
    group: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = conf_dir() / group / f"{name}.yaml"
    first = path.read_text().splitlines()[0].removeprefix("# python -m sweep ")
    words = shlex.split(first.split("   ")[0])
    if group not in ("lora", "train", "budget"):
        assert any(f"{group}={name}" in word for word in words)
    if "model=local" in words:
        words = [f"model.name={place}" if w.startswith("model.name=") else w for w in words]
    if "sampler=gp" in words:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert compose(words).space.dimensions


@pytest.mark.parametrize(("group", "name"), ATOMS)
def test_an_atom_is_short(group: str, name: str) -> None:
    assert len((conf_dir() / group / f"{name}.yaml").read_text().splitlines()) <= 20


def test_the_demo_is_the_default_and_real_data_brings_a_real_budget(place: Path) -> None:
    demo = compose(["+search=lora_rank"])
    assert (demo.model.name, demo.data.format, demo.limits.n_trials) == ("demo", "demo", 16)
    real = compose(["+search=lora_rank", "model=llama3_1_8b", "data=pricer"])
    assert real.values["budget.examples"] > demo.values["budget.examples"]
    chosen = compose(["+search=lora_rank", "data=pricer", "budget=demo"])
    assert chosen.values["budget.examples"] == demo.values["budget.examples"]


def test_all_eight_are_in_the_full_search() -> None:
    names = {dimension.name for dimension in compose(["+search=full"]).space.dimensions}
    assert names == {
        "lora.r",
        "lora.alpha_ratio",
        "lora.target_modules",
        "lora.dropout",
        "train.learning_rate",
        "train.scheduler",
        "train.warmup",
        "train.batch_size",
    }
