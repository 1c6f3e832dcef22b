"""Preparing: what the TRL engine loads and checks, what packs need besides, and their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from trials.base import Base, load_base, resolve_device, resolve_targets
from trials.base.devices import DTYPES, device_facts
from trials.base.targets import linear_modules
from trials.contract import Assignment, Driver, InputError, Setup
from trials.data import load_data
from trials.engines.packed.bank import width
from trials.engines.packed.engine import PackedEngine, Size
from trials.engines.packed.initial import targeted
from trials.engines.packed.layers import Flight, check_layers, packed_layers
from trials.engines.packed.optim import check_supported
from trials.engines.packed.refusals import check_base, check_options
from trials.engines.trl import TrlEngine, check_baseline, check_batch, setup_of
from trials.evaluate import computing
from trials.quiet import quiet, quiet_loggers
from trials.training.optimizers import check_optimizers

FIRST_R = 16  # the bank's width where nothing is said; a wider trial makes it wider
CPU_SLOTS = 8
MOST_SLOTS = 32
ROWS = 4  # per slot and clock, that there should be room for
BANK_SHARE = 0.4  # of the device's free memory
RESIDENT_SHARE = 0.25  # likewise
LAG = 1  # clocks, on CUDA


def prepare(assignment: Assignment, driver: Driver) -> tuple[PackedEngine, Setup]:
    """Loads and checks what all trials share, and measures the untouched base.

    Raises InputError as the TRL engine does, and for what packs cannot do, naming engine=trl.
    """
    check_options(assignment.engine)
    if assignment.threads is not None:
        torch.set_num_threads(assignment.threads)
    check_optimizers(assignment.optimizers, resolve_device(assignment.device))
    for optimizer in assignment.optimizers:
        check_supported(optimizer)
    quiet_loggers()
    with quiet():
        base = load_base(assignment.model, assignment.device, driver.progress)
        layers = _layers(base, assignment)
        data = load_data(assignment.data, base, assignment.seed, driver.progress)
        check_batch(assignment, data)
        shared = TrlEngine(base, data, assignment)
        baseline = shared.measure(partial(driver.progress, "measuring the untouched base"))
        check_baseline(base, baseline)
        engine = PackedEngine(shared, layers, _size(base, layers, assignment))
        _probe(engine)
        setup = replace(setup_of(shared, baseline), capacity=engine.size.slots)
    return engine, setup


def _layers(base: Base, assignment: Assignment) -> dict[str, nn.Module]:
    """The layers that any trial of the study may adapt, by path; all of them packable."""
    check_base(base)
    named = [resolve_targets(base.facts, targets) for targets in assignment.target_modules]
    every = linear_modules(base.model)
    wanted = targeted(list(every), [name for names in named for name in names])
    layers = {path: every[path] for path in wanted}
    check_layers(layers)
    return layers


def _size(base: Base, layers: Mapping[str, nn.Module], assignment: Assignment) -> Size:
    options = assignment.engine.options
    r = width(options.get("max_r") or FIRST_R)
    numbers = [(int(m.in_features), int(m.out_features)) for m in layers.values()]  # type: ignore[arg-type]
    free = _free_bytes(base)
    half = DTYPES[base.config.dtype].itemsize
    dense = sum(d_in * d_out for d_in, d_out in numbers) * half
    row = sum(r * (d_in + d_out) for d_in, d_out in numbers) * (4 * 4 + half)
    fitting = max(1, int(BANK_SHARE * free / row))
    most = CPU_SLOTS if base.device.type == "cpu" else MOST_SLOTS
    return Size(
        slots=options.get("capacity") or min(most, fitting),
        r=r,
        resident=base.config.quantisation != "none" and dense < RESIDENT_SHARE * free,
        lag=0 if base.device.type == "cpu" else LAG,
    )


def _free_bytes(base: Base) -> int:
    if base.device.type == "cuda":
        return torch.cuda.mem_get_info(base.device)[0]
    return device_facts(base.device, base.config.dtype).memory_bytes // 2


def _probe(engine: PackedEngine) -> None:
    """Raises InputError where a layer does not see its tokens slot by slot (experts, for one)."""
    base = engine.shared.base
    with packed_layers(engine.layers, dtype=DTYPES[base.config.dtype], resident=False) as pack:
        slots = engine.slots(pack)
        weights = slots.bank.gathered([0, 0])
        scale = torch.zeros(2, 1, 1, device=base.device)
        ids = torch.zeros(2, 7, dtype=torch.long, device=base.device)
        try:
            with torch.no_grad(), computing(base.device, DTYPES[base.config.dtype]):
                with pack.flying(Flight(weights=weights, scale=scale)):
                    base.model(input_ids=ids, use_cache=False)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"engine=packed: {base.facts.architecture} computes its layers in a way that packs "
                f"cannot ({str(error).splitlines()[0]}). Type engine=trl."
            ) from error
