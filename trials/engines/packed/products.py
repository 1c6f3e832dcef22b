"""LoRA's products for the tokens of a whole pack, where every slot has as many: one bmm each.

What lies differently (`ragged.py`) has the same five products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trials.dropout import keep_mask


class Products(Protocol):
    """For tokens x `[T, d_in]` and y `[T, d_out]`, each row of its own slot's a and b.

    a is `[slots, r, d_in]`, b `[slots, d_out, r]`, s and ds `[T, r]`; `module` is the key of
    keyed dropout. A slot's scale is alpha / r over 1 - p.
    """

    def down(self, x: Tensor, a: Tensor, module: int) -> Tensor:
        """s = scale * drop(x) a^T."""

    def up(self, y: Tensor, s: Tensor, b: Tensor) -> None:
        """y += s b^T."""

    def back(self, dy: Tensor, b: Tensor) -> Tensor:
        """ds = scale * dy b."""

    def add_gradients(
        self, ga: Tensor, gb: Tensor, x: Tensor, s: Tensor, dy: Tensor, ds: Tensor, module: int
    ) -> None:
        """gb += dy^T s; ga += ds^T drop(x)."""

    def add_input(self, dx: Tensor, ds: Tensor, a: Tensor, module: int) -> None:
        """dx += mask * (ds a)."""


@dataclass(frozen=True)
class Padded:
    """The first n slots' tokens, slot by slot, as many of each."""

    scale: Tensor  # [n, 1, 1]
    keys: Tensor | None = None  # [n, tokens] of keyed dropout; None: no slot drops anything
    rates: Tensor | None = None  # [n, 1, 1] of dropout, fp64

    def down(self, x: Tensor, a: Tensor, module: int) -> Tensor:
        return torch.bmm(self._dropped(x, module), a.mT).mul_(self.scale).flatten(0, 1)

    def up(self, y: Tensor, s: Tensor, b: Tensor) -> None:
        self._by_slot(y).baddbmm_(self._by_slot(s), b.mT)

    def back(self, dy: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(self._by_slot(dy), b).mul_(self.scale).flatten(0, 1)

    def add_gradients(
        self, ga: Tensor, gb: Tensor, x: Tensor, s: Tensor, dy: Tensor, ds: Tensor, module: int
    ) -> None:
        _add_product(gb, self._by_slot(dy).mT, self._by_slot(s))
        _add_product(ga, self._by_slot(ds).mT, self._dropped(x, module))

    def add_input(self, dx: Tensor, ds: Tensor, a: Tensor, module: int) -> None:
        by_slot, mask = self._by_slot(dx), self._mask(dx.shape[-1], module)
        if mask is None:
            by_slot.baddbmm_(self._by_slot(ds), a)
        else:
            by_slot.add_(torch.bmm(self._by_slot(ds), a).mul_(mask))

    def _by_slot(self, tokens: Tensor) -> Tensor:
        return tokens.view(len(self.scale), -1, tokens.shape[-1])

    def _dropped(self, x: Tensor, module: int) -> Tensor:
        by_slot, mask = self._by_slot(x), self._mask(x.shape[-1], module)
        return by_slot if mask is None else by_slot * mask

    def _mask(self, columns: int, module: int) -> Tensor | None:
        if self.keys is None or self.rates is None:
            return None
        return keep_mask(self.keys, module, columns, self.rates)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))  # half-precision products, summed in full
