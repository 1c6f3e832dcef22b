"""Adapters as PEFT makes and writes them, on a copy of the base that holds no weights.

A trial's first A must be the one that the TRL engine would draw, and its last adapter a folder
that PEFT loads: both are done by PEFT itself, on a skeleton with the base's modules and shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trials.adapters import NAME, export, fresh_adapter, lora_layers
from trials.contract import LoraConfig
from trials.engines.packed.bank import Factors

KEPT_BYTES = 2 * 2**30  # of first adapters, on the host
Origin = tuple[str, str | None]  # a folder or hub name, and its revision


class Skeleton:
    """A base's modules without their numbers."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._drawn: OrderedDict[Any, Factors] = OrderedDict()  # by rank, targets and seed
        with torch.device("meta"):
            self._model = type(base)(base.config)
        real = dict(base.named_modules())
        for name, module in self._model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, _nothing(parameter.shape, _dtype(real[name], key)))

    def initial(self, lora: LoraConfig, targets: Sequence[str], seed: int) -> Factors:
        """The adapter that a trial starts from, on the CPU; trials of a study share a few."""
        key = lora.r, tuple(targets), seed
        found = self._drawn.pop(key, None)
        if found is None:
            with fresh_adapter(self._model, lora, targets, seed) as adapter:
                layers: Mapping[str, Any] = lora_layers(adapter.model)
                found = {name: (layer.lora_A[NAME].weight.detach().clone(),
                                _kept(layer.lora_B[NAME].weight.detach()))
                         for name, layer in layers.items()}
        self._drawn[key] = found
        while len(self._drawn) > 1 and sum(map(_bytes, self._drawn.values())) > KEPT_BYTES:
            self._drawn.popitem(last=False)
        return found

    def export(
        self, factors: Factors, lora: LoraConfig, targets: Sequence[str], folder: Path,
        origin: Origin,
    ) -> Path:
        """Writes an adapter in PEFT format and returns `folder`."""
        with fresh_adapter(self._model, lora, targets, seed=None) as adapter:
            layers: Mapping[str, Any] = lora_layers(adapter.model)
            for name, layer in layers.items():
                pair = (layer.lora_A[NAME], layer.lora_B[NAME])
                for linear, value in zip(pair, factors[name], strict=True):
                    linear.weight = nn.Parameter(value.float(), requires_grad=False)
            return export(adapter, folder, base=origin[0], revision=origin[1])


def targeted(paths: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The paths that PEFT would adapt for these names: it matches them as suffixes."""
    return tuple(path for path in paths
                 if any(path == name or path.endswith(f".{name}") for name in targets))


def _kept(b: Tensor) -> Tensor:
    return b.clone() if b.any() else b.new_zeros(()).expand(b.shape)


def _bytes(factors: Factors) -> int:
    return sum(a.nbytes for a, _ in factors.values())


def _dtype(module: nn.Module, key: str) -> torch.dtype:
    if hasattr(module, "compute_dtype"):  # a 4-bit layer: PEFT looks at what it computes in
        return getattr(module, "compute_dtype", None) or torch.uint8
    return module.get_parameter(key).dtype


def _nothing(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    # One number seen from everywhere. Not on the meta device: PEFT would put its A there too. Of
    # the base's dtype, since PEFT rounds an A to it where that is a floating one.
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)
