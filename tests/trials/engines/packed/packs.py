"""What the packed suites start from: slots to tick by hand, and PEFT runs to compare them with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny import Recorder, Tiny
from torch import Tensor
from torch.nn.functional import cross_entropy

from trials.adapters import NAME, PREFIX, fresh_adapter
from trials.base import resolve_targets
from trials.contract import CONTINUE, EngineConfig, Outcome, Report, TrialConfig, Verdict
from trials.dropout import row_keys
from trials.engines.packed import prepare
from trials.engines.packed.bank import Bank, shapes_of
from trials.engines.packed.clock import Clock
from trials.engines.packed.engine import PackedEngine
from trials.engines.packed.layers import packed_layers
from trials.engines.packed.replay import Replays
from trials.engines.packed.seat import Seat
from trials.engines.packed.slots import Slots
from trials.evaluate import target_logits
from trials.quiet import quiet
from trials.training.batches import Limit, Row, collate
from trials.training.optimizers import build_optimizer
from trials.training.schedule import rate_factor, warmup_steps
from trials.worker import work

Factors = dict[str, tuple[Tensor, Tensor]]
TARGETS = ("all-linear", "qv", ("o_proj", "down_proj"))


def prepared(
    tiny: Tiny, *, checkpointing: bool = False, **options: Any
) -> tuple[PackedEngine, Recorder]:
    """An engine, and a driver that has been told its setup."""
    driver = Recorder()
    assigned = tiny.assignment(
        engine=EngineConfig(name="packed", options=options), optimizers=("adamw", "sgd"),
        target_modules=TARGETS, gradient_checkpointing=checkpointing,
    )
    engine, driver.setup = prepare(assigned, driver)
    return engine, driver


def run(tiny: Tiny, *trials: TrialConfig, answer: Any = None, **options: Any) -> Recorder:
    """Trains the trials in one pack."""
    engine, driver = prepared(tiny, **options)
    driver.trials += trials
    if answer is not None:
        driver.answer = answer
    engine.run(driver)
    return driver


def in_a_fresh_process(tiny: Tiny, trial: TrialConfig, **options: Any) -> list[float]:
    """The trial's losses where nothing has been trained before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(losses_of, tiny, trial, **options).result()


def losses_of(tiny: Tiny, trial: TrialConfig, **options: Any) -> list[float]:
    """All of a trial that has a pack to itself."""
    return run(tiny, trial, **options).losses(trial.number)


def trl(tiny: Tiny, *trials: TrialConfig, order: int | None = None) -> Recorder:
    """The same trials through the TRL engine; `order` draws which rows a forward has, and where."""
    from trials.engines import trl_trainer

    draw, driver = Random(order), Recorder(list(trials))

    def shuffled(rows: Sequence[Row], limit: Limit) -> list[list[Row]]:
        size = limit.rows or len(rows)
        drawn = draw.sample(list(rows), len(rows))
        return [drawn[start : start + size] for start in range(0, len(rows), size)]

    with pytest.MonkeyPatch.context() as patch:
        if order is not None:
            patch.setattr(trl_trainer, "split", shuffled)
        work(tiny.assignment(optimizers=("adamw", "sgd"), target_modules=TARGETS), driver)
    return driver


def check_distances(tiny: Tiny, trials: Sequence[TrialConfig]) -> None:
    """A pack is as near to TRL, and a trial alone to itself in company, as TRL is to itself.

    TRL's noise is that of other rows sharing a forward, in another order. In half precision most of
    what is rounded does not change with that, so there it is what fp32 would have changed.
    """
    full = tiny.dtype == "fp32"
    plain = trl(tiny, *trials)
    other = trl(tiny, *trials, order=1) if full else trl(replace(tiny, dtype="fp32"), *trials)
    together, single = (run(tiny, *trials, capacity=slots) for slots in (len(trials), 1))
    noise = distance(plain, other)
    found = {"packed and TRL": distance(together, plain),
             "alone and in company": distance(single, together)}
    print(f"relative differences of losses, rms: noise {noise:.1e}, "
          + ", ".join(f"{what} {apart:.1e}" for what, apart in found.items()))
    assert max(found.values()) <= 2 * max(noise, torch.finfo(torch.float32).eps)


def distance(one: Recorder, other: Recorder) -> float:
    """The root mean square of the relative differences of all losses of all trials.

    Not the largest: a rounding that Adam divides by next to nothing makes any of them stand out.
    """
    trials = {result.trial for result in one.results}
    pairs = [pair for trial in trials
             for pair in zip(one.losses(trial), other.losses(trial), strict=True)]
    return (sum((a / b - 1) ** 2 for a, b in pairs) / len(pairs)) ** 0.5


def lagging(
    tiny: Tiny, trials: list[TrialConfig], lag: int, answer: Any = None, *, capacity: int = 2
) -> Recorder:
    """The trials with the device heard so many clocks later."""
    engine, driver = prepared(tiny, capacity=capacity)
    engine.size = replace(engine.size, lag=lag)
    driver.answer = answer or driver.answer
    driver.trials += trials
    engine.run(driver)
    return driver


def outcomes(driver: Recorder) -> dict[int, Outcome]:
    """How each trial ended."""
    return {result.trial: result.outcome for result in driver.results}


class Killed(BaseException):
    """Stands for the end of the process: nothing is told, nothing tidied up."""


def interrupted(
    engine: PackedEngine, driver: Recorder, trials: Sequence[TrialConfig], states: Path
) -> Recorder:
    """Kills the engine at the first third tick, and hands out the same trials again."""

    def until(report: Report) -> Verdict:
        if report.tick == 3:
            raise Killed
        return CONTINUE

    shared = engine.shared
    shared.assignment = replace(shared.assignment, states_dir=str(states), state_every_s=0.0)
    driver.trials += trials
    driver.answer = until
    with pytest.raises(Killed):
        engine.run(driver)
    again = Recorder([replace(trial, attempt=1) for trial in trials], setup=driver.setup)
    engine.run(again)
    return again


