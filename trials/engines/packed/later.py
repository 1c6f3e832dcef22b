"""What is on its way between host and device, so that neither waits for the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MOST = 10_000  # pieces of work that `Idle` looks back on


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, on its way."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Later:
    """A copy of a tensor on its way to the host; only reading it waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = _mark()

    def tensor(self) -> Tensor:
        """The copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._host

    def numbers(self) -> list[Any]:
        """The copy as a list."""
        return self.tensor().tolist()


class Span:
    """The time that a piece of the device's work takes, from making this to `end`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = self._now()

    def end(self) -> None:
        """Marks the end of the work."""
        self._end = self._now()

    @property
    def seconds(self) -> float:
        """Waits for the device."""
        if self._cuda:
            self._end.synchronize()
            return float(self._start.elapsed_time(self._end)) / 1000
        return float(self._end - self._start)

    def _now(self) -> Any:
        return _mark() if self._cuda else time.perf_counter()


class Idle:
    """How long a device waits between its last pieces of work; CUDA alone can tell."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: deque[Any] = deque(maxlen=2 * MOST)  # begin, end, begin, end, ...

    def restart(self) -> None:
        """Forgets what was."""
        self._marks.clear()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, work is given to the device."""
        if not self._cuda:
            yield
            return
        self._marks.append(_mark())
        try:
            yield
        finally:
            self._marks.append(_mark())

    @property
    def fraction(self) -> float | None:
        """The share of the time from the first piece to the last; waits for the device."""
        marks = list(self._marks)
        if len(marks) < 4:
            return None
        marks[-1].synchronize()
        pairs = zip(marks[1:-1:2], marks[2::2], strict=True)
        waits = sum(end.elapsed_time(begin) for end, begin in pairs)
        return float(waits / marks[0].elapsed_time(marks[-1]))


def _mark() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
