"""A trial in a slot: where it is in its plan, and what its next micro-batch is."""

from __future__ import annotations

import numpy as np
import torch

from trials.contract import Assignment, Driver, Sample, TrialConfig
from trials.engines.course import Course
from trials.engines.packed.corpus import Corpus, Ints, Rows
from trials.engines.packed.optim import coefficients
from trials.evaluate import Evaluation
from trials.training.plan import Step
from trials.training.state import Keeping, Writer


class Seat:
    """Walks through a trial's steps; `course` follows when the device has said how they went."""

    def __init__(
        self, trial: TrialConfig, slot: int, steps: list[Step], order: Ints, corpus: Corpus
    ) -> None:
        self.trial, self.slot, self.steps = trial, slot, steps
        self.course: PackedCourse
        self.targets: tuple[str, ...] = ()  # paths of the modules that the adapter changes
        self.coefficients = coefficients(trial.train, len(steps))
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

    @property
    def left(self) -> int:
        """The tokens of the current batch that no clock has taken yet."""
        return int(self._corpus.lengths[self._rows.examples].sum())

    def rows_within(self, tokens: float) -> int:
        """How many rows make so many tokens at most; one at least."""
        reached = np.cumsum(self._corpus.lengths[self._rows.examples])
        return self._most(max(1, int(np.searchsorted(reached, tokens, side="right"))))

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

    def tokens(self, step: Step) -> int:
        """The tokens of one of its steps, padding not counted."""
        return int(self._corpus.lengths[self._order[list(step.positions)]].sum())

    def stepped(self) -> None:
        """The optimizer step is on its way: on to the next batch."""
        self.at += 1
        self._begin()

    def resume(self, at: int) -> None:
        """Goes on with this step."""
        self.at = at
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

    def __init__(
        self, seat: Seat, driver: Driver, assignment: Assignment, device: torch.device,
        writer: Writer,
    ) -> None:
        self.evaluation: Evaluation | None = None  # of the step that is told next
        self.written: tuple[Sample, ...] = ()  # likewise
        super().__init__(
            seat.trial, driver, assignment.worker, device, self._made, slot=lambda: seat.slot,
            write=(lambda: self.written) if assignment.samples_at_ticks else None,
            keeping=Keeping.assigned(assignment, seat.trial, driver.note, writer), shared=True,
        )

    def waited(self, seconds: float, writing_seconds: float) -> None:
        """Counts time in which the pack evaluated or wrote: all of it waits, whoever it was for."""
        self._meter.waited(seconds)
        self._meter.waited_for_samples(writing_seconds)

    def _made(self, *progress: object) -> Evaluation:
        assert self.evaluation is not None
        return self.evaluation
