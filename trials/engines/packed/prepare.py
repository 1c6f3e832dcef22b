"""Preparing: what the TRL engine loads and checks, what packs need besides, and their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from trials.base import Base, load_base, resolve_device, resolve_targets
from trials.base.targets import linear_modules
from trials.cached import keep_compiled
from trials.contract import Assignment, Driver, EngineConfig, Setup
from trials.data import load_data
from trials.engines.packed.apart import check_apart
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.layers import check_layers
from trials.engines.packed.optim import check_supported
from trials.engines.packed.refusals import NoRoom, Refused, check_base
from trials.engines.packed.size import (
    GIB,
    Size,
    Wanted,
    first_size,
    fitted,
    free_bytes,
    guessed_token_bytes,
)
from trials.engines.packed.skeleton import targeted
from trials.engines.trl import TrlEngine, check_baseline, check_batch, setup_of
from trials.quiet import quiet, quiet_loggers
from trials.training.limits import check_device, out_of_memory
from trials.training.optimizers import check_optimizers

PROBES = (1024, 2048)  # tokens, about: padded, of each of two slots


def prepare(assignment: Assignment, driver: Driver) -> tuple[PackedEngine, Setup]:
    """Loads and checks what all trials share, and measures the untouched base.

    Raises InputError as the TRL engine does, and Refused for what packs alone cannot do.
    """
    Wanted.of(assignment.engine)
    if assignment.threads is not None:
        torch.set_num_threads(assignment.threads)
    device = resolve_device(assignment.device)
    check_optimizers(assignment.optimizers, device)
    for optimizer in assignment.optimizers:
        check_supported(optimizer)
    if device.type == "cuda":
        keep_compiled()
    quiet_loggers()
    with quiet():
        base = load_base(assignment.model, assignment.device, driver.progress)
        layers = _layers(base, assignment)
        data = load_data(assignment.data, base, assignment.seed, driver.progress)
        check_batch(assignment, data)
        shared = TrlEngine(base, data, assignment)
        baseline = shared.measure(partial(driver.progress, "measuring the untouched base"))
        check_baseline(base, baseline)
        engine = _sized(shared, layers, driver)
        setup = replace(
            setup_of(shared, baseline), capacity=engine.size.slots,
            engine=EngineConfig(name="packed", options=assignment.engine.options),
        )
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


def _sized(shared: TrlEngine, layers: Mapping[str, nn.Module], driver: Driver) -> PackedEngine:
    """An engine whose clocks have been tried, and whose size follows from what they took."""
    base = shared.base
    half = base.device.type == "cuda" and base.config.dtype != "fp32"
    engine = PackedEngine(shared, layers, _first(shared, layers, ragged=half))
    if engine.size.ragged and not _computes(engine, driver):
        engine = PackedEngine(shared, layers, _first(shared, layers, ragged=False))
    if base.device.type != "cuda":
        token_bytes = guessed_token_bytes(base, layers, engine.size.r)
        engine.size = _fitted(engine, token_bytes=token_bytes, fixed_bytes=engine.fixed_bytes)
    if not engine.size.ragged:
        _check(engine)
    if base.device.type == "cuda":
        driver.progress("measuring what fits", 0, 0)
        engine.size = _measured(engine)
    return engine


def _first(shared: TrlEngine, layers: Mapping[str, nn.Module], *, ragged: bool) -> Size:
    return first_size(shared.base, layers, shared.assignment, ragged=ragged,
                      mean_length=shared.data.facts.mean_length)


def _computes(engine: PackedEngine, driver: Driver) -> bool:
    """Whether rows may lie end to end; where not, why is noted, for padding them is slower."""
    driver.progress("compiling for this device, which is kept for the next time", 0, 0)
    try:
        check_apart(engine.shared.base, engine.forward, engine.corpus.longest)
        engine.compile(max(PROBES))  # many: what is compiled tunes itself to the first clock
        engine.rehearse(max(PROBES))
    except Exception as error:
        if out_of_memory(error):
            raise _too_small(engine) from error
        check_device(engine.shared.base.device, error)
        said = (str(error) or type(error).__name__).splitlines()[0]
        driver.note(f"packs pad their rows here, which is slower: {type(error).__name__}: {said}")
        return False
    return True


def _check(engine: PackedEngine) -> None:
    """Raises Refused where a layer does not see its tokens slot by slot (experts, for one)."""
    try:
        engine.rehearse(7)
    except (RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise _too_small(engine) from error
        raise Refused(
            f"engine=packed: {engine.shared.base.facts.architecture} computes its layers in a way "
            f"that packs cannot ({str(error).splitlines()[0]})."
        ) from error


def _measured(engine: PackedEngine) -> Size:
    """The size after two clocks of different sizes have shown what a token takes."""
    try:
        few, least = engine.rehearse(PROBES[0])
        # End to end it may have been a single row, longer than both.
        many, most = engine.rehearse(max(PROBES[1], 2 * few if engine.size.ragged else 0))
    except Exception as error:
        if out_of_memory(error):
            raise _too_small(engine) from error
        raise
    token = max(1.0, (most - least) / (many - few))
    torch.cuda.empty_cache()
    fixed = max(0.0, least - few * token) + engine.fixed_bytes
    return _fitted(engine, token_bytes=token, fixed_bytes=fixed)


def _fitted(engine: PackedEngine, *, token_bytes: float, fixed_bytes: float) -> Size:
    return fitted(
        engine.size, engine.shared.base, engine.layers, engine.shared.assignment,
        token_bytes=token_bytes, fixed_bytes=fixed_bytes, longest=engine.corpus.longest,
        mean_length=engine.shared.data.facts.mean_length,
    )


def _too_small(engine: PackedEngine) -> NoRoom:
    free = max(0.0, free_bytes(engine.shared.base, engine.shared.assignment)) / GIB
    return NoRoom(
        f"engine=packed: a clock of a few rows does not fit beside the base: {free:.1f} GiB are "
        "free.",
        "Type train.gradient_checkpointing=true, a smaller data.max_length, a smaller model, or "
        "engine=trl.",
    )
