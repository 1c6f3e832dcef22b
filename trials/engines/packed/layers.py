"""The base's linear layers computing for a whole pack: LoRA's part, and one base product added.

For the tokens X_k of slot k, with s_k = alpha/r (alpha/sqrt(r) for rsLoRA) over 1 - p:

    S_k = s_k (mask * X_k) A_k^T          Y_k = bias + S_k B_k^T + X_k W^T
    dS_k = s_k dY_k B_k                   dX_k = mask * (dS_k A_k) + dY_k W
    dA_k += dS_k^T (mask * X_k)           dB_k += dY_k^T S_k

Layers that are given the same X (queries, keys and values, for one) compute together: X is read and
dX made once. The product with W comes last, since a product of matrices can add to what is there
(`addmm_`), and LoRA's part added afterwards would be one more pass over the output. Gradients are
added to the bank's rows where they are made; autograd sees none of the adapters. The dropout mask
is drawn again from its keys where it is needed; W is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from trials.dropout import module_key
from trials.engines.packed.bank import Views
from trials.engines.packed.products import Group, Products
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
    # By group: its input, and the outputs that no layer has been asked for yet, by place there.
    waiting: dict[PackedGroup, tuple[Tensor, dict[int, Tensor]]] = field(default_factory=dict)

    @contextmanager
    def flying(self, flight: Flight) -> Iterator[None]:
        """Within, a forward of the base is one of the pack."""
        self.flight = flight
        try:
            yield
        finally:
            self.flight = None
            self.waiting.clear()


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


class PackedGroup:
    """Linear layers that are given the same input: the first to be called computes for all."""

    def __init__(self, first: int, modules: Mapping[str, nn.Module], frozen: Sequence[Frozen],
                 pack: Pack) -> None:
        self.group = Group(first, tuple(map(module_key, modules)))
        self.frozen, self.pack = frozen, pack
        self._plain = [module.forward for module in modules.values()]

    def forward(self, k: int, x: Tensor) -> Tensor:
        """The k-th layer's; `x` is `[rows, tokens, d_in]`. Without a flight the base's own."""
        flight = self.pack.flight
        if flight is None:
            return self._plain[k](x)  # type: ignore[no-any-return]
        given, outputs = self.pack.waiting.get(self, (None, {}))
        if given is not x or k not in outputs:
            outputs = dict(enumerate(self._outputs(x, flight)))
            self.pack.waiting[self] = x, outputs
        y = outputs.pop(k)
        if not outputs:
            del self.pack.waiting[self]
        return y

    def _outputs(self, x: Tensor, flight: Flight) -> list[Tensor]:
        tokens = x.reshape(-1, x.shape[-1])
        if flight.gradients is None:
            ys, _ = self.products(tokens, flight)
        else:
            ys = _PackedLinears.apply(tokens, self.pack.anchor, self, flight)  # type: ignore[no-untyped-call]
        return [y.view(*x.shape[:-1], -1).to(x.dtype) for y in ys]

    def products(self, x: Tensor, flight: Flight) -> tuple[list[Tensor], Tensor]:
        """The layers' Y, and all S, for the tokens `[T, d_in]`."""
        x = x.to(flight.weights.flat.dtype)
        s = flight.products.down(x, flight.weights, self.group)
        biases = [frozen.bias for frozen in self.frozen]
        ys = flight.products.up(s, flight.weights, self.group, biases)
        for y, frozen in zip(ys, self.frozen, strict=True):
            y.addmm_(x, frozen.dense().mT)
        return ys, s


class _PackedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, layers: PackedGroup, flight: Flight
    ) -> tuple[Tensor, ...]:
        ys, s = layers.products(x, flight)
        ctx.save_for_backward(x, s)
        ctx.layers, ctx.flight = layers, flight
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        layers, flight, group = ctx.layers, ctx.flight, ctx.layers.group
        products, weights = flight.products, flight.weights
        x, s = ctx.saved_tensors
        dys = [dy.to(s.dtype).contiguous() for dy in gradients]
        ds = products.back(dys, s, weights, flight.gradients, group)
        products.back_a(x.to(s.dtype), ds, flight.gradients, group)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx = products.back_input(ds, weights, group)
        for dy, frozen in zip(dys, layers.frozen, strict=True):
            dx.addmm_(dy, frozen.dense())
        return dx.to(x.dtype), None, None, None


@contextmanager
def packed_layers(
    groups: Sequence[Mapping[str, nn.Module]], *, dtype: torch.dtype, resident: bool
) -> Iterator[Pack]:
    """The layers (by their paths in the base) computing for packs, as they were when left.

    `groups` are those of `grouped`, in the bank's order.
    """
    pack = Pack(None, torch.zeros((), requires_grad=True))
    first = 0
    try:
        for modules in groups:
            frozen = [Frozen(module, dtype, resident) for module in modules.values()]
            layers = PackedGroup(first, modules, frozen, pack)
            for k, module in enumerate(modules.values()):
                module.forward = partial(layers.forward, k)
            first += len(modules)
        yield pack
    finally:
        for module in chain.from_iterable(modules.values() for modules in groups):
            vars(module).pop("forward", None)


@torch.no_grad()
def grouped(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[dict[str, nn.Module]]:
    """Neighbours among the layers that `model` gives the same input, as two tokens show."""
    seen: dict[nn.Module, Tensor] = {}
    hooks = [module.register_forward_pre_hook(lambda module, x: seen.update({module: x[0]}))
             for module in layers.values()]
    try:
        model(input_ids=torch.ones(1, 2, dtype=torch.long, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    found: list[dict[str, nn.Module]] = []
    given: Tensor | None = None
    for name, module in layers.items():
        if given is None or seen.get(module) is not given:
            found.append({})
        given = seen.get(module)
        found[-1][name] = module
    return found


def check_layers(targets: Mapping[str, nn.Module]) -> None:
    """Raises Refused for a layer that cannot compute for a pack."""
    from bitsandbytes.nn import Linear4bit

    for name, module in targets.items():
        if not (isinstance(module, Linear4bit) or type(module) is nn.Linear):
            raise Refused(
                f"engine=packed: {name} is a {type(module).__name__}, and packs need 4-bit or "
                "plain linear layers."
            )
