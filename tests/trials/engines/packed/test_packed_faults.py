"""Faults of a pack: memory that runs out, clocks and evaluations that break, and who is blamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import lagging, outcomes, prepared, run
from tiny import Recorder, Tiny, made_in

from trials.contract import Outcome, Sample
from trials.engines.packed import optim
from trials.engines.packed.bank import Bank
from trials.engines.packed.clock import Clock
from trials.engines.packed.evaluation import PackedEvaluation
from trials.engines.packed.skeleton import Skeleton
from trials.engines.trl import TrlEngine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A base of this module's own, unquantised: rounding is all that may differ."""
    return made_in(tmp_path_factory.mktemp("tiny"), quantisation="none")


@pytest.fixture(scope="module")
def six(tiny: Tiny) -> Recorder:
    """Six trials, three at a time."""
    return run(tiny, *(tiny.trial(k, seed=k) for k in range(6)), capacity=3)


def out_of_memory_beyond(
    monkeypatch: pytest.MonkeyPatch, rows: int, *, training: bool = True
) -> None:
    """Clocks, or evaluations, run out of memory beyond so many rows."""
    from trials.engines.packed.forward import Forward

    plain = Forward.hidden

    def hidden(self: Forward, samples: Any, shape: Any) -> Any:
        if torch.is_grad_enabled() == training and samples.input_ids.shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return plain(self, samples, shape)

    monkeypatch.setattr(Forward, "hidden", hidden)


def test_an_evaluation_that_does_not_fit_is_made_smaller_or_ends_its_trials(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny, tiny.trial(0), tiny.trial(1), capacity=2)
    for rows, outcome in ((4, Outcome.COMPLETE), (0, Outcome.INFEASIBLE)):
        out_of_memory_beyond(monkeypatch, rows, training=False)
        driver = run(tiny, tiny.trial(0), tiny.trial(1), capacity=2)
        assert outcomes(driver) == {0: outcome, 1: outcome}
        if outcome is Outcome.COMPLETE:
            assert driver.losses(0) == pytest.approx(whole.losses(0), rel=1e-5)


def test_a_clock_that_does_not_fit_is_made_smaller(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny.trial(k, seed=k, batch_size=16) for k in range(2)]
    whole = run(tiny, *trials, capacity=2)
    out_of_memory_beyond(monkeypatch, 5)
    cut = run(tiny, *trials, capacity=2)
    for k in range(2):
        assert cut.losses(k) == pytest.approx(whole.losses(k), rel=2e-5)


@pytest.mark.parametrize(("rows", "lag"), [(1, 0), (1, 1), (2, 0), (0, 0)])
def test_a_pack_has_no_more_trials_than_fit(
    tiny: Tiny, six: Recorder, monkeypatch: pytest.MonkeyPatch, rows: int, lag: int
) -> None:
    engine, driver = prepared(tiny, capacity=3)
    engine.size = replace(engine.size, lag=lag)
    driver.trials += [tiny.trial(k, seed=k) for k in range(6)]
    out_of_memory_beyond(monkeypatch, rows)
    engine.run(driver)
    ended = {result.trial: result for result in driver.results}
    returned = [2, 1][: 3 - max(rows, 1)]  # the last ones, each time that one was too many
    for k, result in ended.items():
        if k in returned:
            assert result.outcome is Outcome.STOPPED
            assert str(result.reason).endswith(f"(in a pack of {k + 1} trials)")
        elif rows:
            assert result.outcome is Outcome.COMPLETE
            assert driver.losses(k) == pytest.approx(six.losses(k), rel=2e-5)
        else:
            assert result.outcome is Outcome.INFEASIBLE
            assert str(result.reason).startswith("does not fit into memory: CUDA out of memory")
    assert sorted(ended) == list(range(6))


