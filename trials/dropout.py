"""Keyed dropout: whether an element survives follows from what it is, not from when it is drawn.

The mask is a pure function of (trial seed, example position, module, token index, column): micro-
batches, packs, row order, padding and recomputation do not change a trial. The bits come from
32-bit integer arithmetic alone, so they are the same on every device.

    keys = RowKeys()
    attach(layer_by_name, p=0.1, keys=keys)
    keys.rows = row_keys(seed, positions, tokens)   # before each forward
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HALF = 1 << 15
GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: spreads neighbouring integers
# The finaliser of MurmurHash3 (Austin Appleby, public domain): every input bit flips every output
# bit with probability close to one half.
MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


@dataclass
class RowKeys:
    """The keys of the rows now in flight, shared by all `KeyedDropout` modules of one adapter."""

    rows: Tensor | None = None  # int32, the shape of a module's input without its last dimension


class KeyedDropout(nn.Module):
    """Dropout of an input `[..., columns]` by `keys.rows` `[...]`; the identity when evaluating."""

    def __init__(self, p: float, name: str, keys: RowKeys) -> None:
        super().__init__()
        self.p = p
        self.module = module_key(name)
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        """The input with a share `p` of its elements 0 and the others divided by 1 - p."""
        if not self.training or self.p == 0.0:
            return x
        if self.keys.rows is None or self.keys.rows.shape != x.shape[:-1]:
            raise RuntimeError(f"keyed dropout: no row keys for an input of shape {tuple(x.shape)}")
        if x.is_cuda:
            from trials.cuda.dropout import Dropped, usable

            if usable():
                y: Tensor = Dropped.apply(x, self.keys.rows, self.module, self.p)  # type: ignore[no-untyped-call]
                return y
        return drop(x, keep_mask(self.keys.rows, self.module, x.shape[-1], self.p), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def row_keys(seed: int | Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """One int32 key for each token of each example.

    `seed` is a trial's, or a tensor of `seed_key`s, one for each slot of a pack. `positions` (the
    example's place in the trial's order) and `tokens` (the token's place in its example) are
    integers; all shapes broadcast, and padding may hold anything.
    """
    start = seed_key(seed) if isinstance(seed, int) else seed
    return _mixed(_spread(tokens) ^ _mixed(_spread(positions) ^ start))


def seed_key(seed: int) -> int:
    """A trial's own part of its keys, an int32."""
    return signed(_mixed_int(_mixed_int(seed & 0xFFFFFFFF) ^ ((seed >> 32) & 0xFFFFFFFF)))


def module_key(name: str) -> int:
    """The key of a module: its path in the base model, without any adapter's prefix."""
    return _mixed_int(zlib.crc32(name.encode()))


def keep_mask(rows: Tensor, module: int | Tensor, columns: int, p: float | Tensor) -> Tensor:
    """True where an element survives: bool `[..., columns]` for `rows` `[...]`.

    `p` is rounded to 1/65536; a tensor of them broadcasts against the result, as slots of a pack
    need it. One hash serves two neighbouring columns, 16 bits each.
    """
    key = signed(module) if isinstance(module, int) else module
    rows = _mixed(rows ^ key).unsqueeze(-1)
    pairs = _mixed(_spread(torch.arange((columns + 1) // 2, device=rows.device)))
    bits = _mix_in_place(rows ^ pairs).view(torch.int16)
    return bits[..., :columns] >= _threshold(p)


def drop(x: Tensor, keep: Tensor, p: float | Tensor) -> Tensor:
    """`x` where `keep`, else 0, divided by 1 - p."""
    return (x * keep) * (1.0 / (1.0 - p))


def _threshold(p: float | Tensor) -> int | Tensor:
    if isinstance(p, Tensor):
        return (torch.round(p * 2 * HALF) - HALF).to(torch.int16)
    return round(p * 2 * HALF) - HALF


def _spread(numbers: Tensor) -> Tensor:
    return numbers.to(torch.int32) * signed(GOLDEN)


def _mixed(keys: Tensor) -> Tensor:
    return _mix_in_place(keys.clone())


def _mix_in_place(keys: Tensor) -> Tensor:
    keys ^= _shifted(keys, 16)
    keys *= signed(MULTIPLIERS[0])
    keys ^= _shifted(keys, 13)
    keys *= signed(MULTIPLIERS[1])
    keys ^= _shifted(keys, 16)
    return keys


def _shifted(keys: Tensor, bits: int) -> Tensor:
    # int32 shifts copy the sign; torch has no unsigned ones on every device.
    return (keys >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _mixed_int(key: int) -> int:
    key ^= key >> 16
    key = key * MULTIPLIERS[0] & 0xFFFFFFFF
    key ^= key >> 13
    key = key * MULTIPLIERS[1] & 0xFFFFFFFF
    return key ^ key >> 16


def signed(key: int) -> int:
    """The int32 with the bits of a key; torch has no unsigned ones on every device."""
    return key - (1 << 32) if key >= 1 << 31 else key


def attach(layers: Mapping[str, nn.Module], *, p: float, keys: RowKeys, adapter: str) -> None:
    """Puts keyed dropout in the place of PEFT's in LoRA layers, by their paths in the base."""
    for name, layer in layers.items():
        dropouts = layer.lora_dropout
        assert isinstance(dropouts, nn.ModuleDict)
        dropouts[adapter] = KeyedDropout(p, name, keys) if p else nn.Identity()
