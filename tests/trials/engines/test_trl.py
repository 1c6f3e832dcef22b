"""The TRL engine: what a trial's losses depend on, and what they do not."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import fp32_of, outcomes, run
from tiny import Recorder, Tiny

from trials.contract import (
    OPTIMIZERS,
    PAGED,
    SCHEDULERS,
    EngineConfig,
    InputError,
    Outcome,
    Report,
    TrialConfig,
    Verdict,
    tick_examples,
)

# --- one trial -----------------------------------------------------------------------------------


def test_the_losses_of_one_run_are_pinned(tiny: Tiny) -> None:
    driver = run(tiny, tiny.trial(examples=40, ticks=2))
    assert driver.setup is not None
    assert driver.setup.baseline_loss == pytest.approx(PINNED_BASELINE, abs=2e-4)
    assert driver.losses(0) == pytest.approx(PINNED, abs=2e-3)


PINNED_BASELINE = 4.15934
# Three train losses, the evaluation's, two more and the evaluation's, on a CPU in fp32.
PINNED = [4.15885, 4.09765, 4.06448, 3.90227, 3.98079, 3.91754, 3.83604]


def test_it_reports_at_ticks_and_says_what_it_used(tiny: Tiny, tmp_path: Path) -> None:
    trial = tiny.trial(examples=52, ticks=3)
    driver = run(tiny, trial, samples=2)
    assert [report.tick for report in driver.reports] == [1, 2, 3]
    assert tuple(r.examples for r in driver.reports) == tick_examples(trial.budget, 8)
    steps = [point.examples for report in driver.reports for point in report.history]
    assert steps == [8, 16, 24, 32, 40, 48, 52]
    [result] = driver.results
    last = driver.reports[-1]
    assert (result.outcome, result.ticks, result.examples) == (Outcome.COMPLETE, 3, 52)
    assert (result.eval_loss, result.eval_accuracy) == (last.eval_loss, last.eval_accuracy)
    assert result.tokens == last.tokens > 52 * 4
    assert 0 < result.eval_seconds < result.seconds
    assert result.memory_bytes > 0
    assert 0 < (last.utilisation or 0) <= 1
    assert result.trainable_parameters == sum(
        2 * 4 * (a + b) for a, b in [(64, 64)] * 2 + [(64, 32)] * 2 + [(64, 128)] * 3
    )
    assert all(point.tokens_per_s > 0 and point.grad_norm > 0 for point in last.history)
    assert result.worker == last.worker == "w0"
    assert driver.setup is not None
    assert len(driver.setup.baseline_samples) == len(result.samples) == 2
    assert result.samples[0].prompt == driver.setup.baseline_samples[0].prompt
    assert result.adapter is None
    assert 0 < result.sample_seconds < result.seconds
    assert not any(report.samples or report.sample_seconds for report in driver.reports)


def test_samples_at_ticks_are_what_the_trial_writes_there(tiny: Tiny) -> None:
    def stop_the_second(report: Report) -> Verdict:
        return Verdict(stop=report.trial == 1, reason="enough")

    trials = [tiny.trial(number, examples=32, ticks=2) for number in (0, 1)]
    driver = run(tiny, *trials, answer=stop_the_second, samples=3, samples_at_ticks=True)
    whole, pruned = driver.results
    first, last, other = driver.reports
    assert [len(report.samples) for report in driver.reports] == [3, 3, 3]
    assert (whole.samples, pruned.samples) == (last.samples, other.samples)
    assert other.samples == first.samples  # the same trial so far
    assert 0 < first.sample_seconds < last.sample_seconds == whole.sample_seconds
    plain = run(tiny, trials[0])
    assert plain.losses(0) == driver.losses(0)  # writing changes nothing


def test_a_model_that_cannot_write_costs_no_trial(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trials.engines import trl

    calls: list[int] = []

    def written(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise NotImplementedError("no cache for this one")
        return [()]

    monkeypatch.setattr(trl, "samples", written)
    driver = run(tiny, tiny.trial(examples=16, ticks=1), samples=2)
    assert outcomes(driver) == [Outcome.COMPLETE] and driver.results[0].samples == ()
    assert "no cache for this one" in capsys.readouterr().err
    with pytest.raises(InputError, match="samples=2: .* no cache for this one. Type samples=0"):
        trl.prepare(tiny.assignment(samples=2), driver)


def test_a_budget_may_span_epochs(tiny: Tiny) -> None:
    driver = run(tiny, tiny.trial(examples=212, ticks=1))
    assert driver.setup is not None
    assert driver.setup.data_facts.train_examples == 100
    [report] = driver.reports
    assert (report.examples, len(report.history)) == (212, 27)


def test_the_worker_prepares_before_it_trains(tiny: Tiny) -> None:
    driver = run(tiny)
    assert driver.shown[:2] == ["checking the data", "loading libraries"]
    assert "loading the base" in driver.shown
    assert driver.shown[-1] == "measuring the untouched base"
    setup = driver.setup
    assert setup is not None
    assert (setup.model.dtype, setup.model.quantisation) == ("fp32", "nf4")
    assert setup.device.kind == "cpu"
    assert setup.model.revision and setup.data.content_hash
    assert abs(setup.baseline_loss - math.log(64)) < 0.5  # a random model knows nothing
    assert setup.data_facts.eval_examples == 20


def test_losses_are_those_of_plain_trl(dense: Tiny) -> None:
    """Against SFTTrainer and PEFT as they are: same start, same order, dropout off."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    from trials.base import load_base
    from trials.data import load_data, order
    from trials.quiet import quiet

    trial = dense.trial(examples=40, ticks=1, lora={"dropout": 0.0}, warmup=0.2, weight_decay=0.1)
    [report] = run(dense, trial).reports

    def silent(what: str, done: int, total: int) -> None: ...

    assigned = dense.assignment()
    base = load_base(assigned.model, "cpu", silent)
    data = load_data(assigned.data, base, 3, silent)
    rows = [data.train[i] for i in order(3, len(data.train), 0, 40)]
    marked = [zip(e.input_ids, e.loss_mask, strict=True) for e in rows]
    labels = [[token if target else -100 for token, target in row] for row in marked]
    with quiet():
        torch.manual_seed(3)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=list(base.facts.linear_modules),
                            task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=get_peft_model(base.model, config),
            args=SFTConfig(
                output_dir="/tmp", per_device_train_batch_size=4, gradient_accumulation_steps=2,
                max_steps=5, learning_rate=0.01, warmup_steps=1, weight_decay=0.1, logging_steps=1,
                use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
                train_sampling_strategy="sequential", gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True}, optim="adamw_torch",
            ),
            processing_class=base.tokenizer,
            train_dataset=Dataset.from_dict(
                {"input_ids": [list(e.input_ids) for e in rows], "labels": labels}),
        )
        trainer._send_telemetry = lambda: None
        trainer.remove_callback(trainer.callback_handler.callbacks[-1])  # prints
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for ours, theirs in zip(report.history, logged, strict=True):
        assert ours.train_loss == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours.learning_rate == pytest.approx(theirs["learning_rate"], rel=1e-6)


