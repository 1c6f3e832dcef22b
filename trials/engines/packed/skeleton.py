"""Adapters as PEFT makes and writes them, on a copy of the base that holds no weights.

A trial's first A must be the one that the TRL engine would draw, and its last adapter a folder
that PEFT loads: PEFT itself makes the one and says how to write the other, on a skeleton with the
base's modules and shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.adapters import NAME, PREFIX, fresh_adapter, lora_layers, settings, write
from trials.contract import LoraConfig
from trials.engines.packed.bank import Drawn, Factors

KEPT_BYTES = {"cuda": 2**31, "cpu": 2**28}  # of first adapters, on the host
Origin = tuple[str, str | None]  # a folder or hub name, and its revision
Names = Mapping[str, tuple[str, int]]  # PEFT's of a tensor -> module path, 0 for its A, 1 for its B


class Skeleton:
    """A base's modules without their numbers."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._pins, self._keeps = base.device.type == "cuda", KEPT_BYTES[base.device.type]
        self._drawn: OrderedDict[Any, Drawn] = OrderedDict()  # by rank, targets and seed
        self._names: dict[tuple[str, ...], Names] = {}  # by targets
        with torch.device("meta"):
            self._model = type(base)(base.config)
        real = dict(base.named_modules())
        for name, module in self._model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, _nothing(parameter.shape, _dtype(real[name], key)))

    def initial(self, lora: LoraConfig, targets: Sequence[str], seed: int) -> Drawn:
        """The adapter that a trial starts from, on the host; trials of a study share a few."""
        key = lora.r, tuple(targets), seed
        found = self._drawn.pop(key, None)
        if found is None:
            with fresh_adapter(self._model, lora, targets, seed) as adapter:
                layers: Mapping[str, Any] = lora_layers(adapter.model)
                found = self._kept({name: layer.lora_A[NAME].weight.detach()
                                    for name, layer in layers.items()})
        self._drawn[key] = found
        while len(self._drawn) > 1 and sum(map(_bytes, self._drawn.values())) > self._keeps:
            self._drawn.popitem(last=False)
        return found

    def _kept(self, drawn: Drawn) -> Drawn:
        """Copies, in one piece of memory from which a device can fetch them by itself."""
        size = sum(map(Tensor.numel, drawn.values()))
        every = torch.empty(size, dtype=torch.float32, pin_memory=self._pins)
        pieces = torch.split(every, [a.numel() for a in drawn.values()])
        return {name: piece.view_as(a).copy_(a)
                for piece, (name, a) in zip(pieces, drawn.items(), strict=True)}

    def export(
        self, factors: Factors, lora: LoraConfig, targets: Sequence[str], folder: Path,
        origin: Origin,
    ) -> Path:
        """Writes an adapter in PEFT format and returns `folder`."""
        names = self._names_in_files(lora, tuple(targets))
        state = {name: factors[path][k] for name, (path, k) in names.items()}
        return write(state, settings(lora, targets), folder, base=origin[0], revision=origin[1])

    def _names_in_files(self, lora: LoraConfig, targets: tuple[str, ...]) -> Names:
        """PEFT is asked once for all adapters of these targets, which takes it a while."""
        from peft import get_peft_model_state_dict

        if targets not in self._names:
            with fresh_adapter(self._model, lora, targets, seed=None) as adapter:
                state = get_peft_model_state_dict(adapter.model, save_embedding_layers=False)
            self._names[targets] = {name: _place(name) for name in state}
        return self._names[targets]


def targeted(paths: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The paths that PEFT would adapt for these names: it matches them as suffixes."""
    return tuple(path for path in paths
                 if any(path == name or path.endswith(f".{name}") for name in targets))


def _place(name: str) -> tuple[str, int]:
    path, _, factor = name.removeprefix(PREFIX).rpartition(".lora_")
    return path, "AB".index(factor[0])


def _bytes(drawn: Drawn) -> int:
    return sum(a.nbytes for a in drawn.values())


def _dtype(module: nn.Module, key: str) -> torch.dtype:
    if hasattr(module, "compute_dtype"):  # a 4-bit layer: PEFT looks at what it computes in
        return getattr(module, "compute_dtype", None) or torch.uint8
    return module.get_parameter(key).dtype


def _nothing(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    # One number seen from everywhere. Not on the meta device: PEFT would put its A there too. Of
    # the base's dtype, since PEFT rounds an A to it where that is a floating one.
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)
