"""How a base is quantised: the library's configuration, and the proof that it came out as asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trials.base.devices import DTYPES
from trials.base.targets import linear_modules
from trials.contract import InputError, ModelConfig

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

QUANTISATIONS = ("nf4", "fp4", "int8", "none")


def quantisation(model: ModelConfig, dtype: str) -> BitsAndBytesConfig | None:
    """What the library is told; None for an unquantised base."""
    if model.quantisation not in QUANTISATIONS:
        known = ", ".join(QUANTISATIONS)
        raise InputError(f"model.quantisation={model.quantisation!r} is unknown. Known: {known}.")
    if model.quantisation == "none":
        return None
    from transformers import BitsAndBytesConfig

    if model.quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantisation,
        bnb_4bit_use_double_quant=model.double_quantisation,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )


def as_stored(folder: Path, config: ModelConfig) -> bool:
    """Whether the files themselves are quantised by bitsandbytes.

    Raises InputError where they are by another method, or although none was asked for.
    """
    stored = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if stored is None:
        return False
    method = stored.get("quant_method", "an unknown method")
    if method != "bitsandbytes" or config.quantisation == "none":
        raise InputError(
            f"model.name={config.name}: its files are already quantised ({method}), asked was "
            f"{config.quantisation}. Take the base's original weights."
        )
    return True


def set_compute_dtype(model: torch.nn.Module, dtype: str) -> None:
    """Computes in `dtype` in every 4-bit layer, whatever the stored configuration said."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = DTYPES[dtype], True


def check_quantised(model: torch.nn.Module, config: ModelConfig) -> None:
    """Raises InputError unless every linear module but the head is quantised as `config` says."""
    layers = linear_modules(model)
    if not layers:
        raise InputError(f"model.name={config.name}: it has no linear modules for LoRA to target.")
    for path, layer in layers.items():
        if (found := _found(layer)) != (asked := _asked(config)):
            raise InputError(
                f"model.name={config.name}: {path} is quantised as {found}, asked was {asked}. "
                "Type model.quantisation=none or another one of "
                f"{', '.join(QUANTISATIONS)}, or take the base's original weights."
            )
        _check_blocks(config, path, layer)


def parameter_count(model: torch.nn.Module) -> int:
    """How many numbers the base has, packed ones counted one by one and tied ones once."""
    return sum(_numbers(parameter) for parameter in model.parameters())


def loaded_bytes(model: torch.nn.Module) -> int:
    """The memory that weights, buffers and quantisation constants take."""
    tensors = [*model.parameters(), *model.buffers()]
    constants = [t for p in model.parameters() for t in _constants(p)]
    return sum(t.nbytes for t in (*tensors, *constants))


def _asked(config: ModelConfig) -> str:
    double = config.double_quantisation and config.quantisation in ("nf4", "fp4")
    return f"{config.quantisation}, doubly" if double else config.quantisation


def _found(layer: torch.nn.Module) -> str:
    import bitsandbytes

    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        state = getattr(layer.weight, "quant_state", None)
        if state is None:
            return "none"
        return f"{state.quant_type}, doubly" if state.nested else str(state.quant_type)
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        return "int8" if layer.weight.dtype == torch.int8 else "none"
    return "none" if layer.weight.dtype.is_floating_point else str(layer.weight.dtype)


def _check_blocks(config: ModelConfig, path: str, layer: torch.nn.Module) -> None:
    state: Any = getattr(layer.weight, "quant_state", None)
    width = getattr(layer, "in_features", 0)
    if state is not None and width % state.blocksize:
        raise InputError(
            f"model.name={config.name}: {path} is {width} wide, not a multiple of the "
            f"{state.blocksize} weights that share one 4-bit scale. Type model.quantisation=int8 "
            "or model.quantisation=none."
        )


def _numbers(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _constants(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    state: Any = getattr(parameter, "quant_state", None)
    if state is None:
        outer = getattr(parameter, "SCB", None)  # the row scales of int8
        return [] if outer is None else [outer]
    inner = [state.state2.absmax] if state.nested else []
    return [state.absmax, *inner]