# --- what a trial's losses do not depend on ------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 3, 4, None])
def test_the_micro_batch_does_not_matter(dense: Tiny, micro: int | None) -> None:
    whole, cut = (
        dense.trial(number, examples=72, batch_size=16, micro_batch_size=rows)
        for number, rows in enumerate((16, micro))
    )
    driver = run(dense, whole, cut)
    assert driver.losses(1) == pytest.approx(driver.losses(0), rel=2e-5)


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "packing"])
def test_how_a_batch_is_computed_does_not_matter(dense: Tiny, setting: str) -> None:
    trials = dense.trial(0, examples=48), dense.trial(1, examples=48, **{setting: True})
    driver = run(dense, *trials)
    assert outcomes(driver) == [Outcome.COMPLETE] * 2
    assert driver.losses(1) == pytest.approx(driver.losses(0), rel=2e-5)


def test_a_largest_norm_of_zero_clips_nothing(dense: Tiny) -> None:
    trials = [dense.trial(k, examples=48, max_grad_norm=norm)
              for k, norm in enumerate((0.0, 1e9, 1e-3))]
    driver = run(dense, *trials)
    assert driver.losses(0) == driver.losses(1) != driver.losses(2)


def test_nf4_trials_do_not_depend_on_the_micro_batch_either(tiny: Tiny) -> None:
    trials = [tiny.trial(k, batch_size=16, micro_batch_size=m) for k, m in enumerate((16, 4))]
    driver = run(tiny, *trials)
    assert driver.losses(1) == pytest.approx(driver.losses(0), rel=1e-3)


def test_a_trial_after_others_equals_a_fresh_one(tiny: Tiny) -> None:
    trial = tiny.trial(0, gradient_checkpointing=True)
    others = [
        tiny.trial(1, seed=8, lora={"r": 8, "rslora": True}, packing=True),
        tiny.trial(2, learning_rate=1e30),  # diverges
        tiny.trial(3, lora={"target_modules": ("q_proj",), "dropout": 0.0}, optimizer="sgd"),
        tiny.trial(4, gradient_checkpointing=True, group_by_length=True),
    ]
    fresh = run(tiny, trial)
    after = run(tiny, *others, trial, target_modules=("all-linear", ("q_proj",)))
    assert after.losses(0) == fresh.losses(0)  # to the last bit
    assert outcomes(after)[1] is Outcome.DIVERGED


