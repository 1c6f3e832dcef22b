"""TRL's SFTTrainer, fed with whole optimizer batches: the only module that imports trl.

The Trainer counts steps, accumulates, clips, scales fp16 losses and walks the schedule. Ours are
the examples (cut into any micro-batches, each target token weighing the same in the whole batch),
the loss on the target positions alone, and what happens after a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from trials.adapters import Adapter
from trials.contract import TrainConfig, TrialConfig
from trials.dropout import row_keys
from trials.engines.course import Course, Snapshot, StepDone
from trials.evaluate import computing, target_logits
from trials.training.batches import Limit, Row, collate, split, target_count
from trials.training.limits import out_of_memory
from trials.training.optimizers import build_optimizer, release_optimizer, restore, saved
from trials.training.plan import Step
from trials.training.schedule import rate_factor, warmup_steps
from trials.training.state import State

LOWEST_LOSS_SCALE = 1.0  # of fp16: where gradients overflow even unscaled, they are not finite


@dataclass
class Feed:
    """Where the examples come from, and how many of them go into one forward."""

    rows: Callable[[Step], Sequence[Row]]
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype  # the base's compute dtype
    limit: Limit

    @property
    def pad(self) -> int:
        """What stands where there is no token."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return pad


def train_adapter(
    adapter: Adapter,
    trial: TrialConfig,
    steps: Sequence[Step],
    feed: Feed,
    course: Course,
    start: State | None = None,
) -> None:
    """Trains through `steps`, or until the course has an outcome; from a state, through the rest.

    Where a forward does not fit into memory, `feed.limit` is halved and the step repeated, which
    changes no result; where a single row does not fit, the error is raised.
    """
    rest = range(start.progress.steps if start else 0, len(steps))
    at = int(start.progress.numbers["schedule"]) if start else 0
    optimizer = build_optimizer(trial.train, adapter.parameters)
    schedule = _schedule(optimizer, trial.train, len(steps), at)
    kept = [parameter.data for parameter in adapter.parameters]
    trainer = _Trainer(
        model=adapter.model,
        args=_arguments(trial, len(rest), feed),
        processing_class=feed.tokenizer,
        train_dataset=Dataset.from_dict({"step": rest}),
        data_collator=lambda rows: {"step": steps[rows[0]["step"]]},
        optimizers=(optimizer, schedule),
    )
    # TRL has cast the adapters of a quantised base to bf16, in which small updates vanish.
    for parameter, data in zip(adapter.parameters, kept, strict=True):
        parameter.data = data
    trainer.run = _Run(adapter, trial, feed, course, optimizer, start)
    course.snapshot = lambda: trainer.snapshot(at + schedule.last_epoch)
    try:
        trainer.train()
    finally:
        course.snapshot = lambda: None  # holds the trainer
        release_optimizer(optimizer)


@dataclass
class _Run:
    adapter: Adapter
    trial: TrialConfig
    feed: Feed
    course: Course
    optimizer: torch.optim.Optimizer
    start: State | None  # until the first step has taken it up
    step: Step | None = None  # the last one, with its loss and tokens
    loss: Tensor | None = None
    tokens: int = 0


