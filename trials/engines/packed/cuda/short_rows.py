"""Causal attention over short rows laid end to end, as Triton kernels: CUDA alone.

Flash attention works in blocks of 128 tokens and adds up the heads that share keys in a pass of
their own; rows of a hundred or two leave most of that empty. Here blocks are smaller, and a program
sums over all heads that share its keys: nothing is added up in an order that could change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trials.engines.packed.cuda import attend
from trials.engines.packed.cuda.launch import launch

WIDTHS = (16, 32, 64, 128)  # of a head
LONGEST = 512  # tokens of a row; beyond it flash attention is quicker
FORWARD = {"M": 64, "N": 32, "num_warps": 4, "num_stages": 3}
BACK_KEYS = {"M": 64, "N": 64, "num_warps": 4, "num_stages": 1}
BACK_QUERIES = {"M": 64, "N": 32, "num_warps": 4, "num_stages": 3}


def suited(q: Tensor, longest: int) -> bool:
    """Whether these kernels can do it, and do it better than flash attention."""
    return q.is_cuda and q.shape[-1] in WIDTHS and longest <= LONGEST


class ShortRows(torch.autograd.Function):
    """Attention of q `[T, heads, d]`, k and v `[T, key heads, d]`; ends int32 `[rows + 1]`.

    Every token belongs to a row; what belongs to none would stay as it was in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int,
        scale: float | None, window: int | None,
    ) -> Tensor:
        tokens, heads, width = q.shape
        y = q.new_empty(tokens, heads, width)
        total = q.new_empty(heads, tokens, dtype=torch.float32)
        ctx.fixed = (1.0 / math.sqrt(width) if scale is None else scale,
                     longest if window is None else window, tokens)
        ctx.blocks = longest, len(ends) - 1
        launch(
            attend.attend, _grid(FORWARD["M"], heads, ctx.blocks),
            q, k, v, y, total, ends, *ctx.fixed, *_strides(0, q, k, v, y),
            *_strides(1, q, k, v, y), SHARED=heads // k.shape[1], WIDTH=width, **FORWARD,
        )
        ctx.save_for_backward(q, k, v, y, total, ends)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, total, ends = ctx.saved_tensors
        dy = gradients[0] if gradients[0].stride(2) == 1 else gradients[0].contiguous()
        heads, shared, width = q.shape[1], k.shape[1], q.shape[2]
        dq, dk, dv = (given.new_empty(given.shape) for given in (q, k, v))
        given = q, k, v, y, dy
        places = *_strides(0, *given), *_strides(1, *given)
        fixed = {"SHARED": heads // shared, "WIDTH": width}
        launch(attend.attend_back_queries, _grid(BACK_QUERIES["M"], heads, ctx.blocks),
               *given, total, dq, ends, *ctx.fixed, *places, **fixed, **BACK_QUERIES)
        launch(attend.attend_back_keys, _grid(BACK_KEYS["N"], shared, ctx.blocks),
               *given, total, dk, dv, ends, *ctx.fixed, *places, **fixed, **BACK_KEYS)
        return dq, dk, dv, None, None, None, None


def _grid(block: int, heads: int, blocks: tuple[int, int]) -> tuple[int, int, int]:
    longest, rows = blocks
    return -(-longest // block), heads, rows


def _strides(dim: int, *tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride(dim) for tensor in tensors)
