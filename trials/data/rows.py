"""Reads rows: local JSONL, JSON, CSV or Parquet, a folder of them, a hub data set, the demo."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trials import downloads
from trials.contract import DataConfig, InputError

Row = dict[str, Any]
DEMO_ROWS = 10_000  # the demo's whole data set, of which any study takes a part
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
LISTED = ("data", "rows", "examples", "records", "train")  # where a JSON object has its rows
SEPARATORS = {".csv": ",", ".tsv": "\t"}  # all that is read; the rest of the marks is only named
MARKS = {";": "semicolons (;)", "\t": "tabs", ",": "commas", "|": "pipes (|)"}
SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from. `identity` changes whenever the rows may; the rest pins them."""

    read: Callable[[], list[Row]]
    identity: str
    where: str  # to say in messages
    path: str | None = None
    revision: str | None = None


def find(data: DataConfig, *, evaluation: bool = False) -> Source:
    """The source of the training rows, or of the evaluation rows when they come from elsewhere.

    Raises InputError where there is no such file, folder or data set.
    """
    if data.format == "demo":
        return _demo()
    key = "data.eval_path" if evaluation and data.eval_path else "data.path"
    split = (data.eval_split or data.split) if evaluation else data.split
    path = check_path(data.eval_path if key == "data.eval_path" else data.path, key)
    if path.startswith(downloads.ARTIFACT):
        found = _local(downloads.downloaded(path, key), split, key)
        return replace(found, where=f"{key}={path}", path=path)
    local = Path(path).expanduser()
    if local.exists():
        return _local(local.resolve(), split, key)
    from trials.data.hub_rows import find_on_hub

    return find_on_hub(data, path, split, key)


def check_path(path: str | None, key: str) -> str:
    """The path, if it can be a file, a folder or a hub data set at all; InputError if not."""
    if not path:
        raise InputError(f"{key} is missing. Type {key}=<file, folder or hub data set>.")
    if path.startswith(downloads.ARTIFACT):
        downloads.downloaded(path, key)
        return path
    local = Path(path).expanduser()
    if not local.exists() and _looks_local(path):
        folder = local.absolute().parent
        where = "" if folder.is_dir() else f" The folder {folder} does not exist either."
        raise InputError(f"{key}={path}: there is no such file or folder.{where} {_HELP}")
    return path


_HELP = "Known kinds of files: .jsonl, .json, .csv, .tsv, .parquet."


def _looks_local(path: str) -> bool:
    return Path(path).suffix.lower() in READERS or not HUB_NAME.fullmatch(path)


def _demo() -> Source:
    from trials.demo import text

    code = hashlib.sha256(Path(text.__file__).read_bytes()).hexdigest()
    return Source(lambda: list(text.pricing(DEMO_ROWS)), f"demo {DEMO_ROWS} {code}", "data=demo")


def _local(path: Path, split: str, key: str) -> Source:
    files = _split_files(path, split, key) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        _reader(file, key)  # an unknown kind is said before anything is read
        total.update(f"{file.name}\0{_digest(file, key)}\n".encode())
    return Source(
        lambda: _rows(files, path, key), f"files {total.hexdigest()}", f"{key}={path}", str(path)
    )


def _split_files(folder: Path, split: str, key: str) -> list[Path]:
    """The files of a split: those called after it, or all where none is called after any split."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in READERS)
    if not files:
        raise InputError(f"{key}={folder}: this folder has no file that can be read. {_HELP}")
    named = {name: [p for p in files if re.match(rf"{name}(?![a-z])", p.stem.lower())]
             for name in dict.fromkeys((split.lower(), *SPLITS))}
    if named[split.lower()] or not any(named.values()):
        return named[split.lower()] or files
    there = ", ".join(name for name, found in named.items() if found)
    raise InputError(
        f"{key}={folder}: it has no file for the split {split!r}; there is: {there}. "
        f"Type data.{'eval_' if 'eval' in key else ''}split=..., or name one file."
    )


def _digest(file: Path, key: str) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{key}={file}: it cannot be read ({error.strerror}).") from error


def _rows(files: list[Path], path: Path, key: str) -> list[Row]:
    rows: list[Row] = []
    for file in files:
        try:
            rows += _reader(file, key)(file)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{key}={file}: it cannot be read as {file.suffix}: {_first_line(error)}."
            ) from error
    if not rows:
        raise InputError(f"{key}={path}: it is empty; there is not one row in it.")
    return rows


def _reader(file: Path, key: str) -> Callable[[Path], list[Row]]:
    try:
        return READERS[file.suffix.lower()]
    except KeyError:
        raise InputError(f"{key}={file}: this kind of file is unknown. {_HELP}") from None


def _read_jsonl(file: Path) -> list[Row]:
    return _json_lines(_text(file))


def _read_json(file: Path) -> list[Row]:
    text = _text(file)
    if not text.strip():
        return []
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _json_lines(text)  # many a .json file holds JSON lines
    if isinstance(whole, dict):
        listed = next((whole[name] for name in LISTED if isinstance(whole.get(name), list)), None)
        whole = [whole] if listed is None else listed
    if not isinstance(whole, list):
        raise ValueError(
            f"it holds {text.strip():.60}. It must be a list of objects with columns, or an object "
            f"with such a list as one of: {', '.join(LISTED)}"
        )
    return [_row(entry, index) for index, entry in enumerate(whole, 1)]


def _json_lines(text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line), number))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg}") from None
    return rows


def _row(entry: Any, number: int) -> Row:
    if not isinstance(entry, dict):
        raise ValueError(f"row {number} is {type(entry).__name__}, not an object with columns")
    return entry


def _read_csv(file: Path) -> list[Row]:
    text, kind = _text(file), file.suffix.lower()
    _check_separator(text.partition("\n")[0].strip("\r"), kind)
    lines = _csv_lines(text, SEPARATORS[kind])
    columns = next(lines, [])
    _check_names(columns)
    rows = []
    for number, cells in enumerate(lines, 1):
        if len(cells) != len(columns):
            raise ValueError(
                f"row {number} does not have {len(columns)} columns like the first line"
            )
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def _check_separator(head: str, kind: str) -> None:
    own, found = SEPARATORS[kind], next((mark for mark in MARKS if mark in head), None)
    if found is not None and own not in head:
        fitting = next((f", or name it {name}" for name, mark in SEPARATORS.items()
                        if mark == found), "")
        raise ValueError(
            f"it looks separated by {MARKS[found]}, as its first line is {head!r:.60}. "
            f"Save it with {MARKS[own]} between the columns{fitting}"
        )


def _check_names(columns: list[str]) -> None:
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"its first line names the column {twice!r} more than once. Rename or remove all but "
            "one of them"
        )


def _csv_lines(text: str, separator: str) -> Iterator[list[str]]:
    """The cells of each line that is not empty. ValueError where a quote is not closed."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than one long dialogue
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    start = 1
    try:
        for cells in lines:
            if cells:
                yield cells
            start = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"the quotes do not match in what begins at line {start} ({error}). Close each quote "
            'before the next column, and write a quote inside a text twice: ""'
        ) from None


def _read_parquet(file: Path) -> list[Row]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        wrong = error.object[error.start]
        raise ValueError(
            f"it is not UTF-8 (byte 0x{wrong:02x} in line {line}). Save it as UTF-8"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
