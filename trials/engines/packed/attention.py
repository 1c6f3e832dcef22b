"""Causal attention over rows laid end to end: no padding, and no row sees another one.

    with end_to_end(model):
        model(input_ids, position_ids=..., **row_ends(ends, longest))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "packed"


def row_ends(ends: Tensor, longest: int) -> dict[str, Any]:
    """Tells attention where rows begin: int32 `[rows + 1]`, and how long they may be."""
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest,
            "max_length_k": longest}


@contextmanager
def end_to_end(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model's attention is that of `row_ends`."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, cu_seq_lens_q: Tensor, max_length_q: int, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:
    if softcap is not None or attention_mask is not None or s_aux is not None:
        raise ValueError("attention with a soft cap, sinks or a mask of its own")
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    given = cu_seq_lens_q, max_length_q, scaling, sliding_window
    y: Tensor = _kernels(q, max_length_q).apply(q, k, v, *given)  # type: ignore[no-untyped-call]
    return y.unsqueeze(0), None


def _kernels(q: Tensor, longest: int) -> type[torch.autograd.Function]:
    from trials.engines.packed.cuda import short_rows

    return short_rows.ShortRows if short_rows.suited(q, longest) else _Rows


class _Rows(torch.autograd.Function):
    """Flash attention of `[T, heads, d]`, as `torch.nn.attention.varlen` calls it.

    Its backward adds up in any order unless it is told not to; here the same clock shall give the
    same bits, and torch's switch for that would reach every other operation too.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int,
        scale: float | None, window: int | None,
    ) -> Tensor:
        sides = {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}
        ctx.fixed = {"scale": scale, **sides}
        ctx.rows = (ends, ends, longest, longest, 0.0, window is None)
        y, total, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *ctx.rows, return_debug_mask=False, **ctx.fixed
        )
        ctx.save_for_backward(q, k, v, y, total, state, unused)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *states, state, unused = ctx.saved_tensors
        with deterministic():
            dq, dk, dv = torch.ops.aten._flash_attention_backward(
                gradients[0].contiguous(), *states, *ctx.rows, state, unused, **ctx.fixed
            )
        return dq, dk, dv, None, None, None, None


@contextmanager
def deterministic() -> Iterator[None]:
    """Within, what can sums in a fixed order."""
    before = torch.are_deterministic_algorithms_enabled()
    switches: Any = torch.utils.deterministic
    filled = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        switches.fill_uninitialized_memory = filled


AttentionInterface.register(NAME, _attention)
