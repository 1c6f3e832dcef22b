"""The base's linear layers, each computing for a whole pack: one base product, LoRA on top of it.

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

from trials.dropout import module_key
from trials.engines.packed.bank import Views
from trials.engines.packed.products import Products
from trials.engines.packed.refusals import Refused


@dataclass(frozen=True)
class Flight:
    """What the layers need to know about the forward in flight."""

    weights: Views
    products: Products  # which know where each slot's tokens are
    gradients: Views | None = None  # None: not training


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
        """`x` is `[rows, tokens, d_in]`; without a flight the base's own result."""
        flight = self.pack.flight
        if flight is None:
            return self.plain(x)  # type: ignore[no-any-return]
        tokens = x.reshape(-1, x.shape[-1])
        if flight.gradients is None:
            y, _ = self.product(tokens, flight)
        else:
            y = _PackedLinear.apply(tokens, self.pack.anchor, self, flight)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def product(self, x: Tensor, flight: Flight) -> tuple[Tensor, Tensor]:
        """Y and S for the tokens `[T, d_in]`."""
        weight = self.frozen.dense()
        x = x.to(weight.dtype)
        s = flight.products.down(x, flight.weights.a[self.place], self.key)
        y = linear(x, weight, self.frozen.bias)
        flight.products.up(y, s, flight.weights.b[self.place])
        return y, s


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
        products, place, key = flight.products, layer.place, layer.key
        dy = gradients[0].to(s.dtype).contiguous()
        ds = products.back(dy, flight.weights.b[place])
        products.add_gradients(
            flight.gradients.a[place], flight.gradients.b[place], x.to(s.dtype), s, dy, ds, key
        )
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx = dy @ layer.frozen.dense()
        products.add_input(dx, ds, flight.weights.a[place], key)
        return dx.to(x.dtype), None, None, None


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
    """Raises Refused for a layer that cannot compute for a pack."""
    from bitsandbytes.nn import Linear4bit

    for name, module in targets.items():
        if not (isinstance(module, Linear4bit) or type(module) is nn.Linear):
            raise Refused(
                f"engine=packed: {name} is a {type(module).__name__}, and packs need 4-bit or "
                "plain linear layers."
            )
