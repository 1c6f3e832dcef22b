"""A benchmark's case, the trials that it trains, and what one of its processes measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trials.contract import (
    Assignment,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
    TrialBudget,
    TrialConfig,
)

DROPOUT = 0.05
RATE = 1e-4
TICKS = 400  # of a trial: more than any window sees
MIXED = {"r": (8, 16, 32, 64), "batch_size": (2, 4, 8, 16)}
MIXED_TICK = 4  # times as far apart as those of even trials, which tick together


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured. Sizes in bytes, examples and tokens."""

    name: str
    shape: str
    engine: str
    device: str
    base: str  # folder
    data: str  # JSONL
    max_length: int
    options: dict[str, Any] = field(default_factory=dict)  # of the engine
    processes: int = 1
    trials: int | None = None  # at once in one process, at most; null: the engine's capacity
    r: int = 16
    batch_size: int = 4
    mixed: bool = False
    checkpointing: bool = False
    memory_bytes: int | None = None  # that the process may take on the device
    every: int = 10  # steps between two reports
    warm: int = 2  # reports of each trial before the window opens
    window_s: float = 8.0
    threads: int | None = None

    @property
    def on_cuda(self) -> bool:
        """Whether the device has a memory of its own to look at."""
        return self.device != "cpu"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a trial did in the window."""

    r: int
    batch_size: int
    steps_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one process found, or the reason why it found nothing."""

    reason: str | None = None
    device: str = ""
    capacity: int = 0
    paces: tuple[Pace, ...] = ()
    steps: int = 0  # all trials together, in the window
    evaluation: float = 0.0  # share of the window
    grad_norm: float = 0.0  # mean
    least_grad_norm: float = 0.0
    loss: float = 0.0
    reserved_bytes: int = 0  # peak of the process
    allocated_bytes: int = 0  # peak in the window
    idle: float | None = None  # share of the time, as the engine says
    prepared_s: float = 0.0  # from the process's start
    warm_s: float = 0.0  # likewise


def trial(case: Case, number: int) -> TrialConfig:
    """A trial of the case: all alike, or of every rank with every batch size in turn."""
    given, r, batch = assignment(case), case.r, case.batch_size
    tick = case.every * batch
    if case.mixed:
        ranks, batches = MIXED["r"], MIXED["batch_size"]
        r = ranks[number % len(ranks)]
        batch = batches[(number + number // len(ranks)) % len(batches)]
        tick = MIXED_TICK * case.every * case.batch_size
    return TrialConfig(
        study="benchmark", number=number, attempt=0, seed=number,
        model=given.model, data=given.data, engine=given.engine,
        lora=LoraConfig(r=r, alpha=2.0 * r, dropout=DROPOUT, target_modules="all-linear"),
        train=TrainConfig(
            learning_rate=RATE, scheduler="constant", batch_size=batch, optimizer="adamw",
            gradient_checkpointing=case.checkpointing,
        ),
        budget=TrialBudget(examples=TICKS * tick, ticks=TICKS),
    )


def assignment(case: Case) -> Assignment:
    """What every trial of the case shares: loss on all tokens, and one evaluation example."""
    batches, ranks = MIXED["batch_size"], MIXED["r"]
    return Assignment(
        study="benchmark", worker="benchmark", device=case.device, seed=0, threads=case.threads,
        model=ModelConfig(name=case.base),
        data=DataConfig(
            format="text", path=case.data, text_column="text", loss_on="all", eval_size=1,
            max_length=case.max_length,
        ),
        engine=EngineConfig(name=case.engine, options=case.options),
        target_modules=("all-linear",), optimizers=("adamw",),
        max_batch_size=max(batches) if case.mixed else case.batch_size,
        max_r=max(ranks) if case.mixed else case.r, gradient_checkpointing=case.checkpointing,
    )
