"""Closed-form learning curves instead of training: no model, no torch, every fault on demand.

The curves are in `trials.engines.curves`. Options:
- `capacity`: trials at once, advanced in turn like the slots of a packed engine;
- `seconds_per_tick`: how long one tick of all live trials takes;
- `noise`: standard deviation of an evaluation, keyed by the whole configuration;
- `faults`: a list of "kind@trial:tick" or "kind@trial:tick:attempt" (from 0), kinds in `FAULTS`.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from trials.contract import (
    Assignment,
    DataConfig,
    DataFacts,
    DeviceFacts,
    Driver,
    InputError,
    ModelConfig,
    ModelFacts,
    Outcome,
    RenderedSample,
    Report,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
    tick_examples,
    to_json,
)
from trials.engines import WAIT_S
from trials.engines.curves import BASELINE, MODULES, history, loss, modules, trainable_parameters

OPTIONS = {"capacity": 1, "seconds_per_tick": 0.0, "noise": 0.002, "faults": ()}
FAULTS = ("crash", "exit", "hang", "oom", "nan", "exception")
TOKENS_PER_EXAMPLE = 100
TRAIN_EXAMPLES = 1000  # where the data configuration does not say


def prepare(assignment: Assignment, driver: Driver) -> tuple[SimulatedEngine, Setup]:
    """Checks what a real engine would check, and measures a base that is not there."""
    options = _options(assignment)
    driver.progress("preparing simulated curves", 0, 1)
    for target in assignment.target_modules:
        modules(target)
    engine = SimulatedEngine(worker=assignment.worker, **options)
    driver.progress("preparing simulated curves", 1, 1)
    return engine, _setup(assignment, engine.capacity)


@dataclass
class Slot:
    """A live trial: how far it is, and since when."""

    trial: TrialConfig
    tick: int = 0
    started: float = field(default_factory=time.monotonic)


@dataclass(kw_only=True)
class SimulatedEngine:
    """Advances up to `capacity` trials in turn, one tick each."""

    worker: str
    capacity: int
    seconds_per_tick: float
    noise: float
    faults: tuple[str, ...]

    def run(self, driver: Driver) -> None:
        """Takes, reports and finishes trials until the driver has none."""
        slots: list[Slot] = []
        while (more := self._refill(driver, slots)) or slots:
            if slots:
                time.sleep(self.seconds_per_tick)
            elif more:
                time.sleep(min(WAIT_S, self.seconds_per_tick or 0.01))
            slots = [slot for slot in slots if self._lives_on(driver, slot)]

    def _refill(self, driver: Driver, slots: list[Slot]) -> bool:
        """Fills the free slots; false once the driver is done."""
        while len(slots) < self.capacity:
            turn = driver.next_trial()
            if isinstance(turn, Turn):
                return turn is Turn.WAIT
            slots.append(Slot(turn))
        return True

    def _lives_on(self, driver: Driver, slot: Slot) -> bool:
        """Brings a trial to its next tick; false when that ended it."""
        slot.tick += 1
        if result := self._fault(slot):
            driver.finish(result)
            return False
        verdict = driver.report(self._report(slot))
        if verdict.stop or slot.tick == slot.trial.budget.ticks:
            driver.finish(self._result(slot, verdict))
            return False
        return True

    def _fault(self, slot: Slot) -> TrialResult | None:
        """The fault planned for this trial, tick and attempt: ends the trial, or the process."""
        kind = _planned(self.faults, slot)
        if kind == "oom":
            return self._ended(slot, Outcome.INFEASIBLE, "out of memory (simulated)")
        if kind == "exception":
            return self._ended(slot, Outcome.FAILED, "RuntimeError: simulated")
        if kind in ("crash", "exit", "hang"):
            _break(kind)
        return None

    def _ended(self, slot: Slot, outcome: Outcome, reason: str) -> TrialResult:
        slot.tick -= 1
        return replace(self._result(slot, Verdict()), outcome=outcome, reason=reason)

    def _report(self, slot: Slot) -> Report:
        trial, tick = slot.trial, slot.tick
        seen = tick_examples(trial.budget, trial.train.batch_size)
        bad = _planned(self.faults, slot) == "nan"
        return Report(
            trial=trial.number,
            attempt=trial.attempt,
            tick=tick,
            eval_loss=math.nan if bad else loss(trial, tick, self.noise),
            eval_accuracy=math.exp(-loss(trial, tick, self.noise)),
            examples=seen[tick - 1],
            tokens=seen[tick - 1] * TOKENS_PER_EXAMPLE,
            seconds=time.monotonic() - slot.started,
            memory_bytes=trainable_parameters(trial) * 16,
            utilisation=1.0,
            worker=self.worker,
            history=history(trial, ((0,) + seen)[tick - 1], seen[tick - 1]),
        )

    def _result(self, slot: Slot, verdict: Verdict) -> TrialResult:
        trial, tick = slot.trial, slot.tick
        seen = (0, *tick_examples(trial.budget, trial.train.batch_size))[tick]
        return TrialResult(
            trial=trial.number,
            attempt=trial.attempt,
            outcome=verdict.outcome if verdict.stop else Outcome.COMPLETE,
            eval_loss=loss(trial, tick, self.noise) if tick else None,
            eval_accuracy=math.exp(-loss(trial, tick, self.noise)) if tick else None,
            ticks=tick,
            examples=seen,
            tokens=seen * TOKENS_PER_EXAMPLE,
            seconds=time.monotonic() - slot.started,
            memory_bytes=trainable_parameters(trial) * 16,
            trainable_parameters=trainable_parameters(trial),
            reason=verdict.reason,
            worker=self.worker,
        )


def _planned(faults: tuple[str, ...], slot: Slot) -> str | None:
    here = (slot.trial.number, slot.tick, slot.trial.attempt)
    for fault in faults:
        kind, _, where = fault.partition("@")
        place = tuple(int(part) for part in where.split(":"))
        if here[: len(place)] == place:
            return kind
    return None


def _break(kind: str) -> NoReturn:
    """What a native crash, a sudden exit and a hung kernel look like from outside."""
    sys.stdout.flush()
    while kind == "hang":
        time.sleep(3600)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def _options(assignment: Assignment) -> dict[str, Any]:
    """The options with their defaults. Raises `InputError` on an unknown one or a wrong fault."""
    given = assignment.engine.options
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise InputError(f"engine option {unknown[0]!r} is unknown. Known: {', '.join(OPTIONS)}.")
    options = {**OPTIONS, **{name: it for name, it in given.items() if it is not None}}
    options["faults"] = tuple(options["faults"] or ())
    for fault in options["faults"]:
        _check_fault(fault)
    return options


def _check_fault(fault: str) -> None:
    kind, _, where = fault.partition("@")
    parts = where.split(":")
    if kind not in FAULTS or len(parts) not in (2, 3) or not all(p.isdigit() for p in parts):
        raise InputError(
            f"engine.faults: {fault!r} is not kind@trial:tick[:attempt]. "
            f"Kinds: {', '.join(FAULTS)}."
        )


def _setup(assignment: Assignment, capacity: int) -> Setup:
    revision = assignment.model.revision or "simulated"
    model = replace(assignment.model, dtype="fp32", revision=revision)
    size = assignment.data.train_size or TRAIN_EXAMPLES
    data = replace(assignment.data, content_hash=_hash(assignment.data), train_size=size)
    return Setup(
        worker=assignment.worker,
        model=model,
        data=data,
        model_facts=_model_facts(model),
        data_facts=_data_facts(data, size),
        device=DeviceFacts(name="simulated", kind="cpu", memory_bytes=0, dtype="fp32",
                           versions={"python": sys.version.split()[0]}),
        rendered=RenderedSample(pieces=(("What is simulated? ", False), ("Everything.", True))),
        baseline_loss=BASELINE,
        baseline_accuracy=math.exp(-BASELINE),
        capacity=capacity,
    )  # fmt: skip


def _hash(data: DataConfig) -> str:
    return hashlib.sha256(to_json(data).encode()).hexdigest()


def _model_facts(model: ModelConfig) -> ModelFacts:
    return ModelFacts(
        name=model.name,
        revision=model.revision,
        architecture="simulated",
        parameters=10_000_000,
        linear_modules=MODULES["all-linear"],
        presets=dict(MODULES),
        loaded_bytes=0,
    )


def _data_facts(data: DataConfig, size: int) -> DataFacts:
    return DataFacts(
        content_hash=data.content_hash or "",
        columns={},
        guessed=(),
        train_examples=size,
        eval_examples=data.eval_size,
        mean_length=float(min(TOKENS_PER_EXAMPLE, data.max_length)),
        max_length=min(2 * TOKENS_PER_EXAMPLE, data.max_length),
        truncated=0,
        dropped=0,
    )
