"""LoRA's products for tokens laid end to end, any number of each slot: Triton kernels, CUDA alone.

No slot waits for another one's length, and a slot without tokens costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from trials.engines.packed.bank import Views
from trials.engines.packed.corpus import TILE
from trials.engines.packed.cuda import kernels
from trials.engines.packed.cuda.launch import launch
from trials.engines.packed.products import Group

TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# Tokens, and columns or pairs of columns, that one program holds at a time: the quickest of those
# tried on an H200, at Llama's widths and r 16.
DOWN = {"ROWS": 32, "STEP": 64, "num_warps": 4, "num_stages": 4}
UP = {"ROWS": 32, "STEP": 128, "num_warps": 2, "num_stages": 1}
BACK = {"ROWS": 64, "STEP": 128, "num_warps": 8, "num_stages": 3}
BACK_A = {"ROWS": 128, "STEP": 32, "num_warps": 4, "num_stages": 2}
BACK_INPUT = {"ROWS": 64, "STEP": 64, "num_warps": 4, "num_stages": 1}
SUM = 1024  # numbers of one program of `summed`


@dataclass(frozen=True)
class RaggedProducts:
    """Where each slot's tokens are."""

    tokens: int  # all of them, those that belong to no slot included
    tiles: Tensor  # int32 [tiles, 3]: slot, first token, tokens; see `kernels.py`
    starts: Tensor  # int32 [slots + 1]: slot k has the tokens starts[k] .. starts[k + 1] - 1
    scales: Tensor  # fp32 [slots]
    keys: Tensor | None = None  # int32 [T] of keyed dropout; None: no slot drops anything
    thresholds: Tensor | None = None  # int32 [slots]: dropout in 1/65536

    def down(self, x: Tensor, weights: Views, group: Group) -> Tensor:
        if len(x) != self.tokens:
            raise ValueError(f"a layer of {len(x)} tokens in a clock of {self.tokens}")
        r, pairs = weights.a[group.first].shape[1], x.shape[1] // 2
        s = x.new_empty(len(group.keys), len(x), r)
        ranks = _ranks(r)
        launch(
            kernels.down, self._grid(DOWN, r, ranks, modules=len(s)),
            _words(x), _words(weights.flat), s, weights.index, group.first, self.tiles,
            weights.ranks, self.scales, *self._drops(), x.stride(0) // 2,
            weights.flat.stride(0) // 2, s.stride(0), pairs, MODULES=len(s), R=r,
            DROPS=self.keys is not None, DTYPE=TYPES[x.dtype], RANKS=ranks,
            PARTS=TILE // DOWN["ROWS"], **DOWN,
        )
        return s

    def up(
        self, s: Tensor, weights: Views, group: Group, biases: Sequence[Tensor | None]
    ) -> list[Tensor]:
        ys = []
        for place, own_s, bias in zip(group.places, s, biases, strict=True):
            b = weights.b[place]
            columns, r = b.shape[1:]
            y = s.new_empty(self.tokens, columns)
            launch(
                kernels.up, self._grid(UP, columns, UP["STEP"]),
                y, own_s, b, y if bias is None else bias, self.tiles, weights.ranks, b.stride(0),
                columns, R=r, BIASED=bias is not None, DTYPE=TYPES[y.dtype],
                PARTS=TILE // UP["ROWS"], **UP,
            )
            ys.append(y)
        return ys

    def back(
        self, dys: Sequence[Tensor], s: Tensor, weights: Views, gradients: Views, group: Group
    ) -> Tensor:
        r, slots = s.shape[2], len(self.starts) - 1
        ranks, ds = _ranks(r), torch.empty_like(s)
        exact = torch.float32 if s.dtype == torch.float16 else s.dtype  # fp16 may overflow
        for place, dy, own_s, own_ds in zip(group.places, dys, s, ds, strict=True):
            b, gb = weights.b[place], gradients.b[place]
            columns = b.shape[1]
            partial = own_s.new_empty(-(-columns // BACK["STEP"]), *own_s.shape, dtype=exact)
            launch(
                kernels.back, (len(partial), -(-r // ranks), slots),
                dy, b, own_s, gb, partial, self.starts, weights.ranks, self.scales, dy.stride(0),
                b.stride(0), gb.stride(0), partial.stride(0), columns, R=r, RANKS=ranks, **BACK,
            )
            launch(
                kernels.summed, (-(-own_ds.numel() // SUM),),
                partial, own_ds, partial.stride(0), len(partial), own_ds.numel(),
                DTYPE=TYPES[ds.dtype], SIZE=SUM,
            )
        return ds

    def back_a(self, x: Tensor, ds: Tensor, gradients: Views, group: Group) -> None:
        slots, r, pairs = len(self.starts) - 1, ds.shape[2], x.shape[1] // 2
        ranks = _ranks(r)
        launch(
            kernels.back_a, (-(-pairs // BACK_A["STEP"]) * len(ds), -(-r // ranks), slots),
            gradients.flat, ds, _words(x), gradients.index, group.first, self.starts,
            gradients.ranks, *self._drops(), x.stride(0) // 2, gradients.flat.stride(0),
            ds.stride(0), pairs, MODULES=len(ds), R=r, DROPS=self.keys is not None,
            DTYPE=TYPES[x.dtype], RANKS=ranks, **BACK_A,
        )

    def back_input(self, ds: Tensor, weights: Views, group: Group) -> Tensor:
        r, columns = weights.a[group.first].shape[1:]
        dx, pairs = ds.new_empty(self.tokens, columns), columns // 2
        launch(
            kernels.back_input, self._grid(BACK_INPUT, pairs, BACK_INPUT["STEP"]),
            _words(dx), ds, _words(weights.flat), weights.index, group.first, self.tiles,
            weights.ranks, *self._drops(), weights.flat.stride(0) // 2, ds.stride(0), pairs,
            MODULES=len(ds), R=r, DROPS=self.keys is not None, DTYPE=TYPES[dx.dtype],
            PARTS=TILE // BACK_INPUT["ROWS"], **BACK_INPUT,
        )
        return dx

    def _grid(
        self, shape: dict[str, int], size: int, step: int, modules: int = 1
    ) -> tuple[int, int]:
        return len(self.tiles) * (TILE // shape["ROWS"]) * modules, -(-size // step)

    def _drops(self) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.thresholds is None:
            return self.starts, self.starts  # never read
        return self.keys, self.thresholds


def _ranks(r: int) -> int:
    return min(64, max(16, r))  # a tensor core takes no fewer


def _words(tensor: Tensor) -> Any:
    return tensor.view(torch.int32)