class _Trainer(SFTTrainer):  # type: ignore[misc]
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the whole batch's targets

    run: _Run  # the Trainer has hundreds of attributes of its own; ours are all in here

    def training_step(
        self, model: nn.Module, inputs: dict[str, Step], num_items_in_batch: object = None
    ) -> Tensor:
        """One whole optimizer batch, however many forwards it takes."""
        if self.run.start is not None:  # only now, for the Trainer has wrapped the optimizer
            self._resume(self.run.start)
            self.run.start = None
        self.run.step = inputs["step"]
        rows = self.run.feed.rows(inputs["step"])
        while True:
            try:
                self.run.loss = self._accumulate(model, rows)
                return self.run.loss
            except Exception as error:
                if not out_of_memory(error) or not self._shrink(rows):
                    raise
            model.zero_grad()
            torch.cuda.empty_cache()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: int = 1,
    ) -> Tensor:
        """The micro-batch's share of the batch's token-weighted mean."""
        batch = inputs["batch"]
        run = self.run
        run.adapter.keys.rows = row_keys(run.trial.seed, batch.order, batch.tokens)
        with computing(run.feed.device, run.feed.dtype):
            logits = target_logits(model, batch)
        return cross_entropy(logits.float(), batch.targets, reduction="sum") / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after each optimizer step, and once at the end with a summary."""
        run = self.run
        if "learning_rate" not in logs or run.step is None or run.loss is None:
            return
        done = StepDone(
            step=run.step,
            tokens=run.tokens,
            loss=float(run.loss),
            grad_norm=float(logs["grad_norm"]),
            learning_rate=float(logs["learning_rate"]),
            skipped=self._skipped(),
        )
        if run.course.step(done):
            self.control.should_training_stop = True

    def snapshot(self, schedule: int) -> Snapshot:
        """All that the next step depends on; `schedule` is the position in it."""
        tensors, numbers = saved(self.run.optimizer)
        tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        for place, parameter in enumerate(self.run.adapter.parameters):
            tensors[f"parameter.{place}"] = parameter.detach().to("cpu", copy=True).contiguous()
        scaler = self.accelerator.scaler
        return Snapshot(tensors, {
            "schedule": schedule,
            "optimizer": numbers,
            "scaler": None if scaler is None else scaler.state_dict(),
            "limit": vars(self.run.feed.limit),
        })

    def _resume(self, start: State) -> None:
        numbers = start.progress.numbers
        mine = {name: start.tensors[name] for name in start.tensors
                if name.startswith("optimizer.")}
        for place, parameter in enumerate(self.run.adapter.parameters):
            parameter.data.copy_(start.tensors[f"parameter.{place}"])
        restore(
            self.run.optimizer,
            {name.removeprefix("optimizer."): tensor for name, tensor in mine.items()},
            numbers["optimizer"],
        )
        if self.accelerator.scaler is not None and numbers["scaler"]:
            self.accelerator.scaler.load_state_dict(numbers["scaler"])
        kept, asked = Limit(**numbers["limit"]), self.run.feed.limit
        if asked.rows is None or (kept.rows or asked.rows) < asked.rows:
            self.run.feed.limit = kept  # the same sums, to the last bit

    def floating_point_ops(self, inputs: object) -> int:
        return 0  # the Trainer would walk all parameters at every step for it

    def _send_telemetry(self) -> None:
        return  # nothing is sent anywhere

    def _accumulate(self, model: nn.Module, rows: Sequence[Row]) -> Tensor:
        targets = max(1, sum(target_count(row) for row in rows))
        feed = self.run.feed
        loss, self.run.tokens = torch.zeros((), device=feed.device), 0
        for group in split(rows, feed.limit):
            batch = collate(group, feed.pad).to(feed.device)
            loss += super().training_step(model, {"batch": batch}, targets)
            self.run.tokens += batch.real_tokens
        return loss

    def _shrink(self, rows: Sequence[Row]) -> bool:
        largest = max(len(group) for group in split(rows, self.run.feed.limit))
        self.run.feed.limit = Limit(rows=max(1, largest // 2))
        return largest > 1

    def _skipped(self) -> bool:
        scaler = self.accelerator.scaler
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        return skipped and scaler is not None and scaler.get_scale() >= LOWEST_LOSS_SCALE


def _arguments(trial: TrialConfig, steps: int, feed: Feed) -> SFTConfig:
    train = trial.train
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(),  # must exist; nothing is written there
        max_steps=steps,
        per_device_train_batch_size=1,  # one row of the data set is one optimizer batch
        gradient_accumulation_steps=1,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=False,  # `compute_loss` has its own autocast, the same as the evaluation's
        fp16=feed.dtype == torch.float16,  # for its loss scaling
        use_cpu=feed.device.type == "cpu",
        seed=trial.seed & 0xFFFFFFFF,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        max_length=None,
        completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if feed.device.type == "cuda":
        _place(arguments, feed.device)
    return arguments


def _place(arguments: SFTConfig, device: torch.device) -> None:
    # By itself the Trainer takes cuda:0, and where it sees several devices, all of them.
    arguments._setup_devices  # noqa: B018  # a cached property, to be overwritten once it is there
    vars(arguments)["_setup_devices"] = device
    arguments._n_gpu = 1
    arguments.distributed_state.device = device
    torch.cuda.set_device(device)


def _schedule(
    optimizer: torch.optim.Optimizer, train: TrainConfig, steps: int, start: int
) -> torch.optim.lr_scheduler.LambdaLR:
    warmup = warmup_steps(train.warmup, steps)

    def factor(step: int) -> float:
        return rate_factor(train.scheduler, start + step, steps=steps, warmup=warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
