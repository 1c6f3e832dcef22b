"""What a decoder layer does beside its products, compiled: norms, rotation and gating.

Each of them is many small passes over all tokens when it is done operation by operation, and one
pass when torch.compile fuses it. The functions are the model's own, so any family's will do; the
number of tokens is left open, so that no clock compiles anything again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
# The quickest of several ways, tried at the first call. Not for norms: those sum, and another way
# would sum in another order.
TUNED = {"max_autotune_pointwise": True}


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Within, the model's elementwise parts are compiled."""
    changed: list[nn.Module] = []
    rotation = sys.modules[type(model).__module__]
    plain = getattr(rotation, "apply_rotary_pos_emb", None)
    try:
        with torch._dynamo.config.patch(recompile_limit=64):
            for module in model.modules():
                if forward := _forward(module):
                    vars(module)["forward"] = forward
                    changed.append(module)
            if plain is not None:
                vars(rotation)["apply_rotary_pos_emb"] = _rotation(plain)
            yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)
        if plain is not None:
            vars(rotation)["apply_rotary_pos_emb"] = plain


def _forward(module: nn.Module) -> Callable[..., Tensor] | None:
    if type(module).__name__.endswith("RMSNorm"):
        return partial(_norm, _compiled(type(module).forward), module)
    if all(hasattr(module, name) for name in GATED) and _is_gated(module):
        return partial(_gated, module)
    return None


def _norm(compiled: Callable[..., Tensor], module: nn.Module, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    torch._dynamo.maybe_mark_dynamic(rows, 0)
    return compiled(module, rows).view(x.shape)


def _gated(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    rows, others = gate.flatten(0, 1), up.flatten(0, 1)
    for tensor in (rows, others):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    product = _compiled(_gate, TUNED)(module.act_fn, rows, others)
    found: Tensor = module.down_proj(product.view(gate.shape))
    return found


def _gate(act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    found: Tensor = act(gate) * up
    return found


def _rotation(plain: Callable[..., Any]) -> Callable[..., Any]:
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named:
            return plain(q, k, cos, sin, *more, **named)
        # By token, as the layers before and after lie in memory: no copies there.
        tokens = [states.transpose(1, 2) for states in (q, k)]
        for tensor in (*tokens, cos, sin):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
        q, k = _compiled(plain, TUNED)(*tokens, cos, sin, unsqueeze_dim=2)
        return q.transpose(1, 2), k.transpose(1, 2)

    return rotated


@torch.no_grad()
def _is_gated(module: Any) -> bool:
    """Whether this is down(act(gate(x)) * up(x)), as its parts' names suggest."""
    weight = module.gate_proj.weight
    x = torch.linspace(-1, 1, 4 * module.gate_proj.in_features, device=weight.device)
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.bfloat16
    x = x.view(1, 4, -1).to(dtype)
    ours = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
    return torch.equal(module(x), ours)


_made: dict[Any, Any] = {}


def _compiled(
    function: Callable[..., Any], options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    if function not in _made:
        _made[function] = torch.compile(function, options=options)
    made: Callable[..., Any] = _made[function]
    return made
