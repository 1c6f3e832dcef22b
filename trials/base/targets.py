"""Which modules of a base LoRA may target: their real names, and presets resolved against them.

A module goes by its last name ("q_proj"); where two kinds of module share it (GPT-2's "c_proj" in
attention and MLP), by its last two ("attn.c_proj"). PEFT matches both as suffixes of a path.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trials.contract import InputError, ModelFacts

if TYPE_CHECKING:
    import torch

# What a module does, by its name in the families: Llama, Qwen, Mistral, Gemma, Phi-3 (fused),
# GPT-2 (fused), OPT, Phi-1/2 ("dense"), GPT-NeoX and Falcon ("query_key_value"), MPT ("Wqkv").
ROLES: dict[str, tuple[str, ...]] = {
    "q": ("q_proj", "wq"),
    "k": ("k_proj", "wk"),
    "v": ("v_proj", "wv"),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "W_pack"),
    "o": ("o_proj", "out_proj", "attn.c_proj", "wo", "dense"),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "fc_in", "fc_out",
            "c_fc", "mlp.c_proj", "w1", "w2", "w3", "dense_h_to_4h", "dense_4h_to_h"),
}
# A preset asks for one role of each group. A fused projection stands for each of its parts: there
# is no way to adapt one part alone.
Q, K, V, OUT = ("q", "qkv"), ("k", "qkv"), ("v", "qkv"), ("o",)
PRESETS: dict[str, tuple[tuple[str, ...], ...]] = {
    "q": (Q,),
    "qk": (Q, K),
    "qv": (Q, V),
    "qkv": (Q, K, V),
    "qkvo": (Q, K, V, OUT),
    "attention": (Q, K, V, OUT),
    "mlp": (("mlp",),),
}


def linear_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every linear module by its path, output head left out."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (Linear, Conv1D)) and module is not head
    }


def module_names(paths: Iterable[str]) -> tuple[str, ...]:
    """The shortest names that tell kinds of module apart, in the order of `paths`."""
    split = [path.rpartition(".")[::2] for path in paths]
    parents: dict[str, set[str]] = {}
    for parent, last in split:
        parents.setdefault(last, set()).add(_kind(parent))
    names = (
        f"{_kind(parent)}.{last}" if len(parents[last]) > 1 and _kind(parent) else last
        for parent, last in split
    )
    return tuple(dict.fromkeys(names))


def presets(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The presets that this model has, each as its modules' names."""
    found = {}
    for preset, groups in PRESETS.items():
        if all(any(_plays(name, group) for name in names) for group in groups):
            wanted = tuple(role for group in groups for role in group)
            found[preset] = tuple(name for name in names if _plays(name, wanted))
    return found | {"all-linear": names}


def resolve_targets(facts: ModelFacts, target_modules: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names of the modules that a preset, a name or several names mean in this model.

    Raises InputError with the nearest and all real names where one is unknown.
    """
    if isinstance(target_modules, str) and target_modules in facts.presets:
        return facts.presets[target_modules]
    wanted = (target_modules,) if isinstance(target_modules, str) else target_modules
    if not wanted:
        raise InputError(f"lora.target_modules is empty. {_there(facts)}")
    named = [_resolve(facts, name) for name in wanted]
    return tuple(dict.fromkeys(name for group in named for name in group))


def _kind(parent: str) -> str:
    """What the module that holds another one is called; "" where it goes by a number."""
    last = parent.rpartition(".")[2]
    return "" if last.isdigit() else last


def _plays(name: str, roles: tuple[str, ...]) -> bool:
    known = {known for role in roles for known in ROLES[role]}
    return name in known or name.rpartition(".")[2] in known


def _resolve(facts: ModelFacts, name: str) -> tuple[str, ...]:
    if name in facts.presets:
        return facts.presets[name]
    if matches := tuple(m for m in facts.linear_modules if m == name or m.endswith(f".{name}")):
        return matches
    if name in PRESETS:
        raise InputError(
            f"lora.target_modules={name!r}: {facts.name} ({facts.architecture}) has no modules for "
            f"this preset. {_there(facts)}"
        )
    near = difflib.get_close_matches(name, [*facts.linear_modules, *facts.presets], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"lora.target_modules={name!r}: {facts.name} ({facts.architecture}) has no such module."
        f"{hint} {_there(facts)}"
    )


def _there(facts: ModelFacts) -> str:
    return f"Modules: {', '.join(facts.linear_modules)}. Presets: {', '.join(facts.presets)}."
