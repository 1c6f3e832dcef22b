"""The base's linear layers, each computing for a whole pack: one base product, batched LoRA on top.

For the tokens X_k of slot k, with s_k = alpha/r (alpha/sqrt(r) for rsLoRA) over 1 - p:

    S_k = s_k (mask * X_k) A_k^T          Y_k = X_k W^T + bias + S_k B_k^T
    dS_k = s_k dY_k B_k                   dX_k = dY_k W + mask * (dS_k A_k)
    dA_k += dS_k^T (mask * X_k)           dB_k += dY_k^T S_k

Gradients are added to the bank's rows where they are made; autograd sees none of the adapters. The
dropout mask is drawn again from its keys where it is needed, and W, which is frozen, is read only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trials.contract import InputError
from trials.dropout import keep_mask, module_key
from trials.engines.packed.bank import Views


@dataclass(frozen=True)
class Flight:
    """What the layers need to know about the forward in flight, n slots of as many tokens each."""

    weights: Views
    scale: Tensor  # [n, 1, 1]: s_k
    gradients: Views | None = None  # None: not training
    keys: Tensor | None = None  # [n, tokens] of keyed dropout; None: no slot drops anything
    rates: Tensor | None = None  # [n, 1, 1] of dropout, fp64


@dataclass
class Pack:
    """What all layers of a base share; with no flight set they are the base's own."""

    flight: Flight | None
    anchor: Tensor  # requires a gradient, so that a backward reaches the first layers

    @contextmanager
    def flying(self, flight: Flight) -> Iterator[None]:
        """Within, a forward of the base is one of the pack."""
        self.flight = flight
        try:
            yield
        finally:
            self.flight = None


class Frozen:
    """A base layer's weight `[d_out, d_in]` in the compute dtype: kept, or made at each use."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, resident: bool) -> None:
        self._module: Any = module
        self._dtype = dtype
        bias: Any = module.bias
        self.bias: Tensor | None = None if bias is None else bias.to(dtype)
        self._kept = self._dense() if resident else None

    def dense(self) -> Tensor:
        """The very values that the layer itself multiplies with."""
        return self._dense() if self._kept is None else self._kept

    def _dense(self) -> Tensor:
        weight = self._module.weight.data
        state = getattr(self._module.weight, "quant_state", None)
        if state is not None:
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight, quant_state=state)
        return weight.to(self._dtype)  # type: ignore[no-any-return]


class PackedLayer:
    """One linear layer's forward for a pack."""

    def __init__(self, name: str, place: int, module: nn.Module, frozen: Frozen, pack: Pack):
        self.key, self.place, self.frozen, self.pack = module_key(name), place, frozen, pack
        self.plain = module.forward

    def forward(self, x: Tensor) -> Tensor:
        """`x` is `[n * rows, tokens, d_in]`; without a flight the base's own result."""
        flight = self.pack.flight
        if flight is None:
            return self.plain(x)  # type: ignore[no-any-return]
        packed = x.reshape(flight.weights.slots, -1, x.shape[-1])
        if flight.gradients is None:
            y, _ = self.product(packed, flight)
        else:
            y = _PackedLinear.apply(packed, self.pack.anchor, self, flight)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def product(self, x: Tensor, flight: Flight) -> tuple[Tensor, Tensor]:
        """Y and S."""
        weight = self.frozen.dense()
        x = x.to(weight.dtype)
        a, b = flight.weights.a[self.place], flight.weights.b[self.place]
        dropped = _masked(x, self.mask(x, flight))
        s = torch.bmm(dropped, a.mT).mul_(flight.scale)
        y = linear(x.flatten(0, 1), weight, self.frozen.bias).view(*x.shape[:2], -1)
        return y.baddbmm_(s, b.mT), s

    def mask(self, x: Tensor, flight: Flight) -> Tensor | None:
        """What survives dropout, None for everything."""
        if flight.keys is None or flight.rates is None:
            return None
        return keep_mask(flight.keys, self.key, x.shape[-1], flight.rates)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: PackedLayer, flight: Flight) -> Tensor:
        y, s = layer.product(x, flight)
        ctx.save_for_backward(x, s)
        ctx.layer, ctx.flight = layer, flight
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        layer, flight = ctx.layer, ctx.flight
        x, s = ctx.saved_tensors
        dy = gradients[0].to(s.dtype)
        a, b = flight.weights.a[layer.place], flight.weights.b[layer.place]
        mask = layer.mask(x, flight)
        ds = torch.bmm(dy, b).mul_(flight.scale)
        _add_product(flight.gradients.b[layer.place], dy.mT, s)
        _add_product(flight.gradients.a[layer.place], ds.mT, _masked(x.to(s.dtype), mask))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx = (dy.flatten(0, 1) @ layer.frozen.dense()).view(x.shape)
        if mask is None:
            return dx.baddbmm_(ds, a).to(x.dtype), None, None, None
        return dx.add_(torch.bmm(ds, a).mul_(mask)).to(x.dtype), None, None, None


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))  # half-precision products, summed in full


@contextmanager
def packed_layers(
    targets: Mapping[str, nn.Module], *, dtype: torch.dtype, resident: bool
) -> Iterator[Pack]:
    """The layers (by their paths in the base) computing for packs, as they were when left."""
    anchor = torch.zeros((), requires_grad=True)
    pack = Pack(None, anchor)
    try:
        for place, (name, module) in enumerate(targets.items()):
            layer = PackedLayer(name, place, module, Frozen(module, dtype, resident), pack)
            module.forward = layer.forward
        yield pack
    finally:
        for module in targets.values():
            vars(module).pop("forward", None)


def check_layers(targets: Mapping[str, nn.Module]) -> None:
    """Raises InputError, naming engine=trl, for a layer that cannot compute for a pack."""
    from bitsandbytes.nn import Linear4bit

    for name, module in targets.items():
        if not (isinstance(module, Linear4bit) or type(module) is nn.Linear):
            raise InputError(
                f"engine=packed: {name} is a {type(module).__name__}, and packs need 4-bit or "
                "plain linear layers. Type engine=trl."
            )
