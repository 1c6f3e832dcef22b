"""One trial at a time through TRL's SFTTrainer, on a base that stays in memory between trials.

    engine, setup = prepare(assignment, driver)   # loads, quantises, tokenises, measures the base
    engine.run(driver)
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from trials.adapters import Adapter, export, fresh_adapter
from trials.base import Base, device_facts, load_base, resolve_device, resolve_targets
from trials.base.devices import DTYPES
from trials.contract import (
    Assignment,
    Driver,
    InputError,
    Outcome,
    Sample,
    Setup,
    TrialConfig,
    TrialResult,
)
from trials.data import Data, load_data, order
from trials.engines import one_at_a_time
from trials.engines.course import Course
from trials.evaluate import Evaluation, evaluate, evaluation_batches
from trials.garbage import importing
from trials.generate import samples
from trials.quiet import quiet, quiet_loggers
from trials.training.batches import Batch, Limit, Row, pack
from trials.training.limits import (
    end_of,
    evaluation_limit,
    free_memory,
    keeps_packed_apart,
    out_of_memory,
    training_limit,
)
from trials.training.optimizers import check_optimizers
from trials.training.plan import Step, plan
from trials.training.state import Keeping


def prepare(assignment: Assignment, driver: Driver) -> tuple[TrlEngine, Setup]:
    """Loads and checks what all trials share, and measures the untouched base.

    Raises InputError for a device, base, data set, target module or optimizer that cannot be.
    """
    if assignment.threads is not None:
        torch.set_num_threads(assignment.threads)
    if options := sorted(assignment.engine.options):
        raise InputError(f"engine.{options[0]}: the engine trl has no options. Leave it out.")
    check_optimizers(assignment.optimizers, resolve_device(assignment.device))
    quiet_loggers()
    with quiet():
        with importing():
            import trials.engines.trl_trainer  # noqa: F401  # slow, so not in a trial's time

        base = load_base(assignment.model, assignment.device, driver.progress)
        for targets in assignment.target_modules:
            resolve_targets(base.facts, targets)
        if assignment.packing:
            keeps_packed_apart(base)
        data = load_data(assignment.data, base, assignment.seed, driver.progress)
        check_batch(assignment, data)
        engine = TrlEngine(base, data, assignment)
        baseline = engine.measure(partial(driver.progress, "measuring the untouched base"))
        check_baseline(base, baseline)
        setup = setup_of(engine, baseline)
    return engine, setup


@dataclass
class TrlEngine:
    """A base, the data and how to train on them; see `trials.contract.Engine`."""

    base: Base
    data: Data
    assignment: Assignment

    def __post_init__(self) -> None:
        self._dtype = DTYPES[self.base.config.dtype]
        self._evaluation = self._batches(
            evaluation_limit(self.base, self.assignment.sharing))

    def run(self, driver: Driver) -> None:
        """Trains one trial after another until the driver has none."""
        one_at_a_time(driver, partial(self.train, driver=driver), time.sleep)

    def measure(self, progress: Callable[[int, int], None] = lambda *_: None) -> Evaluation:
        """The evaluation of the base with whatever adapter is on it.

        Where a forward does not fit into memory, less is computed at once, down to one example.
        """
        while True:
            try:
                return evaluate(self.base.model, self._evaluation, self._dtype, progress)
            except Exception as error:
                largest = max(len(batch.input_ids) for batch in self._evaluation)
                if largest == 1 or not out_of_memory(error):
                    raise
            free_memory(self.base.device)
            self._evaluation = self._batches(Limit(rows=largest // 2))

    def _batches(self, limit: Limit) -> list[Batch]:
        pad = self.base.tokenizer.pad_token_id
        return evaluation_batches(
            self.data.eval, pad=pad, limit=limit, device=self.base.device
        )

    def samples(self, slots: int = 1) -> list[tuple[Sample, ...]]:
        """What the base writes for the first prompts with each of the adapters that are on it."""
        count = min(self.assignment.samples, len(self.data.eval))
        examples = [self.data.eval[place] for place in range(count)]
        return samples(self.base.model, self.base.tokenizer, examples, self._dtype, slots)

    def _own_samples(self) -> tuple[Sample, ...]:
        """Where they cannot be written, the log says why and the trial goes on."""
        try:
            [own] = self.samples()
        except Exception:
            traceback.print_exc()
            return ()
        return own

    def train(self, trial: TrialConfig, driver: Driver) -> TrialResult:
        """Trains one trial to its end, whatever end that is."""
        def measure() -> Evaluation:
            return self.measure(lambda done, total: course.sign_of_life())

        write = self._own_samples if self.assignment.samples_at_ticks else None
        course = Course(
            trial, driver, self.assignment.worker, self.base.device, measure, write=write,
            keeping=Keeping.assigned(self.assignment, trial, driver.note),
        )
        evaluation = self._evaluation
        try:
            with quiet():
                self._train(trial, course)
        except Exception as error:
            course.end(*end_of(error, self.base.device))
        self._evaluation = evaluation  # whatever this trial had to cut is whole for the next
        free_memory(self.base.device)
        return course.result()

    def _train(self, trial: TrialConfig, course: Course) -> None:
        from trials.engines.trl_trainer import Feed, train_adapter

        if trial.train.packing and not self.assignment.packing:
            keeps_packed_apart(self.base)
        start = course.keeping.found()
        if start is not None:
            course.resume(start.progress)
            if course.outcome is not None:
                return
        targets = resolve_targets(self.base.facts, trial.lora.target_modules)
        with fresh_adapter(self.base.model, trial.lora, targets, trial.seed) as adapter:
            course.trainable_parameters = adapter.trainable_parameters
            feed = Feed(
                rows=partial(self._rows, trial),
                tokenizer=self.base.tokenizer,
                device=self.base.device,
                dtype=self._dtype,
                limit=training_limit(self.base, trial.train, self.assignment.sharing),
            )
            train_adapter(adapter, trial, self.steps(trial), feed, course, start)
            if course.outcome is Outcome.COMPLETE:
                self._keep(trial, course, adapter)

    def _keep(self, trial: TrialConfig, course: Course, adapter: Adapter) -> None:
        if self.assignment.samples and not course.samples:
            course.write_samples(self._own_samples)
        if self.assignment.adapters_dir is not None:
            folder = Path(self.assignment.adapters_dir) / str(trial.number)
            name, revision = origin_of(self.base)
            try:
                course.adapter = str(export(adapter, folder, base=name, revision=revision))
            except Exception as error:  # a full disk, say: the trial is complete all the same
                course.note(f"the adapter of trial {trial.number} is not kept: {error}")

    def steps(self, trial: TrialConfig) -> list[Step]:
        """The optimizer steps of a trial, in order."""
        if not trial.train.group_by_length:
            return plan(trial.budget, trial.train.batch_size)
        indices = order(trial.seed, len(self.data.train), 0, trial.budget.examples)
        return plan(
            trial.budget,
            trial.train.batch_size,
            seed=trial.seed,
            length=lambda position: len(self.data.train[indices[position]].input_ids),
        )

    def _rows(self, trial: TrialConfig, step: Step) -> list[Row]:
        train = self.data.train
        placed = [
            (position, train[order(trial.seed, len(train), position, 1)[0]])
            for position in step.positions
        ]
        if trial.train.packing:
            return pack(placed, self.data.config.max_length)
        return [[item] for item in placed]


def origin_of(base: Base) -> tuple[str, str | None]:
    """What loads this base elsewhere: a folder, or a name and its revision on the hub."""
    if base.config.name == "demo" or Path(base.config.name).is_dir():
        return str(base.model.name_or_path), None
    return base.config.name, base.config.revision


def check_batch(assignment: Assignment, data: Data) -> None:
    """Raises InputError where a batch would be larger than the whole training set."""
    largest = assignment.max_batch_size
    if largest is not None and largest > len(data.train):
        raise InputError(
            f"train.batch_size={largest} is larger than the training set of {len(data.train)} "
            "examples. Type a smaller batch, or take more data (data.train_size)."
        )


def check_baseline(base: Base, baseline: Evaluation) -> None:
    """Raises InputError where the untouched base has no finite loss."""
    if not math.isfinite(baseline.loss):
        others = " or ".join(f"model.dtype={name}" for name in DTYPES if name != base.config.dtype)
        raise InputError(
            f"model.name={base.config.name}: the untouched base's loss is {baseline.loss} in "
            f"{base.config.dtype}, so no trial could start from it. Type {others}; some bases "
            "overflow in fp16."
        )


def setup_of(engine: TrlEngine, baseline: Evaluation) -> Setup:
    """What the worker tells the driver once it is prepared."""
    base, data = engine.base, engine.data
    return Setup(
        worker=engine.assignment.worker,
        model=base.config,
        data=data.config,
        model_facts=base.facts,
        data_facts=data.facts,
        device=device_facts(base.device, base.config.dtype),
        rendered=data.rendered,
        baseline_loss=baseline.loss,
        baseline_accuracy=baseline.accuracy,
        baseline_samples=_baseline_samples(engine),
        engine=engine.assignment.engine,
    )


def _baseline_samples(engine: TrlEngine) -> tuple[Sample, ...]:
    """Raises InputError where the base cannot generate."""
    try:
        [own] = engine.samples()
        return own
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"samples={engine.assignment.samples}: the untouched base cannot generate text here: "
            f"{said}. Type samples=0, or a smaller data.max_length if it is memory."
        ) from error
