"""How many slots, how many tokens at once: from the memory there is, measured, never by failing.

    bytes = base (+ 2 per resident weight) + slots * 18 * P + tokens * a + one part's logits

P are a slot's numbers at the bank's width (parameters, gradients, two moments and a rounded copy),
and a, the bytes that training keeps for each token, comes from two probe clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trials.base import Base
from trials.base.devices import DTYPES, device_facts
from trials.contract import Assignment, EngineConfig, InputError
from trials.engines.packed.bank import width
from trials.engines.packed.refusals import Refused
from trials.training.limits import TRAINING_BYTES

FIRST_R = 16  # the bank's width where nothing is said; a wider trial makes it wider
CPU_SLOTS = 8
MOST_SLOTS = 32
ROWS = 4  # per slot and clock, that there is room for
TOKENS = 16384  # of a clock, about: beyond it a GPU gains little speed
BLOCK = 128  # tokens of a block of a product of matrices, of which a multiprocessor makes one
COARSE = 512  # tokens: what the sizes of larger clocks are rounded up to
SHARE = 0.9  # of the device's memory, by default
RESIDENT_SHARE = 0.3  # of the free memory: the base is kept dequantised if that takes no more
SPARE = 2**30  # bytes for libraries and fragments
LAG = 1  # clocks, on CUDA
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """How much a pack holds, and how it computes."""

    slots: int
    r: int  # of the bank at first
    tokens: int  # of a clock, at most
    resident: bool  # whether the base is kept dequantised beside its 4-bit weights
    lag: int  # clocks until the device is heard
    ragged: bool  # tokens end to end on Triton kernels, or padded slot by slot
    compiled: bool  # elementwise parts by torch.compile, whole clocks as CUDA graphs


@dataclass(frozen=True)
class Wanted:
    """The options of `conf/engine/packed.yaml`."""

    capacity: int | None = None
    memory_fraction: float = SHARE
    resident: bool | None = None
    compile: bool | None = None

    @classmethod
    def of(cls, engine: EngineConfig) -> Wanted:
        """Raises InputError for an unknown option or value."""
        given = dict(engine.options)
        known = {"capacity": _whole, "memory_fraction": _share, "resident": _switch,
                 "compile": _switch}
        for name, value in given.items():
            if name not in known:
                raise InputError(f"engine.{name}: the engine packed has no such option: "
                                 f"{', '.join(known)}.")
            given[name] = known[name](f"engine.{name}={value!r}", value)
        return cls(**{name: value for name, value in given.items()
                      if not (name == "memory_fraction" and value is None)})


def first_size(
    base: Base, layers: Mapping[str, nn.Module], assignment: Assignment, *, ragged: bool,
    mean_length: float,
) -> Size:
    """What is known before any clock: for a CPU all, for CUDA what the probe then bounds."""
    wanted = Wanted.of(assignment.engine)
    cuda = base.device.type == "cuda"
    dense = sum(_numbers(m) for m in layers.values()) * DTYPES[base.config.dtype].itemsize
    auto = dense < RESIDENT_SHARE * free_bytes(base, wanted.memory_fraction)
    slots, tokens = CPU_SLOTS, TOKENS
    if cuda:
        tokens = full_clock(torch.cuda.get_device_properties(base.device).multi_processor_count)
        slots = min(MOST_SLOTS, max(8, int(tokens / (ROWS * mean_length))))
    return Size(
        slots=wanted.capacity or slots,
        r=width(assignment.max_r or FIRST_R),
        tokens=tokens,
        resident=base.config.quantisation != "none"
        and (auto if wanted.resident is None else wanted.resident),
        lag=LAG if cuda else 0,
        ragged=ragged,
        compiled=ragged and wanted.compile is not False,
    )


def fitted(
    size: Size, base: Base, layers: Mapping[str, nn.Module], assignment: Assignment, *,
    token_bytes: float, fixed_bytes: float, longest: int, mean_length: float,
) -> Size:
    """The size that fits, given what a token costs; raises Refused where none does."""
    wanted = Wanted.of(assignment.engine)
    free = free_bytes(base, wanted.memory_fraction) - fixed_bytes - SPARE
    least = rounded(longest) * token_bytes
    slot = slot_bytes(layers, size.r)
    # Padded, every slot gives a row to every clock; end to end, they can take turns.
    most = int((free - least) // slot if size.ragged else free // (slot + least))
    if most < 1:
        raise Refused(
            f"engine=packed: {max(0.0, free) / GIB:.1f} GiB are free beside the base; one trial of "
            f"rank {size.r} with one row of {longest} tokens needs {(slot + least) / GIB:.1f}.",
            "Type train.gradient_checkpointing=true, a smaller data.max_length or lora.r, or "
            "engine=trl.",
        )
    if wanted.capacity is not None:
        if wanted.capacity > most:
            raise InputError(
                f"engine.capacity={wanted.capacity}: a slot of rank {size.r} takes "
                f"{slot / GIB:.2f} GiB, and {most} fit beside the base. Type "
                f"engine.capacity={most}, or leave it out."
            )
        slots = wanted.capacity
    else:
        rows = ROWS * mean_length * token_bytes
        slots = min(size.slots, max(1, min(most, int(free // (slot + rows)))))
    tokens = min(size.tokens, (free - slots * slot) // token_bytes)
    return replace(size, slots=slots, tokens=int(tokens))


def slot_bytes(layers: Mapping[str, nn.Module], r: int) -> int:
    """Parameters, gradients and two moments in fp32, and a rounded copy."""
    sizes: Any = ((m.in_features, m.out_features) for m in layers.values())
    return 18 * r * sum(int(d_in) + int(d_out) for d_in, d_out in sizes)


def free_bytes(base: Base, fraction: float = SHARE) -> float:
    """What this process may still take."""
    if base.device.type != "cuda":
        return device_facts(base.device, base.config.dtype).memory_bytes / 2
    free, total = torch.cuda.mem_get_info(base.device)
    mine = torch.cuda.memory_reserved(base.device)
    unused = mine - torch.cuda.memory_allocated(base.device)
    return min(free + unused, fraction * total - mine + unused)


def guessed_token_bytes(base: Base) -> float:
    """What training keeps for a token, where nothing is measured."""
    config = base.model.config.get_text_config()
    return float(TRAINING_BYTES * config.num_hidden_layers * config.hidden_size)


def full_clock(multiprocessors: int) -> int:
    """A clock's tokens, such that its products leave no multiprocessor without a block."""
    together = BLOCK * multiprocessors
    return max(COARSE, together * max(1, round(TOKENS / together)) // COARSE * COARSE)


def rounded(tokens: int) -> int:
    """Up, so that clocks have few sizes and products of matrices have whole blocks."""
    return -(-tokens // _step(tokens)) * _step(tokens)


def clock_tokens(tokens: int, longest: int) -> int:
    """The largest clock that is never rounded beyond so many tokens; the longest row fits."""
    return max(rounded(longest), tokens - tokens % _step(tokens))


def _step(tokens: int) -> int:
    return COARSE // 2 if tokens <= 8 * COARSE else COARSE


def _numbers(module: Any) -> int:
    return int(module.in_features) * int(module.out_features)


def _whole(said: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{said}: trials at once, a whole number from 1, or null for what fits.")
    return None if value is None else int(value)


def _share(said: str, value: Any) -> float | None:
    if value is not None and not (type(value) in (int, float) and 0 < value <= 1):
        raise InputError(f"{said}: the share of the device's memory to use, above 0 and at most 1.")
    return None if value is None else float(value)


def _switch(said: str, value: Any) -> bool | None:
    if value not in (None, "auto", True, False):
        raise InputError(f"{said}: true, false or auto.")
    return None if value in (None, "auto") else bool(value)
