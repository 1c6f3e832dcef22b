"""The split: a fixed evaluation set, nothing on both sides, and every dropped row named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bases import silent
from samples import contents, contents_of, load, pairs, with_loss

from trials.base import Base
from trials.contract import DataConfig, InputError
from trials.data import check_rows, load_data, order

Write = Callable[..., str]



def test_the_evaluation_set_is_the_same_for_any_seed_and_size(
    plain_base: Base, write: Write
) -> None:
    path = write(pairs(100))
    few = load(plain_base, format="completion", path=path, train_size=10, seed=1)
    many = load(plain_base, format="completion", path=path, train_size=80, seed=2)
    shuffled = load(plain_base, format="completion", path=write(pairs(100)[::-1], "shuffled.jsonl"))
    assert contents(few.eval) == contents(many.eval) == contents(shuffled.eval)
    assert contents(few.train) == contents(many.train)[:10]
    assert contents(many.train) == contents(shuffled.train)[:80]
    assert len(shuffled.train) == 95
    assert few.facts.content_hash != many.facts.content_hash


def test_equal_rows_never_sit_on_both_sides(plain_base: Base, write: Write) -> None:
    data = load(plain_base, format="completion", path=write(pairs(20) * 3))
    assert len(set(contents(data.eval))) == len(data.eval) == 5
    assert not set(contents(data.eval)) & set(contents(data.train))
    assert len(data.train) == 45  # 15 rows, three times each: repeating is the user's affair
    assert "10 of 60 rows of data.path not trained on" in data.facts.warnings[0]


def test_an_evaluation_file_of_its_own(plain_base: Base, write: Write) -> None:
    settings = {"format": "completion", "path": write(pairs(20)),
                "eval_path": write(pairs(10, start=50), "eval.jsonl")}
    data = load(plain_base, **settings, eval_size=10)
    assert (len(data.train), len(data.eval)) == (20, 10)
    assert sorted(contents(data.eval)) == sorted(contents_of(pairs(10, start=50)))
    with pytest.raises(InputError, match="eval_size=11: evaluation data has 10 rows.*eval_size=10"):
        load(plain_base, **settings, eval_size=11)


def test_overlapping_sides_are_refused(plain_base: Base, write: Write) -> None:
    path, other = write(pairs(20)), write(pairs(10, start=15), "eval.jsonl")
    with pytest.raises(InputError, match="eval and train overlapping: 5 of 10"):
        load(plain_base, format="completion", path=path, eval_path=other)
    with pytest.raises(InputError, match="eval and train overlapping: 20 of 20"):
        load(plain_base, format="completion", path=path, eval_split="train")


def test_a_folder_by_splits(plain_base: Base, write: Write, tmp_path: Path) -> None:
    for name, start in (("train-0", 0), ("train-1", 10), ("test", 20)):
        write(pairs(10, start), f"folder/{name}.jsonl")
    folder = str(tmp_path / "folder")
    data = load(plain_base, format="completion", path=folder, eval_split="test")
    assert sorted(contents(data.train)) == sorted(contents_of(pairs(20)))
    assert set(contents(data.eval)) < set(contents_of(pairs(10, 20)))
    with pytest.raises(InputError, match="there is: train, test"):
        load(plain_base, format="completion", path=folder, eval_split="validation")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_size": 16}, "train_size=16.*20 rows.*data.train_size=15"),
        ({"eval_size": 20}, "eval_size=20.*20 rows.*data.eval_size=4"),
        ({"eval_size": 50}, "eval_size=50.*20 rows.*data.eval_size=4"),
    ],
)
def test_sizes_beyond_the_data(
    plain_base: Base, write: Write, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(plain_base, format="completion", path=write(pairs(20)), **sizes)


TWO = "needs at least two different rows: one to train on"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (pairs(1) * 300, {"eval_size": 8}, f"=8: data.path has 300 rows, 1 of.*once. It {TWO}"),
        (pairs(1) * 300, {"eval_size": 1}, f"=1: data.path has 300 rows, 1 of them.*{TWO}"),
        (pairs(1), {"eval_size": 1}, f"data.path has 1 row, 1 of them.*{TWO}.*data.eval_path="),
        (pairs(2) * 150, {"eval_size": 2}, "300 rows, 2 of them.*Type data.eval_size=1 or less"),
        (pairs(2) * 150, {"eval_size": 1, "train_size": 200}, "Type data.train_size=150 or less"),
    ],
)
def test_equal_rows_count_once(
    write: Write, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    data = DataConfig(format="completion", path=write(rows), **settings)
    with pytest.raises(InputError, match=message):
        check_rows(data, silent)


def test_the_sizes_that_are_advised_work(plain_base: Base, write: Write) -> None:
    data = load(plain_base, format="completion", path=write(pairs(2) * 150), eval_size=1,
                train_size=150)
    assert (len(data.train), len(data.eval)) == (150, 1)


def test_equal_rows_to_evaluate_on_count_once(plain_base: Base, write: Write) -> None:
    settings = {"format": "completion", "path": write(pairs(9)), "max_dropped": 1.0}
    for rows, message in [
        (pairs(2, 50) * 5, "evaluation data has 10 rows, 2 of them.*Type data.eval_size=2 or less"),
        ([{"prompt": "q", "completion": ""}], "has 1 row, 0 of them.*It needs at least one"),
    ]:
        with pytest.raises(InputError, match=message):
            load(plain_base, **settings, eval_path=write(rows, "eval.jsonl"))


def test_no_row_that_can_be_trained_on(plain_base: Base, write: Write) -> None:
    rows = [{**row, "completion": ""} for row in pairs(9)]
    with pytest.raises(InputError, match="data.path has 9 rows, and none that can be trained on"):
        load(plain_base, format="completion", path=write(rows), max_dropped=1.0,
             eval_path=write(pairs(9), "eval.jsonl"))


def test_the_order_is_a_function_of_seed_and_position() -> None:
    whole = order(7, 10, 0, 35)
    assert [order(7, 10, at, 1)[0] for at in range(35)] == whole
    epochs = [whole[at : at + 10] for at in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order(8, 10, 0, 10) != whole[:10]
    assert order(0, 6, 0, 12) == [0, 2, 1, 5, 4, 3, 5, 3, 2, 4, 1, 0]  # for good
    assert order(7, 10, 5, 0) == []


# --- lengths and what is dropped ------------------------------------------------------------------


def test_loss_on_everything(plain_base: Base, write: Write) -> None:
    data = load(plain_base, format="completion", path=write(pairs(20)), loss_on="all")
    for example in data.train:
        assert example.loss_mask == (False, *[True] * (len(example.input_ids) - 1))
    for example in data.eval:  # evaluated on completions whatever is trained on
        assert with_loss(plain_base, example) == f"{example.completion}<eos>"


def test_samples_are_cut_dropped_counted_and_named(plain_base: Base, write: Write) -> None:
    rows = pairs(40)
    rows[6]["prompt"] = "long " * 40  # row 7: nothing of its completion is left
    rows[8]["completion"] = " long" * 40  # row 9: it loses its end
    rows[11]["completion"] = " "  # row 12
    data = load(plain_base, format="completion", path=write(rows), max_length=32, eval_size=1)
    assert (data.facts.dropped, data.facts.truncated) == (2, 1)
    assert len(data.train) + len(data.eval) == 38
    assert data.facts.max_length == 32
    warnings = " ".join(data.facts.warnings)
    assert "each has an empty completion (row 12)" in warnings
    assert "no completion token left within data.max_length=32 (row 7)" in warnings
    assert "lose their end (row 9)" in warnings
    assert all(any(example.loss_mask) for example in [*data.train, *data.eval])


def test_too_many_samples_without_completion(plain_base: Base, write: Write) -> None:
    rows = [{**row, "prompt": "long " * 40 * (i % 2)} for i, row in enumerate(pairs(40))]
    path = write(rows)
    settings = {"format": "completion", "path": path, "max_length": 32}
    message = "max_length=32: 20 of 40 samples.*rows 2, 4, .*max_length=64 or more.*max_dropped"
    with pytest.raises(InputError, match=message):
        load(plain_base, **settings)
    assert len(load(plain_base, **settings, max_dropped=0.5).train) == 15


def test_a_length_beyond_the_model(plain_base: Base, write: Write) -> None:
    with pytest.raises(InputError, match="only 512 positions.*data.max_length=512"):
        load(plain_base, format="completion", path=write(pairs(20)), max_length=513)


def test_long_lists_of_rows_are_named_in_part(plain_base: Base, write: Write) -> None:
    rows = [{**row, "completion": ""} for row in pairs(30)] + pairs(30)
    with pytest.raises(InputError, match="rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more"):
        load(plain_base, format="completion", path=write(rows))


def test_progress_is_told(plain_base: Base, write: Write) -> None:
    said: list[tuple[str, int, int]] = []
    config = DataConfig(format="completion", path=write(pairs(1100)), eval_size=5)
    load_data(config, plain_base, 0, lambda *step: said.append(step))
    assert said[0][0] == "reading the data"
    assert [step for step in said if step[0] == "tokenising"][-1][1] > 512


def test_examples_read_like_a_list(plain_base: Base, write: Write) -> None:
    train = load(plain_base, format="completion", path=write(pairs(20))).train
    assert len(list(train)) == len(train) == 15
    assert train[-1] == train[14] and train[2:4] == [train[2], train[3]]
    with pytest.raises(IndexError):
        train[15]


def test_the_hash_ignores_where_the_file_lies(plain_base: Base, write: Write) -> None:
    one = load(plain_base, format="completion", path=write(pairs(20)))
    two = load(plain_base, format="completion", path=write(pairs(20), "elsewhere.jsonl"))
    assert replace(one.config, path=None) == replace(two.config, path=None)
