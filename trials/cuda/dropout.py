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
def folded(key):
    return key ^ (key >> 16)


@triton.jit
def multiplied(key):
    key *= MIX_1
    key ^= key >> 13
    return key * MIX_2


@triton.jit
def row_keys_of(keys, rows, live, module):
    """The tokens' keys for a module, without the hash's last fold, as `kept` takes them."""
    given = tl.load(keys + rows, mask=live, other=0).to(tl.uint32, bitcast=True)
    return multiplied(folded(given ^ module))


@triton.jit
def kept(row_keys, pair, threshold):
    """Which even and which odd columns survive dropout, `[rows, pairs]` each."""
    # A hash is a fold, multiplications and a fold. Two folds undo each other, and a fold of
    # row ^ column is that of each: so the last ones of both keys and the first one here are left
    # out. Halves of the result are compared as signed numbers in the upper half of a word, where
    # the lower one decides nothing, for `least` has 0 there; the last fold changes that one alone.
    columns = multiplied(folded(pair.to(tl.uint32) * GOLDEN))
    bits = multiplied(row_keys[:, None] ^ columns[None, :])
    least = (threshold - 0x8000) << 16
    even = (bits ^ (bits << 16)).to(tl.int32, bitcast=True)
    return even >= least, bits.to(tl.int32, bitcast=True) >= least


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
