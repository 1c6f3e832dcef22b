"""Keyed dropout on CUDA: the bits of `trials.dropout` drawn in registers, by Triton."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trials import dropout

ROWS, STEP = 8, 256  # tokens and columns of one program

GOLDEN = tl.constexpr(dropout.GOLDEN)
MIX_1, MIX_2 = map(tl.constexpr, dropout.MULTIPLIERS)


@triton.jit
def mixed(key):
    key ^= key >> 16
    key *= MIX_1
    key ^= key >> 13
    key *= MIX_2
    return key ^ (key >> 16)


@triton.jit
def row_keys_of(keys, rows, live, module):
    given = tl.load(keys + rows, mask=live, other=0).to(tl.uint32, bitcast=True)
    return mixed(given ^ module)


@triton.jit
def kept(row_keys, pair, threshold):
    """Which even and which odd columns survive dropout, `[rows, pairs]` each."""
    columns = mixed(pair.to(tl.uint32) * GOLDEN)
    bits = mixed(row_keys[:, None] ^ columns[None, :])
    # Signed halves of a word, each compared in its upper half: there nothing must be cut out.
    least = (threshold - 0x8000) << 16
    even, odd = (bits << 16).to(tl.int32, bitcast=True), bits.to(tl.int32, bitcast=True)
    return even >= least, odd >= least


@triton.jit(do_not_specialize=["tokens", "module", "threshold"])
def drop(
    x, y, keys, tokens, module, threshold, scale,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):
    """y = x * scale where it survives, else 0; grid (tokens / ROWS, columns / STEP)."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * STEP + tl.arange(0, STEP)
    live = rows < tokens
    row_keys = row_keys_of(keys, rows, live, module.to(tl.uint32))
    even, odd = kept(row_keys, column // 2, threshold)
    keep = tl.where((column % 2 == 0)[None, :], even, odd)
    place = rows[:, None] * COLUMNS + column[None, :]
    inside = live[:, None] & (column < COLUMNS)[None, :]
    value = tl.load(x + place, mask=inside & keep, other=0.0).to(tl.float32) * scale
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


class Dropped(torch.autograd.Function):
    """`trials.dropout.drop` in one pass each way; no mask is kept.

    x is `[..., columns]`, keys int32 `[...]`; module and p as for `keep_mask`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, module: int, p: float) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.fixed = (module, p)
        return _dropped(x, keys, module, p)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (keys,) = ctx.saved_tensors
        return _dropped(gradients[0], keys, *ctx.fixed), None, None, None


def _dropped(x: Tensor, keys: Tensor, module: int, p: float) -> Tensor:
    x, keys = x.contiguous(), keys.contiguous()
    y, columns = torch.empty_like(x), x.shape[-1]
    drop[(-(-keys.numel() // ROWS), -(-columns // STEP))](
        x, y, keys, keys.numel(), dropout.signed(module), round(p * 65536), 1.0 / (1.0 - p),
        COLUMNS=columns, ROWS=ROWS, STEP=STEP, num_warps=4,
    )
    return y


@functools.cache
def usable() -> bool:
    """Whether this machine can compile it; the same bits come from torch's operations too."""
    try:
        x, keys = torch.ones(1, 2, device="cuda"), torch.zeros(1, dtype=torch.int32, device="cuda")
        _dropped(x, keys, 0, 0.5)
    except Exception:  # no compiler, an old device: Triton has an error of its own for each
        return False
    return True
