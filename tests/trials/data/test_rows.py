"""Reading rows: every kind of file gives the same, and each way to fail its message."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import silent
from samples import load, pairs

from trials.base import Base
from trials.contract import DataConfig, InputError
from trials.data import check_data, load_data

Write = Callable[..., str]



def _parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[list[dict[str, Any]], Path], Any]] = {
    "a.jsonl": lambda rows, path: path.write_text("\n\n".join(map(json.dumps, rows))),
    "a.json": lambda rows, path: path.write_text(json.dumps(rows, indent=1)),
    "lines.json": lambda rows, path: path.write_text("\n".join(map(json.dumps, rows))),
    "inside.json": lambda rows, path: path.write_text(json.dumps({"version": 1, "data": rows})),
    "a.csv": _csv,
    "a.tsv": _csv,
    "a.parquet": _parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_kinds_of_files_give_the_same_examples(
    plain_base: Base, write: Write, tmp_path: Path, name: str
) -> None:
    rows = [{**row, "prompt": f'{row["prompt"]}\n"quoted", \u00e9'} for row in pairs(20)]
    expected = load(plain_base, format="completion", path=write(rows, "expected.jsonl"))
    WRITERS[name](rows, tmp_path / name)
    found = load(plain_base, format="completion", path=str(tmp_path / name))
    assert list(found.train) == list(expected.train)
    assert found.facts.content_hash == expected.facts.content_hash


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_missing_completion_is_dropped_and_named(
    plain_base: Base, tmp_path: Path, name: str, missing: float | None
) -> None:
    rows = [{"prompt": f"Half of {i}? ", "completion": i / 2} for i in range(20)]
    WRITERS[name]([*rows[:4], {**rows[4], "completion": missing}, *rows[5:]], tmp_path / name)
    data = load(plain_base, format="completion", path=str(tmp_path / name))
    assert data.facts.warnings == (
        "1 of 20 rows of data.path dropped: each has an empty completion (row 5).",
    )
    assert len(data.train) + len(data.eval) == 19


def test_columns_without_a_name_are_left_alone(plain_base: Base, tmp_path: Path) -> None:
    lines = "".join(f"{i},q {i}, a {i},,\n" for i in range(9))
    (tmp_path / "a.csv").write_text(f",question,answer,,\n{lines}")
    data = load(plain_base, format="completion", path=str(tmp_path / "a.csv"))
    assert data.facts.columns == {"prompt": "question", "completion": "answer"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"prompt,completion\n", "is empty"),
        ("a.csv", b"prompt,completion\none\n", "row 1 does not have 2 columns"),
        ("a.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2"),
        ("a.jsonl", b"[1, 2]\n", "row 1 is list, not an object"),
        ("a.json", b"3", "holds 3. It must be a list of objects with columns, or an object with"),
        ("a.json", b"null", "holds null. It must be a list of objects"),
        ("a.jsonl", '{"q": "a"}'.encode("utf-16"), r".jsonl: it is not UTF-8 \(byte 0xff in .*1"),
        ("a.csv", "q,a\nb,\u00e9\n".encode("latin-1"), "byte 0xe9 in line 2.* Save it as UTF-8.$"),
        ("a.csv", b"q;a\none, two;3\n", "by semicolons .*'q;a'. Save it with commas between"),
        ("a.csv", b"q\ta\r\n1\t2\r\n", "by tabs.*with commas .*or name it .tsv.$"),
        ("a.tsv", b'"q","a"\n"1","2"\n', "by commas.*with tabs .*or name it .csv.$"),
        ("a.csv", b"q,q,a\n1,2,3\n", "names the column 'q' more than once"),
        ("a.csv", b'q,a\n1,2\n"3,4\n"5",6\n', "quotes do not match in what begins at line 3 "),
        ("a.csv", b'q,a\n\n1,2\n3,"4\n5,6\n', "begins at line 4 .*Close each quote"),
        ("a.parquet", b"no parquet", "cannot be read as .parquet"),
        ("a.txt", b"text", "kind of file is unknown.*jsonl"),
    ],
)
def test_files_that_cannot_be_read(
    plain_base: Base, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(plain_base, format="completion", path=str(tmp_path / name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "/nowhere/data.jsonl"}, "no such file or folder"),
        ({"path": "/nowhere/x"}, "no such file or folder. The folder /nowhere does not exist"),
        ({"path": "nowhere.csv"}, "no such file or folder. Known"),
        ({"path": None}, "data.path is missing"),
        ({"eval_path": "/nowhere/eval"}, "data.eval_path=/nowhere/eval: there is no such"),
        ({"format": "alpacca"}, "Known: demo, text"),
        ({"loss_on": "prompt"}, "Known: completion, all"),
        ({"train_size": 0}, "train_size=0"),
        ({"max_dropped": 1.5}, "max_dropped=1.5"),
        ({"prompt_column": "a", "completion_column": "a"}, "'a': this column is data.prompt_col"),
    ],
)
def test_what_is_wrong_before_anything_is_read(
    write: Write, settings: dict[str, Any], message: str
) -> None:
    good = {"format": "completion", "path": write(pairs(3))}
    check_data(DataConfig(**good))
    with pytest.raises(InputError, match=message):
        check_data(DataConfig(**{**good, **settings}))


def test_a_folder_with_nothing_to_read(plain_base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no file that can be read"):
        load(plain_base, format="completion", path=str(tmp_path))


def test_an_unreachable_hub(plain_base: Base) -> None:
    with pytest.raises(InputError, match="no such file or folder here, and as a hub data set"):
        load(plain_base, format="alpaca", path="some/dataset")


def test_a_hub_data_set_is_pinned(plain_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    commit = "a" * 40
    asked: list[tuple[Any, ...]] = []

    def info(self: Any, path: str, *, revision: str | None, timeout: float) -> Any:
        assert revision in (None, commit)
        return type("Info", (), {"sha": commit})

    def fetch(path: str, name: str | None, *, split: str, revision: str) -> Any:
        asked.append((path, name, split, revision))
        start = {"train": 0, "test": 50}[split]
        return datasets.Dataset.from_list(pairs(20, start))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", fetch)
    data = load(plain_base, format="completion", path="some/dataset", name="en", eval_split="test")
    assert (data.config.path, data.config.revision) == ("some/dataset", commit)
    assert sorted(asked) == [("some/dataset", "en", "test", commit),
                             ("some/dataset", "en", "train", commit)]
    again = load_data(data.config, plain_base, 0, silent)
    assert again.config == data.config and list(again.train) == list(data.train)
