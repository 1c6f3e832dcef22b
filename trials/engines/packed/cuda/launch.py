"""Launches kernels; or has all of a pass compiled at once, ahead of the first launch.

To compile a kernel keeps one core busy for about a second, and a clock, its steps and an evaluation
need dozens, the next of them known only when the one before has been launched. So a pass is gone
through without launching any, over memory that nobody has written, while threads compile.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, ...]

_ahead: _Ahead | None = None  # of the process: a backward has a thread of its own


def launch(kernel: Any, grid: Grid, *given: Any, **constants: Any) -> None:
    """`kernel[grid](*given, **constants)`, but within `compiling`, where that is only noted."""
    if _ahead is None:
        kernel[grid](*given, **constants)
    else:
        _ahead.note(kernel, grid, given, constants)


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """Within, nothing is launched; at the end all of it has been compiled.

    Raises what compiling raised.
    """
    global _ahead
    with ThreadPoolExecutor(thread_name_prefix="compile") as threads:
        found = _ahead = _Ahead(device, threads)
        try:
            yield
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            _ahead = None
    for compiled in found.compiled.values():
        compiled.result()


class _Ahead:
    """What a pass would have launched, once for each way of compiling it."""

    def __init__(self, device: torch.device, threads: ThreadPoolExecutor) -> None:
        self.compiled: dict[Hashable, Future[None]] = {}
        self._device, self._threads = device, threads

    def note(
        self, kernel: Any, grid: Grid, given: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        key = (kernel.__name__, *map(_kind, given), str(constants))
        if key not in self.compiled:
            self.compiled[key] = self._threads.submit(self._compile, kernel, grid, given, constants)

    def _compile(
        self, kernel: Any, grid: Grid, given: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        with torch.cuda.device(self._device):
            kernel.warmup(*given, grid=grid, **constants)


def _kind(given: Any) -> Hashable:
    """What Triton compiles for: a pointer's type and alignment, whether a number is even enough."""
    if isinstance(given, Tensor):
        return given.dtype, given.data_ptr() % 16 == 0
    if isinstance(given, int):
        return given == 1, given % 16 == 0, given.bit_length() > 31
    return type(given).__name__
