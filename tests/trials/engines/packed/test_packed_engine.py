"""The packed engine as a driver sees it: refill, reports, verdicts, ends, refusals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import TARGETS, in_a_fresh_process, interrupted, lagging, mixed, outcomes, prepared, run
from tiny import Recorder, Tiny, made_in

from trials.contract import (
    CONTINUE,
    SCHEDULERS,
    Assignment,
    EngineConfig,
    InputError,
    Outcome,
    Report,
    TrialConfig,
    Turn,
    Verdict,
    tick_examples,
)
from trials.engines.packed import prepare, size
from trials.training import state as training_state
from trials.training.batches import Limit
from trials.training.state import State, read_state
from trials.worker import work


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A base of this module's own, unquantised: rounding is all that may differ."""
    return made_in(tmp_path_factory.mktemp("tiny"), quantisation="none")


def trl(tiny: Tiny, *trials: TrialConfig, **assigned: Any) -> Recorder:
    """The same trials through the TRL engine."""
    driver = Recorder(list(trials))
    given = {"target_modules": TARGETS, "optimizers": ("adamw", "sgd"), **assigned}
    work(tiny.assignment(**given), driver)
    return driver


# --- the same trials as the other engine's -------------------------------------------------------


@pytest.mark.parametrize("quantisation", ["none", "nf4", "fp4"])
def test_reports_and_results_are_those_of_the_trl_engine(tiny: Tiny, quantisation: str) -> None:
    base = replace(tiny, quantisation=quantisation)
    trials = mixed(base, examples=64)
    packed, other = run(base, *trials, capacity=3), trl(base, *trials)
    for trial in trials:
        number = trial.number
        assert packed.losses(number) == pytest.approx(other.losses(number), rel=1e-4)
        ours, theirs = ([r for r in d.results if r.trial == number][0] for d in (packed, other))
        for name in ("outcome", "ticks", "examples", "tokens", "trainable_parameters", "worker",
                     "reason", "history", "eval_accuracy"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert 0 < ours.eval_seconds < ours.seconds
        curves = ([p for r in d.reports if r.trial == number for p in r.history]
                  for d in (packed, other))
        for ours_p, theirs_p in zip(*curves, strict=True):
            assert ours_p.learning_rate == pytest.approx(theirs_p.learning_rate)
            assert ours_p.grad_norm == pytest.approx(theirs_p.grad_norm, rel=1e-3)
            assert ours_p.examples == theirs_p.examples


def test_every_trial_reports_at_its_own_ticks(tiny: Tiny) -> None:
    trials = [tiny.trial(k, examples=40 + 8 * k, ticks=2 + k, batch_size=4 + k) for k in range(4)]
    driver = run(tiny, *trials, capacity=3)
    for trial in trials:
        reports = [report for report in driver.reports if report.trial == trial.number]
        assert [report.tick for report in reports] == [*range(1, trial.budget.ticks + 1)]
        expected = tick_examples(trial.budget, trial.train.batch_size)
        assert tuple(report.examples for report in reports) == expected
        assert all(0 <= report.slot < 3 for report in reports)


def test_bf16_is_computed_and_fp32_trained(tiny: Tiny) -> None:
    base = replace(tiny, quantisation="nf4", dtype="bf16")
    trials = [base.trial(k, examples=64, lora={"dropout": p}) for k, p in enumerate((0.0, 0.2))]
    packed, other = run(base, *trials, capacity=2), trl(base, *trials)
    for k in range(2):
        assert packed.losses(k) == pytest.approx(other.losses(k), rel=2e-2)


def test_every_schedule_is_followed(tiny: Tiny) -> None:
    from trials.training.schedule import rate_factor

    trials = [tiny.trial(k, examples=80, ticks=1, scheduler=name, warmup=0.2)
              for k, name in enumerate(SCHEDULERS)]
    driver = run(tiny, *trials, capacity=8)
    for report in driver.reports:
        rates = [point.learning_rate / 0.01 for point in report.history]
        name = SCHEDULERS[report.trial]
        assert rates == pytest.approx([rate_factor(name, s, steps=10, warmup=2) for s in range(10)])


@pytest.mark.parametrize("setting", [
    {"micro_batch_size": 3}, {"gradient_checkpointing": True}, {"packing": True},
], ids=str)
def test_how_a_batch_is_computed_does_not_matter(tiny: Tiny, setting: dict[str, Any]) -> None:
    trials = [tiny.trial(0, examples=48), tiny.trial(1, examples=48, **setting)]
    driver = run(tiny, *trials, capacity=2)
    assert driver.losses(1) == pytest.approx(driver.losses(0), rel=2e-5)


def test_a_largest_norm_of_zero_clips_nothing(tiny: Tiny) -> None:
    trials = [tiny.trial(k, examples=48, max_grad_norm=norm)
              for k, norm in enumerate((0.0, 1e9, 1e-3))]
    driver = run(tiny, *trials, capacity=3)
    assert driver.losses(0) == driver.losses(1) != driver.losses(2)


def test_hearing_the_device_later_changes_no_trial(tiny: Tiny) -> None:
    trials = [*mixed(tiny, examples=64), tiny.trial(4, learning_rate=1e30, examples=80)]
    at_once, later = (lagging(tiny, trials, lag) for lag in (0, 3))
    for trial in trials:
        assert later.losses(trial.number) == pytest.approx(
            at_once.losses(trial.number), rel=1e-4, nan_ok=True)
    assert outcomes(later) == outcomes(at_once)


@pytest.mark.parametrize("at", [1, 6, 12])
def test_who_moves_up_takes_its_samples_and_states_along(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Trial 0 is pruned at a tick, and while that is on its way the last one takes its slot."""
    found = [told_of(tiny, tmp_path, monkeypatch, lag, at) for lag in (0, 1)]
    (samples, states), (later_samples, later_states) = found
    assert samples == later_samples
    assert len(later_states) > 1
    for step, norm in later_states.items():
        assert norm == pytest.approx(states[step], rel=1e-4)


def told_of(
    tiny: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch, lag: int, at: int
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The samples of trial 2 by tick, and by its steps what its states hold."""
    states = {}

    def write(folder: Path, trial: TrialConfig, state: State) -> None:
        if trial.number == 2:
            states[state.progress.steps] = float(state.tensors["parameter"].norm())

    monkeypatch.setattr(training_state, "write_state", write)
    engine, driver = prepared(tiny, capacity=3)
    engine.size = replace(engine.size, lag=lag)
    engine.shared.assignment = replace(
        engine.shared.assignment, samples=1, samples_at_ticks=True, states_dir=str(folder),
        state_every_s=0.0,
    )
    driver.trials += [
        tiny.trial(0, examples=20, ticks=20, batch_size=1, learning_rate=0.5),
        tiny.trial(1, examples=20, ticks=1, batch_size=1),
        tiny.trial(2, examples=20, ticks=10, batch_size=1),
    ]
    pruned = Verdict(stop=True, reason="enough", outcome=Outcome.PRUNED)
    driver.answer = lambda r: pruned if (r.trial, r.tick) == (0, at) else CONTINUE
    engine.run(driver)
    return {r.tick: r.samples for r in driver.reports if r.trial == 2}, states


# --- slots ---------------------------------------------------------------------------------------


def test_a_freed_slot_takes_the_next_trial_at_once(tiny: Tiny) -> None:
    trials = [tiny.trial(k, examples=16 + 32 * (k == 1), ticks=1) for k in range(5)]
    driver = run(tiny, *trials, capacity=2)
    slots = {report.trial: report.slot for report in driver.reports}
    assert (slots[0], slots[1], slots[2]) == (0, 1, 0)
    assert len(driver.results) == 5


def test_a_trial_in_a_used_slot_is_that_of_a_fresh_process(tiny: Tiny) -> None:
    trial = tiny.trial(9, examples=40)
    others = [tiny.trial(0, seed=8, lora={"r": 8}), tiny.trial(1, learning_rate=1e30),
              tiny.trial(2, optimizer="sgd", lora={"target_modules": "qv"})]
    after = run(tiny, *others, trial, capacity=1)
    assert after.losses(9) == in_a_fresh_process(tiny, trial, capacity=1)  # to the last bit
    assert outcomes(after)[1] is Outcome.DIVERGED


def test_a_rank_wider_than_the_bank_widens_it(tiny: Tiny) -> None:
    trials = [tiny.trial(0, examples=64), tiny.trial(1, examples=16), tiny.trial(2, lora={"r": 20})]
    driver = run(tiny, *trials, capacity=2)
    alone = run(tiny, trials[0], capacity=1)
    assert set(outcomes(driver).values()) == {Outcome.COMPLETE}
    assert driver.losses(0) == pytest.approx(alone.losses(0), rel=1e-5)


def test_the_last_trials_move_together_and_do_not_change(tiny: Tiny) -> None:
    trials = [tiny.trial(0, examples=16, ticks=1), tiny.trial(1, examples=16, ticks=1),
              tiny.trial(2, seed=5, examples=96, ticks=4)]
    driver = run(tiny, *trials, capacity=3)
    slots = [report.slot for report in driver.reports if report.trial == 2]
    assert slots == [0, 0, 0, 0]
    assert driver.losses(2) == pytest.approx(run(tiny, trials[2], capacity=1).losses(2), rel=1e-5)


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("outcome", [Outcome.PRUNED, Outcome.STOPPED])
def test_a_stopped_trial_reports_no_more(tiny: Tiny, outcome: Outcome, lag: int) -> None:
    """However many steps, and ticks, the device has made by the time that it is heard."""
    def stop(report: Report) -> Verdict:
        return Verdict(stop=(report.trial, report.tick) == (0, 2), reason="no", outcome=outcome)

    trials = [tiny.trial(0, examples=20, ticks=20, batch_size=1),
              tiny.trial(1, examples=20, batch_size=4), tiny.trial(2, examples=16)]
    driver = lagging(tiny, trials, lag, answer=stop)
    assert [report.tick for report in driver.reports if report.trial == 0] == [1, 2]
    [stopped] = [result for result in driver.results if result.trial == 0]
    assert (stopped.outcome, stopped.reason, stopped.ticks) == (outcome, "no", 2)
    assert (stopped.examples, stopped.history) == (2, ())
    assert outcomes(driver)[1] is outcomes(driver)[2] is Outcome.COMPLETE


def test_divergence_ends_a_trial_at_once_and_alone(tiny: Tiny) -> None:
    trials = [tiny.trial(0), tiny.trial(1, examples=80, learning_rate=1e30), tiny.trial(2)]
    driver = run(tiny, *trials, capacity=3)
    diverged = next(result for result in driver.results if result.trial == 1)
    assert diverged.outcome is Outcome.DIVERGED
    assert "became nan at step 2" in (diverged.reason or "")
    assert diverged.examples == 16
    assert len(diverged.history) == 2
    assert outcomes(driver)[0] is outcomes(driver)[2] is Outcome.COMPLETE
    assert driver.losses(0) == pytest.approx(run(tiny, trials[0], capacity=1).losses(0), rel=1e-5)


@dataclass
class Hesitating(Recorder):
    """A driver that has nothing for a while before each trial but the first."""

    turns: list[Turn] = field(default_factory=list)

    def next_trial(self) -> TrialConfig | Turn:
        if len(self.trials) in (1, 2) and len(self.turns) < 2:
            self.turns.append(Turn.WAIT)
            return Turn.WAIT
        return super().next_trial()


def test_waiting_for_a_trial_holds_nobody_up(tiny: Tiny) -> None:
    engine, prepared_driver = prepared(tiny, capacity=2)
    driver = Hesitating([tiny.trial(k) for k in range(3)], setup=prepared_driver.setup)
    engine.run(driver)
    assert len(driver.turns) == 2
    assert set(outcomes(driver).values()) == {Outcome.COMPLETE}
    assert len(driver.results) == 3


@pytest.mark.parametrize("lag", [0, 1])
def test_complete_trials_leave_adapters_and_samples(
    tiny: Tiny, tmp_path: Path, lag: int
) -> None:
    from peft import AutoPeftModelForCausalLM

    from trials.evaluate import evaluate, evaluation_batches
    from trials.quiet import quiet
    from trials.training.batches import Limit

    trials = [tiny.trial(k, examples=32 + 16 * k, lora={"r": 3 + 3 * k, "target_modules": targets})
              for k, targets in enumerate([*TARGETS, *TARGETS])]  # the last is wider than the bank
    assigned = assignment(tiny, adapters_dir=str(tmp_path), samples=2)
    driver = Recorder(trials)
    engine, driver.setup = prepare(assigned, driver)
    engine.size = replace(engine.size, lag=lag)
    engine.run(driver)
    assert len(driver.results) == 6
    data, base = engine.shared.data, engine.shared.base
    batches = evaluation_batches(data.eval, pad=0, limit=Limit(), device=base.device)
    for result in driver.results:
        assert result.adapter == str(tmp_path / str(result.trial))
        assert len(result.samples) == 2
        with quiet():
            model = AutoPeftModelForCausalLM.from_pretrained(result.adapter)
        found = evaluate(model, batches, torch.float32).loss
        assert found == pytest.approx(result.eval_loss, rel=1e-5)


def test_the_base_is_as_before_afterwards(tiny: Tiny) -> None:
    engine, driver = prepared(tiny, capacity=2)
    driver.trials += mixed(tiny, examples=32)
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        before = engine.shared.base.model(input_ids=ids).logits
        engine.run(driver)
        assert torch.equal(engine.shared.base.model(input_ids=ids).logits, before)
    assert not any("forward" in vars(module) for module in engine.layers.values())


# --- preparing -----------------------------------------------------------------------------------


def assignment(tiny: Tiny, options: dict[str, Any] | None = None, **changes: Any) -> Assignment:
    """One for the packed engine."""
    given: dict[str, Any] = {
        "engine": EngineConfig(name="packed", options={"capacity": 3} if options is None
                               else options),
        "optimizers": ("adamw", "sgd"), "target_modules": TARGETS,
    }
    return tiny.assignment(**given | changes)


def test_preparing_says_the_capacity_and_what_trl_says(tiny: Tiny) -> None:
    _, driver = prepared(tiny, capacity=5)
    setup = driver.setup
    assert setup is not None
    assert setup.capacity == 5
    other = trl(tiny).setup
    assert other is not None
    assert setup.baseline_loss == other.baseline_loss
    assert setup.engine == EngineConfig(name="packed", options={"capacity": 5})
    assert replace(setup, capacity=1, engine=other.engine) == other
    assert prepared(tiny)[0].size.slots > 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"optimizers": ("adamw", "adafactor")}, "optimizer=adafactor: .* Type engine=trl"),
    ({"options": {"capcity": 2}}, "engine.capcity: .*no such option: capacity, memory_fraction"),
    ({"options": {"capacity": 0}}, "engine.capacity=0: trials at once"),
    ({"options": {"memory_fraction": 1.5}}, "memory_fraction=1.5: the share .* at most 1"),
    ({"options": {"resident": "maybe"}}, "engine.resident='maybe': true, false or auto"),
    ({"options": {"compile": 3}}, "engine.compile=3: true, false or auto"),
    ({"target_modules": ("q_porj",)}, "Did you mean 'q_proj'"),
    ({"max_batch_size": 4000}, "larger than the training set"),
])
def test_bad_input_is_said_before_the_first_trial(
    tiny: Tiny, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(assignment(tiny, **changes), Recorder())


def test_int8_and_unknown_layers_are_refused(tiny: Tiny) -> None:
    from trials.engines.packed.layers import check_layers

    with pytest.raises(InputError, match="int8: .* Type engine=trl"):
        prepare(assignment(replace(tiny, quantisation="int8")), Recorder())
    with pytest.raises(InputError, match="h.c_attn is a Identity.* Type engine=trl"):
        check_layers({"h.c_attn": torch.nn.Identity()})


# --- memory --------------------------------------------------------------------------------------


def test_a_capacity_that_cannot_fit_says_what_would(tiny: Tiny) -> None:
    with pytest.raises(InputError, match=r"engine.capacity=10000000: .* Type engine.capacity=\d+,"):
        prepared(tiny, capacity=10_000_000)


def test_a_wide_rank_leaves_fewer_slots_and_too_wide_a_one_none(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "free_bytes", lambda base, assignment: 4 * 2**30)

    def prepared_for(r: int) -> int:
        assigned = tiny.assignment(engine=EngineConfig(name="packed", options={}), max_r=r)
        return prepare(assigned, Recorder())[0].size.slots

    slots = [prepared_for(r) for r in (16, 16_384)]
    assert slots[0] > slots[1] >= 1
    with pytest.raises(InputError, match="one trial of rank 1000001 .* or engine=trl"):
        prepared_for(1_000_001)  # as typed, though the bank is wider


# --- continued -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "lag"), [("adamw", 0), ("sgd", 0), ("adamw", 1)])
def test_interrupted_trials_go_on_from_their_last_state(
    tiny: Tiny, tmp_path: Path, optimizer: str, lag: int
) -> None:
    trials = [tiny.trial(k, seed=k, examples=128, ticks=4, optimizer=optimizer, warmup=0.2,
                         scheduler="cosine", lora={"r": 3 + 2 * k, "dropout": 0.2})
              for k in range(2)]
    whole = run(tiny, *trials, capacity=2)
    engine, driver = prepared(tiny, capacity=2)
    engine.size = replace(engine.size, lag=lag)
    again = interrupted(engine, driver, trials, tmp_path)
    for k in range(2):
        # Told again from the first, not a bit changed; where the two go on from different clocks,
        # matrices of other sizes round otherwise.
        assert again.losses(k) == pytest.approx(whole.losses(k), rel=1e-5 if lag else 0, abs=0)
        steps = [point.examples for r in again.reports if r.trial == k and not r.again
                 for point in r.history]
        # From the second tick alone; where the device is ahead, one state at a time is on its way.
        assert min(steps) > (32 if lag else 64)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("batch_size", [8, 2])  # of several clocks, and of one
def test_stopped_trials_go_on_from_where_the_device_was(
    tiny: Tiny, tmp_path: Path, lag: int, batch_size: int
) -> None:
    trials = [tiny.trial(k, seed=k, examples=128, ticks=4, batch_size=batch_size)
              for k in range(2)]
    whole = run(tiny, *trials, capacity=2)
    engine, driver = prepared(tiny, capacity=2)
    engine.size = replace(engine.size, lag=lag)
    shared = engine.shared
    shared.assignment = replace(shared.assignment, states_dir=str(tmp_path), state_every_s=3600.0)

    def stop(report: Report) -> Verdict:
        return Verdict(stop=report.tick == 2, reason="interrupted", outcome=Outcome.STOPPED)

    driver.trials += trials
    driver.answer = stop
    engine.run(driver)
    assert {result.outcome for result in driver.results} == {Outcome.STOPPED}
    assert (setup := driver.setup) is not None
    for trial in trials:
        handed = replace(trial, model=setup.model, data=setup.data)
        assert (state := read_state(tmp_path, handed)) is not None
        [*_, told] = state.progress.reports
        ahead = lag * batch_size if batch_size == 2 else 0
        assert state.progress.examples == told.examples + ahead
    again = Recorder([replace(trial, attempt=1) for trial in trials], setup=driver.setup)
    engine.run(again)
    for k in range(2):
        assert again.losses(k) == pytest.approx(whole.losses(k), rel=1e-5)
        steps = [point.examples for r in again.reports if r.trial == k and not r.again
                 for point in r.history]
        trained = [p.examples for r in whole.reports if r.trial == k for p in r.history]
        # The curve has all steps once; those before the stop are told with the next tick.
        assert steps == [examples for examples in trained if examples > 64]


@pytest.mark.parametrize("at_ticks", [False, True])
def test_slots_write_their_samples_together(tiny: Tiny, at_ticks: bool) -> None:
    from trials.engines.trl import TrlEngine

    trials = [tiny.trial(k, seed=k, lora={"r": 3 + k}) for k in range(3)]
    assigned = assignment(tiny, samples=2, samples_at_ticks=at_ticks)
    driver = Recorder(list(trials))
    engine, driver.setup = prepare(assigned, driver)
    calls: list[int] = []
    plain = TrlEngine.samples

    def counted(self: TrlEngine, slots: int = 1) -> Any:
        calls.append(slots)
        return plain(self, slots)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrlEngine, "samples", counted)
        engine.run(driver)
    assert calls == ([3, 3] if at_ticks else [3])  # one batch for all slots of a clock
    for report in driver.reports:
        assert len(report.samples) == (2 if at_ticks else 0)
    other = trl(tiny, *trials, samples=2)
    for result in driver.results:
        assert len(result.samples) == 2 and result.sample_seconds > 0
        [same] = [r for r in other.results if r.trial == result.trial]
        assert result.samples == same.samples


def test_each_pass_of_an_evaluation_is_a_sign_of_life(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trials.engines.course.ALIVE_EVERY_S", 0.0)
    monkeypatch.setattr("trials.engines.packed.engine.evaluation_limit",
                        lambda base, sharing: Limit(tokens=1))
    engine, driver = prepared(tiny, capacity=2)
    before = len(driver.shown)
    driver.trials += [tiny.trial(k, seed=k) for k in range(2)]
    engine.run(driver)
    ticks = {report.tick for report in driver.reports}
    examples = len(engine.shared.data.eval)
    assert driver.shown[before:] == ["trial 0"] * (len(ticks) * examples)
