"""A trial in a slot: where it is in its plan, and what its next micro-batch is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from trials.contract import Driver, Report, TrialConfig, Verdict
from trials.engines.course import Course
from trials.engines.packed.corpus import Corpus, Ints, Rows
from trials.engines.packed.optim import coefficients, learning_rates
from trials.evaluate import Evaluation
from trials.training.plan import Step


class Seat:
    """Walks through a trial's steps; `course` follows when the device has said how they went."""

    def __init__(
        self, trial: TrialConfig, slot: int, steps: list[Step], order: Ints, corpus: Corpus
    ) -> None:
        self.trial, self.slot, self.steps = trial, slot, steps
        self.course: PackedCourse
        self.targets: tuple[str, ...] = ()  # paths of the modules that the adapter changes
        self.rates = learning_rates(trial.train, len(steps))
        self.coefficients = coefficients(trial.train, self.rates)
        self._number = {step.examples: number for number, step in enumerate(steps)}
        self._order, self._corpus = order, corpus
        self.at = 0  # the step that is next
        self._rows = Rows(order[:0], order[:0])  # what is left of its batch
        self._begin()

    @property
    def has_work(self) -> bool:
        """Whether there are steps that no clock has taken yet."""
        return self.at < len(self.steps)

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied with."""
        lora = self.trial.lora
        return float(lora.alpha / (lora.r**0.5 if lora.rslora else lora.r))

    def widths(self, rows: int) -> tuple[int, int, int]:
        """The longest row, all tokens and all targets of the next `rows` rows."""
        taken = self._rows.examples[: self._most(rows)]
        lengths = self._corpus.lengths[taken]
        return int(lengths.max()), int(lengths.sum()), int(self._corpus.targets[taken].sum())

    def take(self, rows: int) -> tuple[Rows, Step | None]:
        """The next micro-batch of at most `rows`, and the step that it completes."""
        cut = self._most(rows)
        taken = Rows(self._rows.examples[:cut], self._rows.positions[:cut])
        self._rows = Rows(self._rows.examples[cut:], self._rows.positions[cut:])
        if len(self._rows.examples):
            return taken, None
        return taken, self.steps[self.at]

    def rate(self, step: Step) -> float:
        """The learning rate of one of its steps."""
        return self.rates[self._number[step.examples]]

    def tokens(self, step: Step) -> int:
        """The tokens of one of its steps, padding not counted."""
        return int(self._corpus.lengths[self._order[list(step.positions)]].sum())

    def stepped(self) -> None:
        """The optimizer step is on its way: on to the next batch."""
        self.at += 1
        self._begin()

    def again(self) -> None:
        """Begins the current batch anew, after a clock that failed."""
        self._begin()

    def _begin(self) -> None:
        if not self.has_work:
            return
        positions = np.array(self.steps[self.at].positions, dtype=np.int64)
        examples = self._order[positions]
        self.batch_targets = max(1, int(self._corpus.targets[examples].sum()))
        longest_first = np.argsort(-self._corpus.lengths[examples], kind="stable")
        self._rows = Rows(examples[longest_first], positions[longest_first])

    def _most(self, rows: int) -> int:
        return min(rows, self.trial.train.micro_batch_size or rows)


class PackedCourse(Course):
    """A course whose evaluation has been made by the pack when its tick comes."""

    def __init__(self, seat: Seat, driver: Driver, worker: str, device: torch.device) -> None:
        self.evaluation: Evaluation | None = None  # of the step that is told next
        super().__init__(seat.trial, _Seated(driver, seat), worker, device, self._made)

    def waited(self, seconds: float) -> None:
        """Counts time in which the pack evaluated: all of it waits, whoever is measured."""
        self._meter.eval_seconds += seconds
        self._meter._lap_start += seconds  # not part of a step

    def _made(self, *progress: object) -> Evaluation:
        assert self.evaluation is not None
        return self.evaluation


class _Seated:
    """A driver that is told the slot with each report."""

    def __init__(self, driver: Driver, seat: Seat) -> None:
        self._driver, self._seat = driver, seat
        self.progress, self.prepared = driver.progress, driver.prepared
        self.next_trial, self.finish = driver.next_trial, driver.finish

    def report(self, report: Report) -> Verdict:
        return self._driver.report(replace(report, slot=self._seat.slot))
