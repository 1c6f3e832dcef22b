"""The import rules: each half of the house stays light and apart, proved in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate"}
TRITON = find_spec("triton") is not None  # comes with torch for CUDA alone
ORCHESTRA = {"optuna", "hydra", "omegaconf", "wandb", "sweep"}


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def imported_by(names: list[str]) -> set[str]:
    """The top-level packages that a fresh interpreter holds after importing `names`."""
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    code += "print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def statements(file: Path) -> set[str]:
    """Every module that a file's import statements name, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_sweep_stays_light() -> None:
    assert imported_by(modules("sweep")) & HEAVY == set()


def test_worker_is_light_until_it_starts() -> None:
    assert imported_by(["trials.contract", "trials.worker"]) & (HEAVY | ORCHESTRA) == set()


def test_trials_never_imports_the_orchestra() -> None:
    names = [name for name in modules("trials") if TRITON or ".cuda." not in name]
    assert imported_by(names) & {"hydra", "omegaconf", "sweep"} == set()


@pytest.mark.parametrize("file", sorted((ROOT / "trials").rglob("*.py")), ids=str)
def test_no_file_of_trials_names_the_orchestra(file: Path) -> None:
    assert {name.partition(".")[0] for name in statements(file)} & ORCHESTRA == set()


@pytest.mark.parametrize("file", sorted((ROOT / "sweep").rglob("*.py")), ids=str)
def test_sweep_meets_trials_in_three_files_only(file: Path) -> None:
    named = {name for name in statements(file) if name.partition(".")[0] == "trials"}
    allowed = ("trials.contract", "trials.host", "trials.worker")
    assert [name for name in named if name != "trials" and not name.startswith(allowed)] == []
    assert {name.partition(".")[0] for name in statements(file)} & HEAVY == set()


def test_trl_is_imported_in_one_file_only() -> None:
    files = (ROOT / "trials").rglob("*.py")
    users = [f for f in files if any(n.partition(".")[0] == "trl" for n in statements(f))]
    assert len(users) == 1