def test_trials_leave_no_tensors_behind(tiny: Tiny) -> None:
    from trials.engines.trl import prepare

    driver = Recorder()
    engine, driver.setup = prepare(tiny.assignment(), driver)

    def tensors_after(*trials: TrialConfig) -> int:
        driver.trials += trials
        engine.run(driver)
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    first = tensors_after(tiny.trial(0), tiny.trial(1))
    assert tensors_after(tiny.trial(2), tiny.trial(3), tiny.trial(4, learning_rate=1e30)) <= first


def test_grouping_by_length_pads_less_and_sees_the_same_examples(tiny: Tiny) -> None:
    trials = [tiny.trial(k, examples=64, group_by_length=grouped)
              for k, grouped in enumerate((False, True))]
    driver = run(tiny, *trials)
    plain, grouped = driver.results
    assert plain.tokens == grouped.tokens
    assert driver.losses(0) != driver.losses(1)


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_adapters_and_moments_are_fp32(
    tiny: Tiny, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fp32_of(monkeypatch)
    driver = run(replace(tiny, dtype=dtype), tiny.trial())
    assert outcomes(driver) == [Outcome.COMPLETE]
    assert seen == {"weight": {torch.float32}, "moment": {torch.float32}}


def test_small_updates_do_not_vanish(tiny: Tiny) -> None:
    """In bf16 a step below half an ulp would change nothing at all."""
    driver = run(tiny, tiny.trial(examples=64, ticks=2, learning_rate=1e-6))
    first, last = (report.eval_loss for report in driver.reports)
    assert first != last


# --- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in PAGED])
def test_every_optimizer_trains(tiny: Tiny, optimizer: str) -> None:
    rate = 3.0 if optimizer == "sgd" else 0.01
    driver = run(tiny, tiny.trial(examples=96, optimizer=optimizer, learning_rate=rate))
    assert driver.setup is not None
    assert driver.results[0].eval_loss is not None
    assert driver.results[0].eval_loss < driver.setup.baseline_loss - 0.1


def test_every_schedule_spans_the_budget_after_its_warm_up(tiny: Tiny) -> None:
    from trials.training.schedule import rate_factor

    trials = [tiny.trial(k, examples=80, ticks=1, scheduler=name, warmup=0.2)
              for k, name in enumerate(SCHEDULERS)]
    driver = run(tiny, *trials)
    for name, report in zip(SCHEDULERS, driver.reports, strict=True):
        rates = [point.learning_rate / 0.01 for point in report.history]
        assert rates == pytest.approx([rate_factor(name, s, steps=10, warmup=2) for s in range(10)])


@pytest.mark.parametrize("quantisation", ["fp4", "int8"])
def test_other_quantisations_train(tiny: Tiny, quantisation: str) -> None:
    driver = run(replace(tiny, quantisation=quantisation), tiny.trial(examples=64))
    assert outcomes(driver) == [Outcome.COMPLETE]
    assert driver.reports[1].eval_loss < driver.reports[0].eval_loss


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.PRUNED, Outcome.STOPPED])
def test_a_stopped_trial_reports_no_more(tiny: Tiny, outcome: Outcome) -> None:
    def stop(report: Report) -> Verdict:
        return Verdict(stop=report.tick == 2, reason="enough", outcome=outcome)

    driver = run(tiny, tiny.trial(examples=64, ticks=4), tiny.trial(1, ticks=1), answer=stop)
    assert [(report.trial, report.tick) for report in driver.reports] == [(0, 1), (0, 2), (1, 1)]
    stopped = driver.results[0]
    assert (stopped.outcome, stopped.reason, stopped.ticks) == (outcome, "enough", 2)
    assert stopped.eval_loss == driver.reports[1].eval_loss
    assert stopped.examples == 32


def test_a_trial_that_came_all_the_way_is_complete_whatever_the_verdict(tiny: Tiny) -> None:
    driver = run(tiny, tiny.trial(), answer=lambda report: Verdict(stop=report.tick == 2))
    assert outcomes(driver) == [Outcome.COMPLETE]


def test_divergence_ends_a_trial_at_once(tiny: Tiny) -> None:
    driver = run(tiny, tiny.trial(0, examples=80, learning_rate=1e30), tiny.trial(1))
    diverged, other = driver.results
    assert diverged.outcome is Outcome.DIVERGED
    assert diverged.reason is not None
    assert "became nan at step 2" in diverged.reason
    assert diverged.examples == 16
    assert len(diverged.history) == 2
    assert other.outcome is Outcome.COMPLETE


