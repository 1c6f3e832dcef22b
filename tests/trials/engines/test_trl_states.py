"""An interrupted trial of the TRL engine ends as the undisturbed one, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import outcomes
from tiny import Recorder, Tiny

from trials.contract import (
    CONTINUE,
    OPTIMIZERS,
    PAGED,
    Outcome,
    Report,
    Setup,
    TrialConfig,
    Verdict,
)
from trials.engines.course import Course
from trials.engines.trl import TrlEngine, prepare
from trials.evaluate import target_logits
from trials.training.batches import Batch


class Killed(BaseException):
    """Stands for the end of the process: nothing is told, nothing tidied up."""


@dataclass
class Worker:
    """A prepared worker; the base that it holds is untouched between trials."""

    engine: TrlEngine
    setup: Setup

    def run(self, trial: TrialConfig, answer: Any = None, **assigned: Any) -> Recorder:
        """Hands out one trial."""
        driver = Recorder([trial], setup=self.setup, **({"answer": answer} if answer else {}))
        plain = {"states_dir": None, "state_every_s": 0.0}
        self.engine.assignment = replace(self.engine.assignment, **plain | assigned)
        self.engine.run(driver)
        return driver

    def interrupted(self, trial: TrialConfig, states: Path, *, at: int) -> Recorder:
        """Kills the worker right after its state of tick `at`, then hands the trial out again."""

        def until(report: Report) -> Verdict:
            if report.tick > at:
                raise Killed
            return CONTINUE

        with pytest.raises(Killed):
            self.run(trial, until, states_dir=str(states))
        return self.run(replace(trial, attempt=1), states_dir=str(states))


def prepared(tiny: Tiny, **assigned: Any) -> Worker:
    """A new worker."""
    driver = Recorder()
    return Worker(*prepare(tiny.assignment(**assigned), driver))


@pytest.fixture(scope="module")
def worker(tiny: Tiny) -> Worker:
    """One for all."""
    return prepared(tiny)


def curve(driver: Recorder) -> list[tuple[Any, ...]]:
    """All that does not depend on the clock, of reports told for the first time."""
    return [
        (r.tick, r.eval_loss, r.eval_accuracy, r.examples, r.tokens,
         [(p.examples, p.train_loss, p.learning_rate, p.grad_norm) for p in r.history])
        for r in driver.reports
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in PAGED])
def test_every_optimizer_goes_on_bit_for_bit(
    tiny: Tiny, worker: Worker, tmp_path: Path, optimizer: str
) -> None:
    trial = tiny.trial(
        4, examples=76, ticks=4, optimizer=optimizer, scheduler="cosine", warmup=0.3,
        weight_decay=0.01, learning_rate=1.0 if optimizer == "sgd" else 0.01,
    )
    whole = worker.run(trial)
    cut = worker.interrupted(trial, tmp_path, at=2)
    assert curve(cut) == curve(whole)
    assert [(r.tick, r.again, r.attempt) for r in cut.reports] == [
        (1, True, 1), (2, True, 1), (3, False, 1), (4, False, 1)
    ]  # fmt: skip
    assert cut.results[0].eval_loss == whole.results[0].eval_loss
    assert outcomes(cut) == [Outcome.COMPLETE]


@pytest.mark.parametrize(
    "setting", [{"group_by_length": True, "micro_batch_size": 3},
                {"packing": True, "gradient_checkpointing": True}], ids=str,
)  # fmt: skip
def test_however_it_trains(
    tiny: Tiny, worker: Worker, tmp_path: Path, setting: dict[str, Any]
) -> None:
    trial = tiny.trial(examples=64, ticks=2, **setting)
    assert curve(worker.interrupted(trial, tmp_path, at=1)) == curve(worker.run(trial))


@pytest.mark.parametrize("rows", [None, 8])
def test_a_micro_batch_that_was_cut_stays_cut(
    tiny: Tiny, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int | None
) -> None:
    refused = []

    def logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if batch.input_ids.shape[0] > 3:
            refused.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return target_logits(model, batch)

    monkeypatch.setattr("trials.engines.trl_trainer.target_logits", logits)
    trial = tiny.trial(examples=64, ticks=4, micro_batch_size=rows)
    whole, before = worker.run(trial), len(refused)
    cut = worker.interrupted(trial, tmp_path, at=2)
    assert len(refused) == 2 * before > 0  # not again where it goes on
    assert curve(cut) == curve(whole)


def test_a_worker_killed_before_its_first_state_starts_again(
    tiny: Tiny, worker: Worker, tmp_path: Path
) -> None:
    trial = tiny.trial(examples=32, ticks=2)
    cut = worker.interrupted(trial, tmp_path / "none", at=0)
    assert curve(cut) == curve(worker.run(trial))


def test_it_goes_on_from_between_two_ticks(
    tiny: Tiny, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny.trial(examples=80, ticks=2)
    whole = worker.run(trial)
    after = Course.step

    def killed(course: Course, done: Any) -> bool:
        if done.step.examples == 64:
            raise Killed
        return after(course, done)

    assigned = {"states_dir": str(tmp_path), "state_every_s": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(Course, "step", killed)
        with pytest.raises(Killed):
            worker.run(trial, **assigned)
    cut = worker.run(replace(trial, attempt=1), **assigned)
    assert curve(cut) == curve(whole)
    assert cut.reports[-1].again is False


def test_a_stopped_trial_goes_on_where_it_stopped(
    tiny: Tiny, worker: Worker, tmp_path: Path
) -> None:
    """A long pause between states: the one at the stop is written all the same."""
    trial = tiny.trial(examples=64, ticks=4)
    states: dict[str, Any] = {"states_dir": str(tmp_path), "state_every_s": 3600.0}

    def stop(report: Report) -> Verdict:
        return Verdict(stop=report.tick == 3, reason="Ctrl-C", outcome=Outcome.STOPPED)

    first = worker.run(trial, stop, **states)
    assert outcomes(first) == [Outcome.STOPPED]
    second = worker.run(replace(trial, attempt=1), **states)
    assert curve(second) == curve(worker.run(trial))
    assert [r.again for r in second.reports] == [True, True, True, False]
    assert second.results[0].seconds > first.results[0].seconds
    assert second.results[0].eval_seconds > first.results[0].eval_seconds


def test_a_stop_while_it_is_taken_up_keeps_the_state(
    tiny: Tiny, worker: Worker, tmp_path: Path
) -> None:
    trial = tiny.trial(examples=64, ticks=4)
    stop = Verdict(stop=True, reason="Ctrl-C", outcome=Outcome.STOPPED)
    states: dict[str, Any] = {"states_dir": str(tmp_path), "state_every_s": 3600.0}
    worker.run(trial, lambda r: stop if r.tick == 2 else CONTINUE, **states)
    again = worker.run(replace(trial, attempt=1), lambda r: stop, **states)
    assert outcomes(again) == [Outcome.STOPPED]
    third = worker.run(replace(trial, attempt=2), **states)
    assert curve(third) == curve(worker.run(trial))
    assert [r.again for r in third.reports] == [True, True, False, False]


def test_short_trials_write_no_state(tiny: Tiny, worker: Worker, tmp_path: Path) -> None:
    worker.run(tiny.trial(), states_dir=str(tmp_path / "states"), state_every_s=10.0)
    assert not (tmp_path / "states").exists()


def test_a_state_that_cannot_be_used_is_ignored_with_a_note(
    tiny: Tiny, worker: Worker, tmp_path: Path
) -> None:
    trial = tiny.trial()
    stop = Verdict(stop=True, outcome=Outcome.STOPPED)
    worker.run(trial, lambda report: stop, states_dir=str(tmp_path))
    next((tmp_path / "0").glob("*.safetensors")).unlink()
    again = worker.run(trial, states_dir=str(tmp_path))
    assert again.notes == ["trial 0 starts again: its state has lost its tensors"]
    assert curve(again) == curve(worker.run(trial))
    assert not any(report.again for report in again.reports)


def test_a_full_disk_costs_no_trial(
    tiny: Tiny, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trials.training.state.os.fsync", full)
    trial = tiny.trial(examples=64, ticks=4)
    driver = worker.run(trial, states_dir=str(tmp_path), state_every_s=0.0)
    assert outcomes(driver) == [Outcome.COMPLETE]
    assert len(driver.notes) == 1
    assert "state of trial 0 cannot be kept: [Errno 28] No space left" in driver.notes[0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_on_cuda_too(tiny: Tiny, tmp_path: Path, optimizer: str, dtype: str) -> None:
    """The optimizer's state is taken up exactly; the sums of the device may round otherwise."""
    cuda = replace(tiny, device="cuda:0", dtype=dtype)
    worker = prepared(cuda, optimizers=(optimizer,))
    wide = {"r": 1024, "alpha": 1024.0} if optimizer in PAGED else {}  # large enough to be paged
    trial = cuda.trial(examples=64, ticks=4, optimizer=optimizer, lora=wide, warmup=0.3,
                       learning_rate=1.0 if optimizer == "sgd" else 0.01)  # fmt: skip
    whole = worker.run(trial)
    cut = worker.interrupted(trial, tmp_path, at=2)
    assert outcomes(cut) == outcomes(whole) == [Outcome.COMPLETE]
    assert cut.losses(0) == pytest.approx(whole.losses(0), rel=1e-3)
    assert [r.examples for r in cut.reports] == [r.examples for r in whole.reports]
    torch.cuda.empty_cache()
