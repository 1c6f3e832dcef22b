"""Work on the device whose launches are recorded once per shape and replayed: CUDA graphs.

A forward and backward is thousands of small launches, which a host makes more slowly than a device
does the work. Recorded work reads and writes tensors where they were: what changes between clocks
is copied into the buffers of its key, and what stays (bank, vectors) never moves. Where nothing is
recorded (a CPU, `engine.compile=false`), the work is simply done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trials.base.devices import recording_stream
from trials.engines.packed.later import sent

MOST = 48  # recordings at once; shapes beyond them are simply done

Work = Callable[[dict[str, Tensor]], Any]


@dataclass
class _Recording:
    graph: Any
    inputs: dict[str, Tensor]
    result: Any


class Replays:
    """The recordings of one device, by key. `forget` when what they read has moved."""

    def __init__(self, device: torch.device, *, records: bool) -> None:
        self._device, self._records = device, records
        self._made: dict[Hashable, _Recording] = {}
        self._pool: Any = None

    def run(self, key: Hashable, inputs: Mapping[str, Tensor], work: Work) -> Any:
        """Does `work` with `inputs` (on the host) on the device; what it returns is overwritten
        by the next run of the same key."""
        if not self._records:
            return work({name: sent(value, self._device) for name, value in inputs.items()})
        if key not in self._made:
            if len(self._made) >= MOST:
                return work({name: sent(value, self._device) for name, value in inputs.items()})
            self._made[key] = self._recorded(inputs, work)
        recording = self._made[key]
        for name, value in inputs.items():
            recording.inputs[name].copy_(value.pin_memory(), non_blocking=True)
        recording.graph.replay()
        return recording.result

    def forget(self) -> None:
        """Drops all recordings and their memory."""
        self._made.clear()
        self._pool = None

    def _recorded(self, inputs: Mapping[str, Tensor], work: Work) -> _Recording:
        buffers = {name: sent(value, self._device) for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream = recording_stream(self._device)
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = work(buffers)
        return _Recording(graph, buffers, result)
