"""What nobody gets in by: pickles, foreign code, open ports. Rules about the source, and a run."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeping import run_inline, stored, sweep_config

ROOT = Path(__file__).parent.parent
FILES = sorted(f for part in ("sweep", "trials") for f in (ROOT / part).rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"recv", "read_pickle", "unpickle", "load_from_disk"}  # multiprocessing's recv unpickles
RUNNERS = {("", "eval"), ("", "exec"), ("", "__import__"), ("os", "system"), ("os", "popen")}
LISTENERS = {"bind", "make_server", "create_server", "start_server", "TCPServer", "HTTPServer"}
HERE = ("HOST", "'127.0.0.1'", "('127.0.0.1'", "self.server_address")  # what a listener may name


def calls(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """Each call as the object's text, the function's name, and itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield "", node.func.id, node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.fixture(scope="module")
def trees() -> list[ast.AST]:
    """Every module of the product."""
    return [ast.parse(file.read_text(), str(file)) for file in FILES]


def test_nothing_is_unpickled(trees: list[ast.AST]) -> None:
    wanted = {("torch", "weights_only"): "True", ("np", "allow_pickle"): "False"}
    for tree in trees:
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & UNPICKLERS
        for owner, name, call in calls(tree):
            told = keywords(call)
            assert name not in LOADERS, ast.unparse(call)
            assert told.get("allow_pickle", "False") == "False", ast.unparse(call)
            assert (owner, name) != ("yaml", "load"), ast.unparse(call)
            for (module, keyword), value in wanted.items():
                if (owner, name) == (module, "load"):
                    assert told.get(keyword) == value, ast.unparse(call)


def test_no_code_of_others_is_run(trees: list[ast.AST]) -> None:
    """Text is never code; a base's own code runs only where its user has typed so."""
    for tree in trees:
        for owner, name, call in calls(tree):
            told = keywords(call)
            assert (owner, name) not in RUNNERS, ast.unparse(call)
            assert told.get("shell", "False") == "False", ast.unparse(call)
            trusted = told.get("trust_remote_code", "False")
            assert trusted in ("False", "config.trust_remote_code"), ast.unparse(call)
            if name == "from_pretrained" and "Model" in owner:
                assert "'use_safetensors': True" in ast.unparse(tree), ast.unparse(call)


def test_whatever_listens_listens_on_this_machine(trees: list[ast.AST]) -> None:
    for tree in trees:
        assert "0.0.0.0" not in ast.unparse(tree)
        for owner, name, call in calls(tree):
            if name in LISTENERS and (name != "bind" or "socket" in owner):
                assert ast.unparse(call.args[0]).startswith(HERE), ast.unparse(call)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOST":
                assert ast.unparse(node.value) == "'127.0.0.1'"


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_sweep_and_its_continuation_unpickle_nothing(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for trials in (3, 5):
        config = sweep_config(tmp_path, f"sampler={sampler}", f"n_trials={trials}")
        run_inline(config)
        assert len(stored(config)[1]) == trials
