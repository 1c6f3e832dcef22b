"""Kills its process with signal 9 at a named point: on PYTHONPATH, told by the variable CHAOS.

CHAOS is JSON: `{"role": "worker", "point": "module:function", "call": 3, "when": "after",
"once": path}`. The process of that role dies before or after the third call of the function; `once`
is made then, and while it is there nobody dies.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

ROLES = {"sweep": "driver", "sweep.executors.child": "worker"}  # by what follows -m


class Trap(importlib.abc.MetaPathFinder):
    """Patches the function as soon as its module is imported."""

    def __init__(self, point: str, call: int, when: str, once: str) -> None:
        self.module, _, path = point.partition(":")
        self.owners, _, self.name = path.rpartition(".")
        self.left, self.when, self.once = call, when, once

    def set(self) -> None:
        """Now, or when the module comes."""
        if self.module in sys.modules:
            self.patch(sys.modules[self.module])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """The module as it is, patched once it has run."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        run = spec.loader.exec_module

        def then_patch(module: ModuleType) -> None:
            run(module)
            self.patch(module)

        spec.loader.exec_module = then_patch  # type: ignore[method-assign]
        return spec

    def patch(self, owner: Any) -> None:
        """Puts the trap around the function."""
        for name in filter(None, self.owners.split(".")):
            owner = getattr(owner, name)
        setattr(owner, self.name, self.around(getattr(owner, self.name)))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, deadly at its last call."""

        @functools.wraps(function)
        def deadly(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and self.when == "before":
                self.die()
            result = function(*args, **kwargs)
            if self.left == 0:
                self.die()
            return result

        return deadly

    def die(self) -> None:
        """By kill -9, unless that has happened already."""
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def role() -> str | None:
    """What this process is, by its command line."""
    words = sys.orig_argv
    return ROLES.get(words[words.index("-m") + 1]) if "-m" in words[:-1] else None


if "CHAOS" in os.environ:
    told = json.loads(os.environ["CHAOS"])
    if told.pop("role") == role():
        Trap(**told).set()
