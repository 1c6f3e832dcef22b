"""The frozen, quantised base and its tokenizer, loaded once per process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trials.base.devices import DTYPES, compute_dtype
from trials.base.devices import device_facts as device_facts
from trials.base.devices import resolve_device as resolve_device
from trials.base.origin import locate
from trials.base.quantised import (
    as_stored,
    check_quantised,
    loaded_bytes,
    parameter_count,
    quantisation,
    set_compute_dtype,
)
from trials.base.targets import linear_modules, module_names, presets
from trials.base.targets import resolve_targets as resolve_targets
from trials.contract import InputError, ModelConfig, ModelFacts
from trials.hub import Progress, in_short
from trials.quiet import quiet

STEPS = 4  # of `load_base`, as its progress counts


@dataclass
class Base:
    """A base ready to carry adapters; `config` says exactly which one it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    facts: ModelFacts
    device: torch.device


def load_base(model: ModelConfig, device: str, progress: Progress) -> Base:
    """Loads, quantises and freezes the base on `device`.

    Raises InputError for whatever the user can change: no such base or device, weights that are
    not safetensors, a quantisation that the base does not take.
    """
    where = resolve_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # kernels, events and graphs belong to the current one
    dtype = compute_dtype(where, model.dtype)
    quantisation(model, dtype)  # checks the names before anything is read
    # Of masked rows its backward can be NaN (huggingface/trl issue 7181), and it plans anew for
    # every length that occurs, which costs more than it gains.
    torch.backends.cuda.enable_cudnn_sdp(False)
    with quiet():
        progress("finding the base", 0, STEPS)
        folder, name, revision = locate(model, progress)
        config = replace(model, name=name, revision=revision, dtype=dtype)
        progress("loading the tokenizer", 1, STEPS)
        tokenizer = _tokenizer(folder, config)
        progress("loading and quantising the base", 2, STEPS)
        loaded = _model(folder, config, where)
        progress("checking the base", 3, STEPS)
        _check_vocabulary(config, loaded, tokenizer)
        set_compute_dtype(loaded, dtype)
        _freeze(loaded)
        check_quantised(loaded, config)
        facts = _facts(loaded, config)
        progress("loading the base", STEPS, STEPS)
    return Base(loaded, tokenizer, config, facts, where)


def _tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        raise _unreadable(config, "tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model.name={config.name}: its tokenizer has no end-of-text token (eos_token), so a "
            "completion could not end. Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # never seen: padding carries no loss
    tokenizer.padding_side = "right"
    return cast(PreTrainedTokenizerBase, tokenizer)


def _model(folder: Path, config: ModelConfig, device: torch.device) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "dtype": DTYPES[config.dtype],
        "device_map": {"": str(device)},
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    if not as_stored(folder, config) and (how := quantisation(config, config.dtype)):
        options["quantization_config"] = how
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"model.name={config.name}: it does not fit into the memory of {device} as "
            f"model.quantisation={config.quantisation}. Type model.quantisation=nf4, or take a "
            "smaller base."
        ) from error
    except Exception as error:
        raise _unreadable(config, "model", error) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"model.name={config.name}: its files lack {len(missing)} weights ({missing[0]}, ...), "
            "which would be random. Take a complete copy of a causal language model."
        )
    return cast(PreTrainedModel, model)


def _unreadable(config: ModelConfig, what: str, error: Exception) -> InputError:
    text, hint = in_short(error), ""
    if "trust_remote_code" in str(error) and not config.trust_remote_code:
        hint = " It brings code of its own: read that code, then type model.trust_remote_code=true."
    return InputError(
        f"model.name={config.name}: its {what} cannot be loaded.{hint} The library said: {text}"
    )


def _check_vocabulary(
    config: ModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"model.name={config.name}: its tokenizer has {len(tokenizer)} tokens and its model "
            f"only {rows}. They do not belong together; take both from one place."
        )


def _freeze(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.config.use_cache = False  # of no use in training, and it warns under checkpointing
    for module in model.modules():
        _without_dropout(module)
        # bitsandbytes 0.50 repacks NF4 weights at the first evaluation on CPUs with AVX512-BF16,
        # and its backward then misreads them: wrong gradients without a word.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _without_dropout(module: torch.nn.Module) -> None:
    # GPT-2's or OPT's own dropout would draw from one generator for all rows, so that a trial's
    # losses depended on its micro-batch. `lora.dropout` is the one that a trial asks for.
    if isinstance(module, _DropoutNd):
        module.p = 0.0
    for name, value in list(vars(module).items()):
        if "drop" in name and isinstance(value, float):
            setattr(module, name, 0.0)


def _facts(model: PreTrainedModel, config: ModelConfig) -> ModelFacts:
    names = module_names(linear_modules(model))
    return ModelFacts(
        name=config.name,
        revision=config.revision,
        architecture=type(model).__name__,
        parameters=parameter_count(model),
        linear_modules=names,
        presets=presets(names),
        loaded_bytes=loaded_bytes(model),
    )
