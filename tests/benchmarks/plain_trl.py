"""TRL by itself, as its documentation has it: SFTTrainer with a LoRA configuration.

What a user would run instead of this project; behind the engines' interface, so that it is measured
as they are. Bases and examples are theirs, the training is all TRL's: its loss, its metrics, its
mixed precision, PEFT's own dropout. Gradient checkpointing, which TRL turns on, is the case's.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trials.base import Base, load_base
from trials.base.devices import device_facts
from trials.contract import (
    Assignment,
    CurvePoint,
    Driver,
    Outcome,
    Report,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
)
from trials.data import load_data

NAME = "plain"  # of the cases
RANDOM = 0.0  # the loss of the untouched base is of no interest here


def prepare(assignment: Assignment, driver: Driver) -> tuple[PlainTrl, Setup]:
    """Loads the base; the examples are read by TRL when it trains."""
    if assignment.threads is not None:
        torch.set_num_threads(assignment.threads)
    base = load_base(assignment.model, assignment.device, driver.progress)
    data = load_data(assignment.data, base, assignment.seed, driver.progress)
    setup = Setup(
        worker=assignment.worker, model=base.config, data=data.config, model_facts=base.facts,
        data_facts=data.facts, device=device_facts(base.device, base.config.dtype),
        rendered=data.rendered, baseline_loss=RANDOM,
    )
    read = data.facts.mean_length - 1  # tokens of an example; the last one is predicted only
    return PlainTrl(base, assignment, read), setup


class PlainTrl:
    """One trial after another, each a training run of TRL's."""

    def __init__(self, base: Base, assignment: Assignment, mean_length: float) -> None:
        self.base, self.assignment, self.mean_length = base, assignment, mean_length

    def run(self, driver: Driver) -> None:
        """Trains until the driver has nothing more."""
        while isinstance(trial := driver.next_trial(), TrialConfig):
            self._train(trial, driver)
        assert trial is Turn.DONE

    def _train(self, trial: TrialConfig, driver: Driver) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTTrainer

        lora = trial.lora
        lines = Path(str(self.assignment.data.path)).read_text().splitlines()
        trainer = SFTTrainer(
            model=self.base.model,
            args=_arguments(trial, self.assignment, self.base),
            train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
            processing_class=self.base.tokenizer,
            peft_config=LoraConfig(
                r=lora.r, lora_alpha=int(lora.alpha), lora_dropout=lora.dropout,
                target_modules="all-linear", task_type="CAUSAL_LM",
            ),
            callbacks=[_Reports(trial, driver, self.mean_length)],
        )
        trainer.train()
        driver.finish(TrialResult(
            trial=trial.number, attempt=trial.attempt, outcome=Outcome.STOPPED, eval_loss=None,
            reason=None, worker=self.assignment.worker,
        ))


def _arguments(trial: TrialConfig, assignment: Assignment, base: Base) -> Any:
    from trl import SFTConfig

    train, cpu = trial.train, base.device.type == "cpu"
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(), max_steps=trial.budget.examples // train.batch_size,
        per_device_train_batch_size=train.batch_size, learning_rate=train.learning_rate,
        lr_scheduler_type="constant", gradient_checkpointing=train.gradient_checkpointing,
        logging_steps=trial.budget.examples // train.batch_size // trial.budget.ticks,
        dataset_text_field=assignment.data.text_column, max_length=assignment.data.max_length,
        seed=trial.seed, use_cpu=cpu, bf16=not cpu, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one of several would be many
    return arguments


class _Reports(TrainerCallback):  # type: ignore[misc]
    """Tells the driver what TRL logs: the mean loss of the steps since, and the last norm."""

    def __init__(self, trial: TrialConfig, driver: Driver, mean_length: float) -> None:
        self.trial, self.driver, self.mean_length = trial, driver, mean_length
        self._told = 0  # steps

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:
        """At every tick; afterwards TRL logs a summary, which is none."""
        if not logs or "loss" not in logs:
            return
        steps, batch = state.global_step, self.trial.train.batch_size
        points = tuple(
            CurvePoint(
                examples=step * batch, train_loss=float(logs["loss"]),
                learning_rate=self.trial.train.learning_rate,
                grad_norm=float(logs["grad_norm"]), tokens_per_s=0.0,
            )
            for step in range(self._told + 1, steps + 1)
        )
        self._told = steps
        verdict = self.driver.report(Report(
            trial=self.trial.number, attempt=0, tick=steps // args.logging_steps,
            eval_loss=float(logs["loss"]), examples=steps * batch,
            tokens=round(steps * batch * self.mean_length), seconds=0.0, history=points,
        ))
        control.should_training_stop = control.should_training_stop or verdict.stop
