"""A fresh LoRA adapter on a resident base: put on, exported in PEFT format, taken off completely.

    with fresh_adapter(base.model, lora, targets, seed) as adapter:
        ... adapter.keys.rows = row_keys(...); adapter.model(...)
    # the base computes, bit for bit, what it did before
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trials.contract import LoraConfig
from trials.dropout import RowKeys, attach

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

NAME = "default"  # PEFT's own name, so that exported keys are what its loaders expect
PREFIX = "base_model.model."  # what PEFT puts before a base's module paths


@dataclass
class Adapter:
    """An adapter in place. `parameters` are fp32, whatever the base computes in."""

    model: PeftModel
    parameters: list[nn.Parameter]
    keys: RowKeys  # set `keys.rows` before each training forward

    @property
    def trainable_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters)


@contextmanager
def fresh_adapter(
    base: PreTrainedModel, lora: LoraConfig, targets: Sequence[str], seed: int | None
) -> Iterator[Adapter]:
    """An adapter as PEFT initialises it under `seed`, with keyed dropout, removed on leaving.

    Without a seed nothing is drawn: its parameters are on the meta device.
    """
    before = dict(vars(base))
    try:
        model = _inject(base, lora, targets, seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        keys = RowKeys()
        attach(lora_layers(model), p=lora.dropout, keys=keys, adapter=NAME)
        yield Adapter(model, parameters, keys)
    finally:
        _remove(base, before)


def export(adapter: Adapter, folder: Path, *, base: str, revision: str | None = None) -> Path:
    """Writes the adapter in PEFT format and returns `folder`, which appears complete or not at all.

    `AutoPeftModelForCausalLM.from_pretrained(folder)` loads it on `base`, a folder or a hub name
    with its revision.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapter.model, save_embedding_layers=False)
    config = adapter.model.peft_config[NAME]
    return write(state, config, folder, base=base, revision=revision)


def write(
    state: Mapping[str, Tensor], config: PeftConfig, folder: Path, *, base: str,
    revision: str | None = None,
) -> Path:
    """As `export`, of an adapter's tensors by the names of PEFT's files, and its settings."""
    from safetensors.torch import save_file

    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process
    aside.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(config)
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = base, revision
    config.save_pretrained(str(aside))
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
    aside.rename(folder)
    return folder


def settings(lora: LoraConfig, targets: Sequence[str]) -> PeftConfig:
    """An adapter's settings as PEFT has them."""
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        use_rslora=lora.rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _inject(
    base: PreTrainedModel, lora: LoraConfig, targets: Sequence[str], seed: int | None
) -> PeftModel:
    import peft

    config = settings(lora, targets)
    if seed is None:
        return peft.get_peft_model(base, config, adapter_name=NAME, low_cpu_mem_usage=True)
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return peft.get_peft_model(base, config, adapter_name=NAME)


def lora_layers(model: PeftModel) -> dict[str, nn.Module]:
    """The layers that carry an adapter, by their paths in the base."""
    named = model.named_modules()
    return {name.removeprefix(PREFIX): module for name, module in named
            if hasattr(module, "lora_dropout")}


def _remove(base: Any, before: dict[str, Any]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Not PEFT's `unload`: it needs an adapter that was put on completely.
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.get_base_layer())
    if base.is_gradient_checkpointing:
        base.gradient_checkpointing_disable()
    if getattr(base, "_require_grads_hook", None) is not None:
        base.disable_input_require_grads()
    # Trainers and PEFT patch the base's forward and mark it; nothing may reach the next trial.
    for name in set(vars(base)) - set(before):
        delattr(base, name)
    vars(base).update(before)
    base.eval()
