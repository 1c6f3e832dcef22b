"""Closed-form learning curves instead of training: no model, no torch, every fault on demand.

The curves are in `trials.engines.curves`. Options:
- `capacity`: trials at once, advanced in turn like the slots of a packed engine;
- `seconds_per_tick`: how long one tick of all live trials takes;
- `noise`: standard deviation of an evaluation, keyed by the whole configuration;
- `faults`: a list of "kind@trial:tick", see `trials.engines.simulated_faults`.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

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
    Sample,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
    optimizer_steps,
    tick_examples,
    to_json,
)
from trials.engines import WAIT_S
from trials.engines.curves import BASELINE, MODULES, history, loss, modules, trainable_parameters
from trials.engines.simulated_faults import FATAL, check, planned, take_down
from trials.engines.simulated_samples import baseline_samples, trial_samples
from trials.training.state import Keeping, Progress, State

OPTIONS = {"capacity": 1, "seconds_per_tick": 0.0, "noise": 0.002, "faults": ()}
TOKENS_PER_EXAMPLE = 100
STEP_S = 0.5  # between two signs of life in a long tick
TRAIN_EXAMPLES = 1000  # where the data configuration does not say


def prepare(assignment: Assignment, driver: Driver) -> tuple[SimulatedEngine, Setup]:
    """Checks what a real engine would check, and measures a base that is not there."""
    options = _options(assignment)
    driver.progress("preparing simulated curves", 0, 1)
    for target in assignment.target_modules:
        modules(target)
    engine = SimulatedEngine(assignment=assignment, **options)
    driver.progress("preparing simulated curves", 1, 1)
    return engine, _setup(assignment, engine.capacity)


@dataclass
class Slot:
    """A live trial: how far it is, and since when."""

    trial: TrialConfig
    keeping: Keeping
    tick: int = 0
    started: float = field(default_factory=time.monotonic)
    reports: list[Report] = field(default_factory=list)  # answered with: go on

    def state(self) -> State:
        """What the trial is continued from."""
        last = self.reports[-1]
        return State(progress=Progress(
            steps=optimizer_steps(last.examples, self.trial.train.batch_size),
            examples=last.examples, tokens=last.tokens, seconds=time.monotonic() - self.started,
            memory_bytes=last.memory_bytes, reports=tuple(self.reports),
        ))


@dataclass(kw_only=True)
class SimulatedEngine:
    """Advances up to `capacity` trials in turn, one tick each."""

    assignment: Assignment
    capacity: int
    seconds_per_tick: float
    noise: float
    faults: tuple[str, ...]

    def run(self, driver: Driver) -> None:
        """Takes, reports and finishes trials until the driver has none."""
        slots: list[Slot] = []
        while (more := self._refill(driver, slots)) or slots:
            if slots:
                slots = self._train(driver, slots)
            elif more:
                time.sleep(min(WAIT_S, self.seconds_per_tick or 0.01))
            slots = [slot for slot in slots if self._lives_on(driver, slot)]

    def _refill(self, driver: Driver, slots: list[Slot]) -> bool:
        """Fills the free slots; false once the driver is done."""
        while len(slots) < self.capacity:
            turn = driver.next_trial()
            if isinstance(turn, Turn):
                return turn is Turn.WAIT
            if slot := self._begun(driver, turn):
                slots.append(slot)
        return True

    def _begun(self, driver: Driver, trial: TrialConfig) -> Slot | None:
        """A trial at its start, or where an earlier attempt was; null if it must stop there."""
        slot = Slot(trial, Keeping.assigned(self.assignment, trial, driver.note))
        state = slot.keeping.found()
        if state is None:
            return slot
        slot.started -= state.progress.seconds
        for told in state.progress.reports:
            slot.tick = told.tick
            slot.reports.append(
                replace(told, attempt=trial.attempt, worker=self.assignment.worker, again=True)
            )
            verdict = driver.report(slot.reports[-1])
            if verdict.stop:
                driver.finish(self._result(slot, verdict))
                return None
        return slot

    def _train(self, driver: Driver, slots: list[Slot]) -> list[Slot]:
        """Takes a tick's time, in steps; those that were not stopped on the way."""
        end = time.monotonic() + self.seconds_per_tick
        while slots and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, STEP_S))
            if left > STEP_S:
                slots = [slot for slot in slots if self._goes_on(driver, slot)]
        return slots

    def _goes_on(self, driver: Driver, slot: Slot) -> bool:
        """Asks between ticks; false when the answer ended the trial."""
        verdict = driver.alive(slot.trial.number, slot.trial.attempt)
        if verdict.stop:
            self._keep(slot, verdict)
            driver.finish(self._result(slot, verdict))
        return not verdict.stop

    def _lives_on(self, driver: Driver, slot: Slot) -> bool:
        """Brings a trial to its next tick; false when that ended it."""
        slot.tick += 1
        if result := self._fault(slot):
            driver.finish(result)
            return False
        report = self._report(slot)
        verdict = driver.report(report)
        slot.reports.append(report)
        over = verdict.stop or slot.tick == slot.trial.budget.ticks
        self._keep(slot, verdict)
        if over:
            driver.finish(self._result(slot, verdict))
        return not over

    def _keep(self, slot: Slot, verdict: Verdict) -> None:
        """Now and then, and where it is stopped to be continued."""
        goes_on = not verdict.stop and slot.tick < slot.trial.budget.ticks
        stopped = verdict.stop and verdict.outcome is Outcome.STOPPED
        if slot.reports and (stopped or goes_on and slot.keeping.due):
            slot.keeping.keep(slot.state)

    def _fault(self, slot: Slot) -> TrialResult | None:
        """The fault planned for this trial, tick and attempt: ends the trial, or the process."""
        kind = self._planned(slot)
        if kind == "oom":
            return self._ended(slot, Outcome.INFEASIBLE, "out of memory (simulated)")
        if kind == "exception":
            return self._ended(slot, Outcome.FAILED, "RuntimeError: simulated")
        if kind in FATAL:
            take_down(kind)
        return None

    def _planned(self, slot: Slot) -> str | None:
        return planned(self.faults, slot.trial.number, slot.tick, slot.trial.attempt)

    def _ended(self, slot: Slot, outcome: Outcome, reason: str) -> TrialResult:
        slot.tick -= 1
        return replace(self._result(slot, Verdict()), outcome=outcome, reason=reason)

    def _report(self, slot: Slot) -> Report:
        trial, tick = slot.trial, slot.tick
        seen = tick_examples(trial.budget, trial.train.batch_size)
        bad = self._planned(slot) == "nan"
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
            worker=self.assignment.worker,
            samples=self._written(slot) if self.assignment.samples_at_ticks and not bad else (),
            history=history(trial, ((0,) + seen)[tick - 1], seen[tick - 1]),
        )

    def _result(self, slot: Slot, verdict: Verdict) -> TrialResult:
        trial, tick = slot.trial, slot.tick
        complete = not verdict.stop and tick == trial.budget.ticks
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
            worker=self.assignment.worker,
            samples=self._written(slot) if complete or self.assignment.samples_at_ticks else (),
        )

    def _written(self, slot: Slot) -> tuple[Sample, ...]:
        if not slot.tick:
            return ()
        count = self.assignment.samples
        return trial_samples(count, slot.trial, loss(slot.trial, slot.tick, self.noise))


def _options(assignment: Assignment) -> dict[str, Any]:
    """The options with their defaults. Raises `InputError` on an unknown one or a wrong fault."""
    given = assignment.engine.options
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise InputError(f"engine option {unknown[0]!r} is unknown. Known: {', '.join(OPTIONS)}.")
    options = {**OPTIONS, **{name: it for name, it in given.items() if it is not None}}
    options["faults"] = tuple(options["faults"] or ())
    for fault in options["faults"]:
        check(fault)
    return options


def _setup(assignment: Assignment, capacity: int) -> Setup:
    revision = assignment.model.revision or "simulated"
    model = replace(assignment.model, dtype="fp32", revision=revision)
    size = assignment.data.train_size or TRAIN_EXAMPLES
    data = replace(assignment.data, content_hash=None, train_size=size)
    data = replace(data, content_hash=_hash(data))  # the same for a trial's own, prepared data
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
        baseline_samples=baseline_samples(assignment.samples, assignment.seed),
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
