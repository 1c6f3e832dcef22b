"""LoRA's products for the tokens of a whole pack, where every slot has as many: one bmm each.

What lies differently (`cuda/ragged.py`) has the same five products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trials.dropout import keep_mask
from trials.engines.packed.bank import Views


@dataclass(frozen=True)
class Group:
    """Modules that are given the same input; in the bank they follow each other."""

    first: int  # its place there
    keys: tuple[int, ...]  # of keyed dropout, one for each

    @property
    def places(self) -> range:
        """Their places in the bank."""
        return range(self.first, self.first + len(self.keys))


class Products(Protocol):
    """For a group of m modules: x `[T, d_in]`, y and dy `[T, d_out]` of each, s and ds `[m, T, r]`.

    Each token meets its own slot's a and b alone. A slot's scale is alpha / r over 1 - p.
    """

    def down(self, x: Tensor, weights: Views, group: Group) -> Tensor:
        """s = scale * drop(x) a^T."""

    def up(self, ys: Sequence[Tensor], s: Tensor, weights: Views, group: Group) -> None:
        """y += s b^T."""

    def back(self, dys: Sequence[Tensor], weights: Views, group: Group) -> Tensor:
        """ds = scale * dy b."""

    def add_gradients(
        self, gradients: Views, x: Tensor, s: Tensor, dys: Sequence[Tensor], ds: Tensor,
        group: Group,
    ) -> None:
        """gb += dy^T s; ga += ds^T drop(x)."""

    def add_input(self, dx: Tensor, ds: Tensor, weights: Views, group: Group) -> None:
        """dx += mask * (ds a), of all modules."""


@dataclass(frozen=True)
class Padded:
    """The first n slots' tokens, slot by slot, as many of each."""

    scale: Tensor  # [n, 1, 1]
    keys: Tensor | None = None  # [n, tokens] of keyed dropout; None: no slot drops anything
    rates: Tensor | None = None  # [n, 1, 1] of dropout, fp64

    def down(self, x: Tensor, weights: Views, group: Group) -> Tensor:
        return self._scaled([
            torch.bmm(self._dropped(x, key), weights.a[place].mT)
            for place, key in zip(group.places, group.keys, strict=True)
        ])

    def up(self, ys: Sequence[Tensor], s: Tensor, weights: Views, group: Group) -> None:
        for place, y, own in zip(group.places, ys, s, strict=True):
            self._by_slot(y).baddbmm_(self._by_slot(own), weights.b[place].mT)

    def back(self, dys: Sequence[Tensor], weights: Views, group: Group) -> Tensor:
        return self._scaled([
            torch.bmm(self._by_slot(dy), weights.b[place])
            for place, dy in zip(group.places, dys, strict=True)
        ])

    def add_gradients(
        self, gradients: Views, x: Tensor, s: Tensor, dys: Sequence[Tensor], ds: Tensor,
        group: Group,
    ) -> None:
        for k, place in enumerate(group.places):
            _add_product(gradients.b[place], self._by_slot(dys[k]).mT, self._by_slot(s[k]))
            dropped = self._dropped(x, group.keys[k])
            _add_product(gradients.a[place], self._by_slot(ds[k]).mT, dropped)

    def add_input(self, dx: Tensor, ds: Tensor, weights: Views, group: Group) -> None:
        by_slot = self._by_slot(dx)
        for place, key, own in zip(group.places, group.keys, ds, strict=True):
            a, mask = weights.a[place], self._mask(dx.shape[-1], key)
            if mask is None:
                by_slot.baddbmm_(self._by_slot(own), a)
            else:
                by_slot.add_(torch.bmm(self._by_slot(own), a).mul_(mask))

    def _scaled(self, products: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(products)).mul_(self.scale).flatten(1, 2)

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