def test_samples_are_written_in_halves_where_memory_runs_out(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, before = prepared(tiny, capacity=3)
    engine.shared.assignment = replace(engine.shared.assignment, samples=2)

    def written() -> dict[int, tuple[Sample, ...]]:
        driver = Recorder([tiny.trial(k, seed=k) for k in range(3)], setup=before.setup)
        engine.run(driver)
        return {result.trial: result.samples for result in driver.results}

    together, plain = written(), TrlEngine.samples
    assert all(len(samples) == 2 for samples in together.values())
    for most in (1, 0):
        def samples(self: TrlEngine, slots: int = 1, most: int = most) -> Any:
            if slots > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return plain(self, slots)

        monkeypatch.setattr(TrlEngine, "samples", samples)
        assert written() == (together if most else dict.fromkeys(range(3), ()))


def test_an_adapter_that_cannot_be_written_costs_no_trial(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine, driver = prepared(tiny, capacity=2)
    engine.shared.assignment = replace(engine.shared.assignment, adapters_dir=str(tmp_path))
    plain, calls = Skeleton.export, []

    def second(*given: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return plain(*given)

    monkeypatch.setattr(Skeleton, "export", second)
    driver.trials += [tiny.trial(k, seed=k, examples=16 + 8 * k) for k in range(4)]
    engine.run(driver)
    assert set(outcomes(driver).values()) == {Outcome.COMPLETE}
    kept = {result.trial: result.adapter for result in driver.results}
    assert kept == {k: None if k == 1 else str(tmp_path / str(k)) for k in range(4)}
    assert driver.notes == ["the adapter of trial 1 is not kept: no space left on device"]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_state_that_cannot_be_copied_costs_no_trial(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lag: int
) -> None:
    trials = [tiny.trial(k, seed=k) for k in range(2)]
    whole = run(tiny, *trials, capacity=2)
    engine, driver = prepared(tiny, capacity=2)
    engine.size = replace(engine.size, lag=lag)
    engine.shared.assignment = replace(
        engine.shared.assignment, states_dir=str(tmp_path), state_every_s=0.0)

    def saved(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Bank, "saved", saved)
    driver.trials += trials
    engine.run(driver)
    for k in range(2):
        assert outcomes(driver)[k] is Outcome.COMPLETE
        assert driver.losses(k) == pytest.approx(whole.losses(k), rel=2e-5)
    assert set(driver.notes) <= {f"the state of trial {k} cannot be kept: CUDA out of memory. "
                                 "Tried to allocate 9 GiB" for k in range(2)}
    assert driver.notes


@pytest.mark.parametrize(("owner", "method"), [(Clock, "tick"), (PackedEvaluation, "measure")])
@pytest.mark.parametrize(("capacity", "lag"), [(3, 0), (4, 0), (3, 1), (4, 2)])
def test_a_trial_that_breaks_the_pack_fails_alone(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, capacity: int, lag: int
) -> None:
    trials = [tiny.trial(k, seed=k, examples=48, batch_size=12, ticks=2) for k in range(4)]
    whole, plain = run(tiny, *trials, capacity=capacity), getattr(owner, method)

    def broken(self: Any, *given: Any) -> Any:
        if any(seat.trial.number == 1 and seat.at > 1 for seat in given[-1]):
            raise RuntimeError("a bug")
        return plain(self, *given)

    monkeypatch.setattr(owner, method, broken)
    driver = lagging(tiny, trials, lag, capacity=capacity)
    assert outcomes(driver) == {0: Outcome.COMPLETE, 1: Outcome.FAILED, 2: Outcome.COMPLETE,
                                3: Outcome.COMPLETE}
    [guilty] = [result for result in driver.results if result.trial == 1]
    assert guilty.reason == "RuntimeError: a bug"
    for k in (0, 2, 3):
        assert driver.losses(k) == pytest.approx(whole.losses(k), rel=2e-5)


def test_what_breaks_nobody_alone_fails_nobody(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny.trial(k, seed=k, examples=48, batch_size=12, ticks=2) for k in range(3)]
    whole = run(tiny, *trials, capacity=3)
    tick = Clock.tick

    def broken(self: Clock, seats: Any) -> Any:
        if len(seats) == 3:
            raise RuntimeError("three are one too many")
        return tick(self, seats)

    monkeypatch.setattr(Clock, "tick", broken)
    driver = run(tiny, *trials, capacity=3)
    for k in range(3):
        assert outcomes(driver)[k] is Outcome.COMPLETE
        assert driver.losses(k) == pytest.approx(whole.losses(k), rel=2e-5)
    [said] = driver.notes
    assert said.endswith("RuntimeError: three are one too many")


@pytest.mark.parametrize("at", [1, 4, 8])
def test_an_optimizer_step_that_does_not_fit_is_made_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    trials = [tiny.trial(k, seed=k, examples=64, ticks=4) for k in range(2)]
    whole = run(tiny, *trials, capacity=2)
    plain, calls = optim._update, iter(range(1, 1000))

    def update(*given: Any) -> None:
        if next(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        plain(*given)

    monkeypatch.setattr(optim, "_update", update)
    driver = run(tiny, *trials, capacity=2)
    for k in range(2):
        assert outcomes(driver)[k] is Outcome.COMPLETE
        assert driver.losses(k) == pytest.approx(whole.losses(k), rel=2e-5)
        steps = [point.examples for r in driver.reports if r.trial == k for point in r.history]
        assert steps == [point.examples for r in whole.reports if r.trial == k
                         for point in r.history]


def test_an_evaluation_that_fits_fewer_slots_takes_them_in_turn(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny.trial(k, seed=k) for k in range(3)]
    whole = run(tiny, *trials, capacity=3)
    out_of_memory_beyond(monkeypatch, 1, training=False)
    driver = run(tiny, *trials, capacity=3)
    for k in range(3):
        assert outcomes(driver)[k] is Outcome.COMPLETE
        assert driver.losses(k) == pytest.approx(whole.losses(k), rel=1e-5)


def test_a_trial_that_a_pack_cannot_train_fails_alone(tiny: Tiny) -> None:
    trials = [tiny.trial(0, optimizer="adafactor"),
              tiny.trial(1, lora={"target_modules": ("lm_head",)}), tiny.trial(2)]
    driver = run(tiny, *trials, capacity=3)
    assert [outcomes(driver)[k] for k in range(3)] == [
        Outcome.FAILED, Outcome.FAILED, Outcome.COMPLETE]
    assert "Type engine=trl" in (driver.results[0].reason or "")
