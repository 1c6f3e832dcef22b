"""What a trial uses: wall-clock time, tokens, peak memory, and how busy the device is."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trials.contract import CurvePoint
from trials.training.state import Progress


class Meter:
    """Counts from the trial's start, which is when it is made.

    `shared`: the process trains other trials too, and its memory is all of theirs.
    """

    def __init__(self, device: torch.device, *, shared: bool = False) -> None:
        self.tokens = 0
        self.eval_seconds = 0.0
        self.sample_seconds = 0.0
        self._earlier_bytes = 0
        self._device, self._shared = device, shared
        self._start = self._lap_start = time.perf_counter()
        self._busy_start = (self._start, time.process_time())
        if device.type == "cuda" and not shared:
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def seconds(self) -> float:
        """Since the trial's start."""
        return time.perf_counter() - self._start

    def point(
        self, *, examples: int, tokens: int, train_loss: float, learning_rate: float,
        grad_norm: float,
    ) -> CurvePoint:
        """The curve's point of a step that just ended, with its speed."""
        now = time.perf_counter()
        speed = tokens / max(now - self._lap_start, 1e-9)
        self._lap_start = now
        self.tokens += tokens
        return CurvePoint(
            examples=examples, train_loss=train_loss, learning_rate=learning_rate,
            grad_norm=grad_norm, tokens_per_s=speed,
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Counts the time within as evaluation, and not as part of the next step."""
        start = time.perf_counter()
        yield
        self._lap_start = time.perf_counter()
        self.eval_seconds += self._lap_start - start

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Counts the time within as spent on samples, and not as part of the next step."""
        start = time.perf_counter()
        yield
        self._lap_start = time.perf_counter()
        self.sample_seconds += self._lap_start - start

    def waited(self, seconds: float) -> None:
        """Counts time in which others were evaluated: it is no part of the next step either."""
        self.eval_seconds += seconds
        self._lap_start += seconds

    def waited_for_samples(self, seconds: float) -> None:
        """Likewise while samples were written."""
        self.sample_seconds += seconds
        self._lap_start += seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The time within is no part of the next step."""
        start = time.perf_counter()
        yield
        self._lap_start += time.perf_counter() - start

    def resume(self, progress: Progress) -> None:
        """Counts on from what an earlier attempt had used."""
        self.tokens += progress.tokens
        self.eval_seconds += progress.eval_seconds
        self.sample_seconds += progress.sample_seconds
        self._start -= progress.seconds
        self._earlier_bytes = progress.memory_bytes
        self._lap_start = time.perf_counter()

    def memory_bytes(self) -> int:
        """The peak: on CUDA the trial's own, of a shared process all that it holds; on a CPU the
        process's since it began."""
        return max(self._earlier_bytes, self._peak_bytes())

    def _peak_bytes(self) -> int:
        if self._device.type == "cuda":
            if self._shared:  # what recorded clocks use is allocated while they are recorded alone
                return torch.cuda.max_memory_reserved(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def utilisation(self) -> float | None:
        """How busy the device is, 0..1: a CPU's threads since the last call, CUDA's kernels now."""
        if self._device.type == "cuda":
            return _cuda_utilisation(self._device)
        wall, cpu = time.perf_counter(), time.process_time()
        (wall_before, cpu_before), self._busy_start = self._busy_start, (wall, cpu)
        share = (cpu - cpu_before) / max(wall - wall_before, 1e-9) / torch.get_num_threads()
        return min(1.0, share)


def _cuda_utilisation(device: torch.device) -> float | None:
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # the driver's library for it is not always installed; nothing depends on it
        return None
