"""How many slots, how many tokens at once: from the memory there is, measured, never by failing.

    bytes = base (+ 2 per resident weight) + slots * 18 * P + 12 * P + tokens * a + logits

P are a slot's numbers at the bank's width: parameters, gradients, two moments and a copy in half
precision (in fp32 there is none: 16); 12 * P is the copy of a state. `a`, the bytes that training
keeps for each token, comes on CUDA from two probe clocks; logits are those of one part of a clock's
and of an evaluation's. All of it stays within `engine.memory_fraction` of the device, of which
workers on one device have equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trials.base import Base
from trials.base.devices import DTYPES, memory_bytes
from trials.contract import Assignment, EngineConfig, InputError
from trials.engines.packed.bank import width
from trials.engines.packed.refusals import NoRoom
from trials.training.limits import TRAINING_BYTES, room

FIRST_R = 16  # the bank's width where nothing is said; a wider trial makes it wider
CPU_SLOTS = 8
MOST_SLOTS = 32
ROWS = 4  # per slot and clock, that there is room for
TOKENS = 16384  # of a clock, about: beyond it a GPU gains little speed
BLOCK = 128  # tokens of a block of a product of matrices, of which a multiprocessor makes one
COARSE = 512  # tokens: what the sizes of larger clocks are rounded up to
SHARES = {"cuda": 0.9, "cpu": 0.75}  # of the device's memory, by default
RESIDENT_SHARE = 0.3  # of the free memory: the base is kept dequantised if that takes no more
SPARES = {"cuda": 2**30, "cpu": 2**28}  # bytes for fragments, and on CUDA for libraries
STATE_BYTES = 12  # for each number of the one slot whose state is copied
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
    memory_fraction: float | None = None  # null: that of SHARES
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
        return cls(**given)


def first_size(
    base: Base, layers: Mapping[str, nn.Module], assignment: Assignment, *, ragged: bool,
    mean_length: float,
) -> Size:
    """What is known before any clock: for a CPU all, for CUDA what the probe then bounds."""
    wanted = Wanted.of(assignment.engine)
    cuda = base.device.type == "cuda"
    dense = sum(_weights(m) for m in layers.values()) * DTYPES[base.config.dtype].itemsize
    auto = dense < RESIDENT_SHARE * free_bytes(base, assignment)
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
    """The size that fits, given what a token costs; raises InputError where none does."""
    wanted = Wanted.of(assignment.engine)
    free = free_bytes(base, assignment) - fixed_bytes - SPARES[base.device.type]
    if assignment.states_dir is not None:
        free -= STATE_BYTES * numbers(layers, size.r)
    slot = slot_bytes(layers, size.r, DTYPES[base.config.dtype])
    # Padded, a step or an evaluation makes one more copy of the parameters when a clock is over.
    copy = 0 if size.ragged else torch.float32.itemsize * numbers(layers, size.r)
    least = max(rounded(longest) * token_bytes, copy)
    # Padded, every slot gives a row to every clock; end to end, they can take turns.
    most = int((free - least) // slot if size.ragged else free // (slot + least))
    if most < 1:
        r = assignment.max_r or size.r  # the bank may be wider
        one = f"one trial of rank {r} with one row of {longest} tokens"
        raise _too_small(one, slot + least, free, base.device, assignment)
    if wanted.capacity is not None:
        if wanted.capacity > most:
            raise InputError(
                f"engine.capacity={wanted.capacity}: a slot of rank {size.r} takes "
                f"{_amount(slot)}, and {most} fit beside the base{_terms(assignment)}. Type "
                f"engine.capacity={most}, or leave it out."
            )
        slots = wanted.capacity
    else:
        rows = max(ROWS * mean_length * token_bytes, copy)
        slots = min(size.slots, max(1, min(most, int(free // (slot + rows)))))
    tokens = min(size.tokens, (free - slots * slot) // token_bytes)
    return replace(size, slots=slots, tokens=int(tokens))


def slot_bytes(layers: Mapping[str, nn.Module], r: int, compute: torch.dtype) -> int:
    """What a bank holds for each slot: parameters, gradients and two moments in fp32, and a copy
    rounded to `compute` where that is less."""
    copy = 0 if compute == torch.float32 else compute.itemsize
    return (4 * torch.float32.itemsize + copy) * numbers(layers, r)


def numbers(layers: Mapping[str, nn.Module], r: int) -> int:
    """The parameters of an adapter of rank `r` on all of the layers."""
    sizes: Any = ((m.in_features, m.out_features) for m in layers.values())
    return r * sum(int(d_in) + int(d_out) for d_in, d_out in sizes)


def free_bytes(base: Base, assignment: Assignment) -> float:
    """What this worker may still take, within its part of the device."""
    return room(base.device, _allowed(base.device, assignment))


def _allowed(device: torch.device, assignment: Assignment) -> float:
    share = Wanted.of(assignment.engine).memory_fraction or SHARES[device.type]
    return share * memory_bytes(device) / assignment.sharing


def _terms(assignment: Assignment) -> str:
    """What was said that limits the memory, to be put into a sentence."""
    share, sharing = Wanted.of(assignment.engine).memory_fraction, assignment.sharing
    said = [] if share is None else [f"engine.memory_fraction={share:g}"]
    said += [f"shared by {sharing} workers"] if sharing > 1 else []
    return f" ({', '.join(said)})" if said else ""


def _too_small(
    what: str, size: float, free: float, device: torch.device, assignment: Assignment
) -> NoRoom:
    return NoRoom(
        f"engine=packed: {_amount(free)} are free beside the base{_terms(assignment)}; {what} "
        f"needs {_amount(size)}.",
        f"Type {_more(size - free, device, assignment)}train.gradient_checkpointing=true, a "
        "smaller data.max_length or lora.r, or engine=trl.",
    )


def _more(missing: float, device: torch.device, assignment: Assignment) -> str:
    """The share of the memory with which one trial would fit, if that much is free."""
    allowed, total = _allowed(device, assignment), memory_bytes(device) / assignment.sharing
    share = math.ceil(100 * (allowed + missing) / total) / 100
    if share > 1 or room(device, math.inf) < room(device, allowed) + missing:
        return ""
    return f"engine.memory_fraction={share:g}, "


def _amount(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{max(0.0, size) / 2**20:.0f} MiB"


def guessed_token_bytes(base: Base, layers: Mapping[str, nn.Module], r: int) -> float:
    """What training keeps for a token, in the model and in adapters, where nothing is measured."""
    config = base.model.config.get_text_config()
    model = TRAINING_BYTES * config.num_hidden_layers * config.hidden_size
    return float(model + torch.float32.itemsize * r * len(layers))


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


def _weights(module: Any) -> int:
    return int(module.in_features) * int(module.out_features)


def _whole(said: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{said}: trials at once, a whole number from 1, or null for what fits.")
    return None if value is None else int(value)


def _share(said: str, value: Any) -> float | None:
    if value is not None and not (type(value) in (int, float) and 0 < value <= 1):
        raise InputError(f"{said}: the share of the device's memory to use, above 0 and at most 1, "
                         "or null.")
    return None if value is None else float(value)


def _switch(said: str, value: Any) -> bool | None:
    if value not in (None, "auto", True, False):
        raise InputError(f"{said}: true, false or auto.")
    return None if value in (None, "auto") else bool(value)
