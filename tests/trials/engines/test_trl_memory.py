"""Running out of memory: the same trial with less at once, or its end, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from running import outcomes, run
from tiny import Recorder, Tiny

import trials.evaluate
from trials.contract import Outcome, Verdict
from trials.engines import DeviceLost
from trials.engines.trl import prepare
from trials.training import limits
from trials.training.batches import Batch

COMPUTE = trials.evaluate.target_logits
CUDA = torch.device("cuda:0")


class Allocator:
    """A device that holds so many tokens of one forward, padding counted."""

    def __init__(self, patch: pytest.MonkeyPatch, *, training: int, evaluation: int = 10**9):
        self.largest = {"training": 0, "evaluation": 0}
        self.refusals = 0
        patch.setattr("trials.engines.trl_trainer.target_logits", self._of("training", training))
        patch.setattr("trials.evaluate.target_logits", self._of("evaluation", evaluation))

    def _of(self, what: str, most: int) -> Any:
        def logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            tokens = batch.input_ids.numel()
            if tokens > most:
                self.refusals += 1
                raise torch.OutOfMemoryError(f"CUDA out of memory: {tokens} tokens of {most}")
            self.largest[what] = max(self.largest[what], tokens)
            return COMPUTE(model, batch)

        return logits


def test_a_step_that_does_not_fit_is_cut_and_means_the_same(
    dense: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = dense.trial(batch_size=16, examples=64)
    whole = run(dense, trial)
    device = Allocator(monkeypatch, training=80)
    cut = run(dense, trial)
    assert outcomes(cut) == [Outcome.COMPLETE]
    assert device.refusals and 0 < device.largest["training"] <= 80
    assert cut.losses(0) == pytest.approx(whole.losses(0), rel=2e-5)
    for ours, theirs in zip(cut.reports, whole.reports, strict=True):  # the same effective batches
        assert (ours.examples, ours.tokens) == (theirs.examples, theirs.tokens)
        assert len(ours.history) == len(theirs.history)


def test_an_evaluation_that_does_not_fit_is_cut_for_this_trial_alone(
    dense: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = run(dense, dense.trial(0), dense.trial(1))
    driver = Recorder()
    engine, driver.setup = prepare(dense.assignment(), driver)
    with monkeypatch.context() as patch:
        device = Allocator(patch, training=10**9, evaluation=90)
        driver.trials.append(dense.trial(0))
        engine.run(driver)
    driver.trials.append(dense.trial(1))
    engine.run(driver)
    assert outcomes(driver) == [Outcome.COMPLETE] * 2
    assert device.refusals and 0 < device.largest["evaluation"] <= 90
    assert driver.losses(0) == pytest.approx(fresh.losses(0), rel=1e-6)
    assert driver.losses(1) == fresh.losses(1)  # to the last bit


def test_an_evaluation_that_cannot_be_cut_any_more_is_infeasible(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Recorder()
    engine, driver.setup = prepare(tiny.assignment(), driver)
    Allocator(monkeypatch, training=10**9, evaluation=5)
    driver.trials.append(tiny.trial())
    engine.run(driver)
    [result] = driver.results
    assert (result.outcome, result.ticks, result.eval_loss) == (Outcome.INFEASIBLE, 0, None)
    assert result.reason is not None
    assert result.reason.startswith("does not fit into memory: CUDA out of memory")
    assert result.examples == 16 and result.tokens > 0  # what it cost is told


def test_a_trial_that_ran_out_of_memory_later_keeps_what_it_reported(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Recorder()
    engine, driver.setup = prepare(tiny.assignment(), driver)

    def fill(report: Any) -> Verdict:
        Allocator(monkeypatch, training=0)
        return Verdict()

    driver.answer = fill
    driver.trials.append(tiny.trial())
    engine.run(driver)
    [result] = driver.results
    assert (result.outcome, result.ticks) == (Outcome.INFEASIBLE, 1)
    assert result.eval_loss == driver.reports[0].eval_loss


@pytest.mark.parametrize(("others", "outcome"), [(60, Outcome.STOPPED), (1, Outcome.INFEASIBLE)])
def test_what_does_not_fit_beside_others_is_given_back(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, others: int, outcome: Outcome
) -> None:
    """As on a GPU of 80 GiB, of which this process's tensors take 19."""
    driver = Recorder()
    engine, driver.setup = prepare(tiny.assignment(), driver)
    Allocator(monkeypatch, training=0)
    gib = 2**30
    free = 80 - 19 - others
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 19 * gib)
    judge = limits.end_of
    monkeypatch.setattr("trials.engines.trl.end_of", lambda error, _: judge(error, CUDA))
    driver.trials.append(tiny.trial())
    engine.run(driver)
    [result] = driver.results
    assert result.outcome is outcome and f"hold {others}.0 GiB" in str(result.reason)
    assert limits.end_of(MemoryError(), CUDA) == (  # the host's is another matter
        Outcome.INFEASIBLE, "does not fit into memory: MemoryError")


def test_a_bug_fails_its_trial_alone_and_tells_what_it_cost(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: Any, batch: Batch) -> torch.Tensor:
        if driver.reports and not driver.results:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore")
        return COMPUTE(model, batch)

    driver = Recorder([tiny.trial(0), tiny.trial(1)])
    engine, driver.setup = prepare(tiny.assignment(), driver)
    monkeypatch.setattr("trials.engines.trl_trainer.target_logits", broken)
    engine.run(driver)
    failed, other = driver.results
    assert (failed.outcome, failed.ticks) == (Outcome.FAILED, 1)
    assert failed.reason == "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    assert "Traceback" in capsys.readouterr().err
    assert other.outcome is Outcome.COMPLETE


def test_a_broken_device_costs_the_worker(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every later CUDA call fails: another process must go on."""

    def illegal(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with")

    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    why = "cuda:0 cannot be used any more: CUDA error: an illegal memory access was encountered"
    with pytest.raises(DeviceLost, match=why):
        limits.end_of(RuntimeError("device-side assert"), CUDA)

    def lost(*_: Any) -> None:
        raise DeviceLost(why)

    monkeypatch.setattr("trials.engines.trl.end_of", lost)
    Allocator(monkeypatch, training=0)
    with pytest.raises(DeviceLost):
        run(tiny, tiny.trial())


@pytest.mark.gpu
def test_cuda_that_refuses_memory_cuts_the_step_and_is_as_before_afterwards(tiny: Tiny) -> None:
    cuda = replace(tiny, device="cuda:0", quantisation="none", dtype="fp32")
    batch = {"batch_size": 64, "examples": 128, "micro_batch_size": 64}
    fresh = run(cuda, cuda.trial(0, **batch), cuda.trial(1))
    driver = Recorder()
    engine, driver.setup = prepare(cuda.assignment(), driver)
    limits.free_memory(torch.device("cuda:0"))  # of the other engine, too
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    # The allocator asks the device for 2 MiB at a time, and 20 MiB once a tensor is larger.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / total)
    driver.trials.append(cuda.trial(0, **batch))
    try:
        engine.run(driver)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() == before
    driver.trials.append(cuda.trial(1))
    engine.run(driver)
    assert outcomes(driver) == [Outcome.COMPLETE] * 2
    assert driver.losses(0) == pytest.approx(fresh.losses(0), rel=1e-4)
    assert driver.losses(1) == pytest.approx(fresh.losses(1), rel=1e-5)
    assert torch.cuda.memory_allocated() == before