def test_an_evaluation_that_is_not_finite_is_divergence(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trials.engines.trl import TrlEngine
    from trials.evaluate import Evaluation

    measure = TrlEngine.measure
    calls = iter([False, True])

    def poisoned(engine: TrlEngine, *progress: Any) -> Evaluation:
        return Evaluation(math.inf, 0.0) if next(calls) else measure(engine)

    monkeypatch.setattr(TrlEngine, "measure", poisoned)
    driver = run(tiny, tiny.trial())
    assert outcomes(driver) == [Outcome.DIVERGED]
    assert driver.results[0].reason == "evaluation loss became inf at step 2"
    assert driver.reports == []


CUDA_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
HOST_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def too_large(rows: int, error: Exception = CUDA_FULL) -> Callable[..., torch.Tensor]:
    """Logits that run out of memory beyond so many rows."""
    from trials.evaluate import target_logits

    def logits(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if batch.input_ids.shape[0] > rows:
            raise error
        return target_logits(model, batch)

    return logits


@pytest.mark.parametrize("error", [CUDA_FULL, HOST_FULL])
def test_a_micro_batch_that_does_not_fit_is_cut(
    dense: Tiny, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = run(dense, dense.trial(batch_size=16))
    monkeypatch.setattr("trials.engines.trl_trainer.target_logits", too_large(3, error))
    cut = run(dense, dense.trial(batch_size=16))
    assert outcomes(cut) == [Outcome.COMPLETE]
    assert cut.losses(0) == pytest.approx(whole.losses(0), rel=2e-5)


def test_a_trial_that_does_not_fit_is_infeasible_and_the_next_one_is_as_ever(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = run(tiny, tiny.trial(1))
    with monkeypatch.context() as patch:
        patch.setattr("trials.engines.trl_trainer.target_logits", too_large(0))
        from trials.engines.trl import prepare

        driver = Recorder([tiny.trial(0)])
        engine, driver.setup = prepare(tiny.assignment(), driver)
        engine.run(driver)
    driver.trials.append(tiny.trial(1))
    engine.run(driver)
    infeasible = driver.results[0]
    assert infeasible.outcome is Outcome.INFEASIBLE
    assert infeasible.reason == (
        "does not fit into memory: CUDA out of memory. Tried to allocate 9 GiB"
    )
    assert infeasible.eval_loss is None
    assert driver.losses(1) == fresh.losses(1)


def test_a_completed_trial_leaves_an_adapter_with_the_reported_loss(
    tiny: Tiny, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    from trials.base import load_base
    from trials.data import load_data
    from trials.evaluate import evaluate, evaluation_batches
    from trials.quiet import quiet
    from trials.training.batches import Limit

    stop = {1: Verdict(stop=True, reason="no")}
    driver = run(
        tiny, tiny.trial(7), tiny.trial(8), adapters_dir=str(tmp_path / "adapters"),
        answer=lambda report: stop.get(report.trial - 7, Verdict()),
    )
    complete, pruned = driver.results
    assert complete.adapter == str(tmp_path / "adapters" / "7")
    assert pruned.adapter is None
    assert [folder.name for folder in (tmp_path / "adapters").iterdir()] == ["7"]

    def silent(what: str, done: int, total: int) -> None: ...

    assigned = tiny.assignment()
    base = load_base(assigned.model, "cpu", silent)
    data = load_data(assigned.data, base, 3, silent)
    with quiet():
        model = AutoPeftModelForCausalLM.from_pretrained(
            complete.adapter, device_map={"": "cpu"},
            quantization_config=base.model.config.quantization_config,
        )
    batches = evaluation_batches(data.eval, pad=0, limit=Limit(), device=base.device)
    found = evaluate(model, batches, torch.float32).loss
    assert found == pytest.approx(complete.eval_loss, rel=1e-3)


# --- what only a worker can check ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("assigned", "message"),
    [
        ({"target_modules": ("all-linear", "q_porj")}, r"q_porj.*Did you mean 'q_proj'"),
        ({"optimizers": ("adamw", "paged_adamw_8bit")}, "needs a CUDA device.*Type train.opt"),
        ({"optimizers": ("adam",)}, r"train.optimizer='adam' is unknown. Did you mean 'adamw'"),
        ({"device": "cuda:7"}, "no such device"),
        ({"max_batch_size": 4000}, "batch_size=4000 is larger than the training set of 100"),
        ({"engine": EngineConfig(name="trl", options={"capacity": 2})}, "capacity.*no options"),
    ],
)
def test_bad_input_is_said_before_the_first_trial(
    tiny: Tiny, assigned: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny, tiny.trial(), **assigned)
