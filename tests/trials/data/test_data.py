"""The data as a whole: masks, columns, the order, the cache, and what is pinned and replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bases import silent
from samples import contents, everything, load, pairs, with_loss

from trials.base import Base
from trials.contract import DataConfig, InputError
from trials.data import load_data, order

Write = Callable[..., str]



def test_the_demo(plain_base: Base) -> None:
    data = load(plain_base, format="demo", train_size=50, eval_size=20)
    assert (len(data.train), len(data.eval)) == (50, 20)
    assert (data.facts.train_examples, data.facts.eval_examples) == (50, 20)
    for example in [*data.train, *data.eval]:
        assert example.prompt.endswith("Price is $") and example.completion.isdigit()
        assert everything(plain_base, example) == f"<bos>{example.prompt}{example.completion}<eos>"
        assert with_loss(plain_base, example) == f"{example.completion}<eos>"
    assert not set(contents(data.train)) & set(contents(data.eval))
    lengths = [len(e.input_ids) for e in [*data.train, *data.eval]]
    assert data.facts.max_length == max(lengths)
    assert data.facts.mean_length == pytest.approx(sum(lengths) / len(lengths))
    assert data.train.lengths.tolist() == lengths[:50]


def test_the_first_example_of_the_order_is_shown(plain_base: Base) -> None:
    for seed in (0, 1):
        data = load(plain_base, format="demo", train_size=50, seed=seed)
        first = data.train[order(seed, 50, 0, 1)[0]]
        assert data.rendered.pieces == (
            (f"<bos>{first.prompt}", False), (f"{first.completion}<eos>", True)
        )


# --- columns --------------------------------------------------------------------------------------


def test_columns_are_guessed_and_said(plain_base: Base, write: Write) -> None:
    rows = [{"id": i, "Question": f"q {i}", "answer": f"a {i}"} for i in range(20)]
    data = load(plain_base, format="completion", path=write(rows))
    assert data.facts.columns == {"prompt": "Question", "completion": "answer"}
    assert data.facts.guessed == ("prompt", "completion")
    assert (data.config.prompt_column, data.config.completion_column) == ("Question", "answer")
    named = load(plain_base, format="completion", path=write(rows), prompt_column="id")
    assert named.facts.guessed == ("completion",)
    assert {example.prompt for example in named.eval} < {str(i) for i in range(20)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_column": "questoin"}, "'questoin'.*Did you mean 'question'.*there are: question"),
        ({"prompt_column": "Questions"}, "Did you mean 'question'"),
        ({"prompt_column": "completion"}, "has no such column. Columns there are: question"),
        ({"completion_column": None}, "looks like the completion.*question, reply.*completion_col"),
    ],
)
def test_columns_that_are_not_there(
    plain_base: Base, write: Write, settings: dict[str, Any], message: str
) -> None:
    path = write([{"question": "q", "reply": "r"}])
    with pytest.raises(InputError, match=message):
        load(plain_base, format="completion", path=path, **settings)


def test_prompts_that_run_into_completions_are_said_once(plain_base: Base, write: Write) -> None:
    rows = [*pairs(10), {"prompt": "Where is it?", "completion": "Here."}]
    data = load(plain_base, format="completion", path=write(rows))
    [warning] = data.facts.warnings
    assert warning.startswith("prompts run into completions: 1 of 11 rows of data.path")
    assert "as Where is it?\u27e6Here.\u27e7." in warning


# --- replay ---------------------------------------------------------------------------------------


def test_a_resolved_config_gives_the_same_data(
    plain_base: Base, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(pairs(30))
    monkeypatch.chdir(tmp_path)
    data = load(plain_base, format="completion", path="data.jsonl")
    assert data.config.path == str(tmp_path / "data.jsonl")
    monkeypatch.chdir("/")
    again = load_data(data.config, plain_base, 0, silent)
    assert again.config == data.config
    assert list(again.train) == list(data.train) and list(again.eval) == list(data.eval)
    write(pairs(31))
    with pytest.raises(InputError, match="the data has changed"):
        load_data(data.config, plain_base, 0, silent)


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenised"


def test_tokenised_data_is_cached(plain_base: Base, write: Write, cache: Path) -> None:
    said: list[str] = []
    config = DataConfig(format="completion", path=write(pairs(30)), eval_size=5)
    first = load_data(config, plain_base, 0, lambda what, *_: said.append(what))
    again = load_data(config, plain_base, 1, lambda what, *_: said.append(what))
    assert said.count("tokenising") <= 1 and len(list(cache.iterdir())) == 1
    assert list(again.train) == list(first.train) and again.facts == first.facts
    with np.load(next(cache.iterdir()), allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)


@pytest.mark.parametrize(
    "change",
    [{"max_length": 9}, {"loss_on": "all"}, {"eval_size": 6}, {"train_size": 7},
     {"prompt_column": "completion", "completion_column": "prompt"}],
)
def test_what_changes_the_examples_changes_the_cache(
    plain_base: Base, write: Write, cache: Path, change: dict[str, Any]
) -> None:
    settings = {"format": "completion", "path": write(pairs(30)), "max_dropped": 1.0}
    load(plain_base, **settings)
    load(plain_base, **{**settings, **change})
    assert len(list(cache.iterdir())) == 2
    write(pairs(29))
    load(plain_base, **settings)
    assert len(list(cache.iterdir())) == 3


def of_first_entry(whole: bytes, place: int, value: int) -> bytes:
    """Sets a byte of what the archive's directory says of its first file."""
    at = whole.index(b"PK\x01\x02") + place
    return whole[:at] + bytes([value]) + whole[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "no archive": lambda whole: b"PK\x03\x04 no archive",
    "encrypted": lambda whole: of_first_entry(whole, 8, 1),
    "unknown compression": lambda whole: of_first_entry(whole, 10, 7),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(
    plain_base: Base, write: Write, cache: Path, damage: str
) -> None:
    path = write(pairs(30))
    first = load(plain_base, format="completion", path=path)
    stored = next(cache.iterdir())
    whole = stored.read_bytes()
    assert (damaged := DAMAGES[damage](whole)) != whole
    stored.write_bytes(damaged)
    again = load(plain_base, format="completion", path=path)
    assert list(again.train) == list(first.train)
    assert len(stored.read_bytes()) == len(whole)


def test_a_full_disk_is_no_error_and_leaves_nothing(
    plain_base: Base, write: Write, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, **arrays: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(load(plain_base, format="completion", path=write(pairs(30))).train) == 25
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(
    plain_base: Base, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_SWEEP_CACHE", str(tmp_path / "file"))
    assert len(load(plain_base, format="completion", path=write(pairs(30))).train) == 25
