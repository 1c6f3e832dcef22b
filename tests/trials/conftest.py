"""What several suites of `trials` start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trials.base import Base
from trials.base.origin import DEMO


@pytest.fixture(scope="session")
def plain_base() -> Base:
    """The demo base as its files have it: for its tokenizer, and not to be changed."""
    from bases import load

    return load(quantisation="none")


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    """The demo base as a folder of the user's."""
    return Path(shutil.copytree(DEMO, tmp_path / "base"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON lines and gives the path."""

    def jsonl(rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(tmp_path / name)

    return jsonl