@contextmanager
def bench(
    engine: PackedEngine, *, slots: int, r: int = 8, dtype: torch.dtype = torch.float32
) -> Iterator[Slots]:
    """Empty slots of an engine, to be filled and ticked by hand."""
    device = engine.shared.base.device
    with quiet(), packed_layers(engine._groups, dtype=dtype, resident=True) as pack:
        bank = Bank(shapes_of(engine.layers), slots=slots, r=r, device=device, compute=dtype,
                    dtype=dtype)
        clock = Clock(engine.shared.base, bank, pack, engine.corpus, engine.forward,
                      engine._shapes(replace(engine.size, slots=slots)),
                      Replays(device, records=False), drops=True)
        yield Slots(engine.shared, clock, pack, engine._skeleton)


def seated(slots: Slots, *trials: TrialConfig) -> list[Seat]:
    """Seats for the trials, in this order."""
    for trial in trials:
        slots.sit(trial, Recorder())
    return slots.seats


def ticked(slots: Slots, seats: Sequence[Seat], clocks: int = 1000) -> dict[int, list[float]]:
    """Clocks until none has work, or so many; each slot's train losses."""
    losses: dict[int, list[float]] = {seat.slot: [] for seat in seats}
    while clocks and (live := [seat for seat in seats if seat.has_work]):
        told = slots.clock.tick(live)
        numbers = told.numbers.numbers()[0] if told.steps else []
        for slot, _, _ in told.steps:
            losses[slot].append(numbers[slot])
        clocks -= 1
    return losses


@dataclass
class Alone:
    """One trial by PEFT and torch.optim, nothing else on the base."""

    losses: list[float] = field(default_factory=list)
    gradients: Factors = field(default_factory=dict)  # of the last step, not clipped
    factors: Factors = field(default_factory=dict)


def alone(
    engine: PackedEngine, trial: TrialConfig, *, dtype: torch.dtype = torch.float32,
    start: Factors | None = None, steps: int | None = None,
) -> Alone:
    """The reference: the trial's steps one after another, each a single forward."""
    base, found = engine.shared.base, Alone()
    targets = resolve_targets(base.facts, trial.lora.target_modules)
    with quiet(), fresh_adapter(base.model, trial.lora, targets, trial.seed) as adapter:
        for parameter in adapter.parameters:
            parameter.data = parameter.data.to(dtype)
        pairs = _pairs(adapter.model)
        for name, values in (start or {}).items():
            for parameter, value in zip(pairs[name], values, strict=True):
                parameter.data.copy_(value)
        plan = engine.shared.steps(trial)
        warmup = warmup_steps(trial.train.warmup, len(plan))
        optimizer = build_optimizer(trial.train, adapter.parameters)
        adapter.model.train()
        for number, step in enumerate(plan[:steps]):
            batch = collate(engine.shared._rows(trial, step), 0)
            adapter.keys.rows = row_keys(trial.seed, batch.order, batch.tokens)
            logits = target_logits(adapter.model, batch)
            loss = cross_entropy(logits, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            found.gradients = {name: tuple(p.grad.clone() for p in pair)
                               for name, pair in pairs.items()}
            found.losses.append(float(loss))
            torch.nn.utils.clip_grad_norm_(adapter.parameters, trial.train.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = trial.train.learning_rate * rate_factor(
                    trial.train.scheduler, number, steps=len(plan), warmup=warmup)
            optimizer.step()
        found.factors = {name: tuple(p.detach().clone() for p in pair)
                         for name, pair in pairs.items()}
    return found


def _pairs(model: Any) -> dict[str, tuple[Any, Any]]:
    return {name.removeprefix(PREFIX): (m.lora_A[NAME].weight, m.lora_B[NAME].weight)
            for name, m in model.named_modules() if hasattr(m, "lora_A")}


@contextmanager
def in_fp64(engine: PackedEngine) -> Iterator[None]:
    """The base in fp64 throughout: the library's RMSNorm would round to fp32."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def exact(self: Any, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(mean + self.variance_epsilon)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(LlamaRMSNorm, "forward", exact)
        patch.setattr("trials.engines.packed.forward.computing", lambda *_: nullcontext())
        engine.shared.base.model.double()
        stack.callback(engine.shared.base.model.float)
        yield


def mixed(tiny: Tiny, examples: int = 200, **train: Any) -> list[TrialConfig]:
    """Trials that differ in all that may differ in a pack."""
    return [
        tiny.trial(0, seed=3, examples=examples, lora={"r": 8, "alpha": 16.0, "dropout": 0.1},
                   batch_size=8, scheduler="cosine", warmup=0.1, weight_decay=0.1, **train),
        tiny.trial(1, seed=5, examples=examples // 2, batch_size=4, learning_rate=0.003,
                   lora={"r": 2, "alpha": 8.0, "dropout": 0.0, "target_modules": "qv"},
                   max_grad_norm=0.3, **train),
        tiny.trial(2, seed=2**40 + 7, examples=examples * 2, batch_size=16, scheduler="linear",
                   lora={"r": 5, "alpha": 3.0, "rslora": True, "dropout": 0.3,
                         "target_modules": ("o_proj", "down_proj")}, micro_batch_size=3, **train),
        tiny.trial(3, seed=3, examples=examples - examples // 8, batch_size=7, optimizer="sgd",
                   learning_rate=0.5, scheduler="polynomial", weight_decay=0.01,
                   group_by_length=True, **train),
    ]


