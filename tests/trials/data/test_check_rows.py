"""What is wrong with the data is said before torch and the base are loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bases import silent
from samples import pairs
from tiny import Recorder, Tiny

from trials.contract import DataConfig, InputError
from trials.data import check_rows
from trials.worker import work

Write = Callable[..., str]
ROOT = Path(__file__).parents[3]
TEMPLATE = {"format": "text", "text_column": "prompt", "response_template": "Price"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "completion", "prompt_column": "promt"}, "Did you mean 'prompt'"),
        (TEMPLATE, "'Price': found in no sample, of 20 rows"),
        ({"format": "completion", "eval_size": 20}, "eval_size=20: data.path has 20 rows"),
        ({"format": "completion", "train_size": 16}, "Type data.train_size=15 or less"),
        ({"format": "chat"}, "no column looks like the messages"),
    ],
)
def test_what_rows_alone_can_tell(write: Write, settings: dict[str, Any], message: str) -> None:
    path = write(pairs(20))
    check_rows(DataConfig(format="completion", path=path, eval_size=5), silent)
    with pytest.raises(InputError, match=message):
        check_rows(DataConfig(**{"path": path, "eval_size": 5, **settings}), silent)


def test_overlap_is_found_in_the_rows(write: Write) -> None:
    data = DataConfig(format="completion", path=write(pairs(20)), eval_size=5,
                      eval_path=write(pairs(9, 19), "eval.jsonl"))
    with pytest.raises(InputError, match="1 of 9 evaluation rows"):
        check_rows(data, silent)


def test_a_worker_says_it_before_it_loads_libraries(tmp_path: Path) -> None:
    nothing = Tiny(tmp_path, tmp_path / "data.jsonl")
    (tmp_path / "data.jsonl").write_text("")
    driver = Recorder()
    with pytest.raises(InputError, match="is empty"):
        work(nothing.assignment(), driver)
    assert driver.shown == ["checking the data"]


def test_lengths_are_held_against_the_base_before_it_is_loaded(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    asked = Tiny(tmp_path, Path(write(pairs(30)))).assignment()
    driver = Recorder()
    with pytest.raises(InputError, match="has only 128 positions. Type data.max_length=128"):
        work(replace(asked, data=replace(asked.data, max_length=129)), driver)
    assert "loading libraries" not in driver.shown


def test_no_library_is_needed(write: Write) -> None:
    code = (
        "import sys; from trials.data import check_rows; from trials.contract import DataConfig\n"
        f"check_rows(DataConfig(format='completion', path={write(pairs(20))!r}, eval_size=5), "
        "lambda *_: None)\nprint({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
