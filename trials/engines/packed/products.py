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

    Each token meets its own slot's a and b alone. A slot's scale is alpha / r over 1 - p. `up` and
    `back_input` make the tensors that the base's products are then added to. Beyond a slot's ranks
    s and ds may hold anything.
    """

    def down(self, x: Tensor, weights: Views, group: Group) -> Tensor:
        """s = scale * drop(x) a^T."""

    def up(
        self, s: Tensor, weights: Views, group: Group, biases: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """y = bias + s b^T of each; the bias alone for tokens of no slot."""

    def back(
        self, dys: Sequence[Tensor], s: Tensor, weights: Views, gradients: Views, group: Group
    ) -> Tensor:
        """ds = scale * dy b; gb += dy^T s."""

    def back_a(self, x: Tensor, ds: Tensor, gradients: Views, group: Group) -> None:
        """ga += ds^T drop(x)."""

    def back_input(self, ds: Tensor, weights: Views, group: Group) -> Tensor:
        """dx = mask * (ds a), summed over the modules; 0 for tokens of no slot."""


@dataclass(frozen=True)
class PaddedProducts:
    """The first n slots' tokens, slot by slot, as many of each."""

    scale: Tensor  # [n, 1, 1]
    keys: Tensor | None = None  # [n, tokens] of keyed dropout; None: no slot drops anything
    rates: Tensor | None = None  # [n, 1, 1] of dropout, fp64

    def down(self, x: Tensor, weights: Views, group: Group) -> Tensor:
        return self._scaled([
            torch.bmm(self._dropped(x, key), weights.a[place].mT)
            for place, key in zip(group.places, group.keys, strict=True)
        ])

    def up(
        self, s: Tensor, weights: Views, group: Group, biases: Sequence[Tensor | None]
    ) -> list[Tensor]:
        ys = [torch.bmm(self._by_slot(own), weights.b[place].mT).flatten(0, 1)
              for place, own in zip(group.places, s, strict=True)]
        return [y if bias is None else y.add_(bias) for y, bias in zip(ys, biases, strict=True)]

    def back(
        self, dys: Sequence[Tensor], s: Tensor, weights: Views, gradients: Views, group: Group
    ) -> Tensor:
        products = []
        for place, dy, own in zip(group.places, map(self._by_slot, dys), s, strict=True):
            _add_product(gradients.b[place].mT, self._by_slot(own).mT, dy)  # as it lies in memory
            products.append(torch.bmm(dy, weights.b[place]))
        return self._scaled(products)

    def back_a(self, x: Tensor, ds: Tensor, gradients: Views, group: Group) -> None:
        for place, key, own in zip(group.places, group.keys, ds, strict=True):
            _add_product(gradients.a[place], self._by_slot(own).mT, self._dropped(x, key))

    def back_input(self, ds: Tensor, weights: Views, group: Group) -> Tensor:
        parts = []
        for place, key, own in zip(group.places, group.keys, ds, strict=True):
            a = weights.a[place]
            part, mask = torch.bmm(self._by_slot(own), a), self._mask(a.shape[-1], key)
            parts.append(part if mask is None else part.mul_(mask))
        return sum(parts[1:], parts[0]).flatten(0, 1)

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
