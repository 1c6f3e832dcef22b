"""What `sweep` and `trials` say to each other: plain frozen values and one protocol, stdlib only.

A worker speaks first and the driver answers at once: the verdict on pruning is the return value of
`report`. `to_json` and `from_json` (from `trials.jsonable`) turn every value into JSON and back.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from trials.jsonable import from_json as from_json
from trials.jsonable import to_json as to_json

# --- the names that a trial may use --------------------------------------------------------------

SCHEDULERS = (
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
)
PAGED = ("paged_adamw_32bit", "paged_adamw_8bit")  # need CUDA
OPTIMIZERS = ("adamw", "sgd", "adafactor", *PAGED)

# --- what a trial is -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The frozen base. `name` is "demo", a hub name or a folder; `dtype` is the compute dtype."""

    name: str
    revision: str | None = None
    quantisation: str = "nf4"  # nf4, fp4, int8, none
    double_quantisation: bool = True
    dtype: str = "auto"  # auto, bf16, fp16, fp32; a prepared config never says auto
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The examples. Column names are null until the user names them or the worker guesses them."""

    format: str  # demo, text, completion, alpaca, chat, dialogue
    path: str | None = None  # a local file or folder, or a hub data set
    name: str | None = None  # the hub data set's configuration
    revision: str | None = None
    split: str = "train"
    eval_path: str | None = None  # null: the evaluation set is taken out of `path`
    eval_split: str | None = None
    text_column: str | None = None
    response_template: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    input_column: str | None = None
    messages_column: str | None = None
    train_size: int | None = None  # examples; null: all that the evaluation set leaves
    eval_size: int = 200  # examples
    max_length: int = 512  # tokens
    loss_on: str = "completion"  # completion, all
    max_dropped: float = 0.1  # share of samples that may lose their completion
    content_hash: str | None = None  # of rows, columns and subset; set when prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """The adapter. `target_modules` is a preset's name or the modules' own names."""

    r: int
    alpha: float
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    rslora: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the adapter is trained. `batch_size` is the effective one."""

    learning_rate: float
    scheduler: str = "linear"
    warmup: float = 0.0  # share of all optimizer steps
    batch_size: int = 8  # examples per optimizer step
    micro_batch_size: int | None = None  # examples per forward, never changes a result; null: auto
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: gradients are not clipped
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    packing: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialBudget:
    """How much one trial may learn from, and how often it reports."""

    examples: int
    ticks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Which engine trains, with its own options by name (JSON values only)."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """All that is needed to reproduce one trial, and nothing else."""

    study: str
    number: int
    attempt: int
    seed: int
    model: ModelConfig
    data: DataConfig
    lora: LoraConfig
    train: TrainConfig
    budget: TrialBudget
    engine: EngineConfig


# --- preparing -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What a worker is started with: everything it must load, and what only it can check."""

    study: str
    worker: str
    device: str  # auto, cpu, cuda:0, ...; a worker never moves to another one by itself
    seed: int
    model: ModelConfig
    data: DataConfig
    engine: EngineConfig
    target_modules: tuple[str | tuple[str, ...], ...]  # every value the study may use
    optimizers: tuple[str, ...]  # likewise
    max_batch_size: int | None = None  # likewise; examples
    packing: bool = False  # whether any trial packs
    dropout: bool = True  # whether any trial may drop inputs of its adapter
    max_r: int | None = None  # the largest rank that the study may use; null: unknown
    gradient_checkpointing: bool = False  # whether every trial recomputes its activations
    threads: int | None = None  # CPU threads for this worker; null: all
    sharing: int = 1  # workers on its device, each with an equal part of the memory
    samples: int = 0  # evaluation prompts to generate for
    samples_at_ticks: bool = False  # at each tick, not only at a trial's end
    adapters_dir: str | None = None  # where adapters are written; null: keep none
    states_dir: str | None = None  # where interrupted trials are kept, a folder each; null: nowhere
    state_every_s: float = 10.0  # at most so often; rewriting them more often saves little


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What the base turned out to be. Sizes in parameters; `linear_modules` by their last name."""

    name: str
    revision: str | None
    architecture: str
    parameters: int
    linear_modules: tuple[str, ...]
    presets: dict[str, tuple[str, ...]]  # preset name -> module names in this model
    loaded_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What the data turned out to be. Lengths in tokens."""

    content_hash: str
    columns: dict[str, str]  # role -> column, as named or guessed
    guessed: tuple[str, ...]  # roles whose column was guessed
    train_examples: int
    eval_examples: int
    mean_length: float
    max_length: int
    truncated: int  # samples shortened, completion partly kept
    dropped: int  # samples without one completion token left
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedSample:
    """The first training example as the model sees it: pieces of text, each with loss or not."""

    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What a model writes for one evaluation prompt."""

    prompt: str
    reference: str
    generated: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """Where a worker computes. `memory_bytes` is the device's (the host's for a CPU)."""

    name: str
    kind: str  # cpu, cuda
    memory_bytes: int
    dtype: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A prepared worker's answer; `model` and `data` come back resolved."""

    worker: str
    model: ModelConfig
    data: DataConfig
    model_facts: ModelFacts
    data_facts: DataFacts
    device: DeviceFacts
    rendered: RenderedSample
    baseline_loss: float
    baseline_accuracy: float | None = None  # share of completions right to the last token
    baseline_samples: tuple[Sample, ...] = ()
    capacity: int = 1  # trials at once
    engine: EngineConfig | None = None  # the one that trains; null: that of the assignment


class InputError(Exception):
    """The user asked for something that cannot be. The message is complete; no traceback is due."""


# --- working -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One optimizer step of the training curve."""

    examples: int
    train_loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A trial reached a tick. `examples`, `tokens` and `seconds` count from the trial's start."""

    trial: int
    attempt: int
    tick: int  # 1 .. budget.ticks
    eval_loss: float
    examples: int
    tokens: int
    seconds: float
    eval_seconds: float = 0.0  # of these, spent evaluating
    sample_seconds: float = 0.0  # and spent generating samples
    memory_bytes: int = 0  # peak
    utilisation: float | None = None  # of the device, 0..1
    eval_accuracy: float | None = None
    worker: str = ""
    slot: int = 0
    again: bool = False  # an earlier attempt told it and was told to go on
    history: tuple[CurvePoint, ...] = ()  # since the last tick
    samples: tuple[Sample, ...] = ()  # if asked for at ticks


class Outcome(enum.Enum):
    """How a trial ended. The sampler learns from the first four."""

    COMPLETE = "complete"
    PRUNED = "pruned"  # the pruner said no
    DIVERGED = "diverged"  # a loss or gradient was not finite
    INFEASIBLE = "infeasible"  # does not fit in memory
    FAILED = "failed"  # a bug or a dead worker
    STOPPED = "stopped"  # the user, a budget, or no memory beside other processes; may go on


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The answer to a running trial: go on, or stop, why, and what that makes of the trial."""

    stop: bool = False
    reason: str | None = None
    outcome: Outcome = Outcome.PRUNED  # of a stopped trial; STOPPED by the user or a budget


CONTINUE = Verdict()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """A trial's end, said exactly once for each trial handed out."""

    trial: int
    attempt: int
    outcome: Outcome
    eval_loss: float | None
    eval_accuracy: float | None = None
    ticks: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    eval_seconds: float = 0.0
    sample_seconds: float = 0.0
    memory_bytes: int = 0
    trainable_parameters: int = 0
    reason: str | None = None
    adapter: str | None = None  # folder in PEFT format
    samples: tuple[Sample, ...] = ()
    history: tuple[CurvePoint, ...] = ()  # since the last report
    worker: str = ""


class Turn(enum.Enum):
    """What `next_trial` says when it has no trial."""

    WAIT = "wait"  # nothing now, ask again
    DONE = "done"  # leave


class Driver(Protocol):
    """What a worker can say. Every call is answered at once."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows how far long work before a trial is; `total` 0 when unknown.

        Within a trial it is a sign of life only: a worker silent for too long is taken for hung.
        """

    def alive(self, trial: int, attempt: int) -> Verdict:
        """Says between two ticks that a trial goes on; the answer decides whether it does.

        Asked after an optimizer step, at most about once a second; after STOP no tick is reported.
        """

    def note(self, text: str) -> None:
        """Says what the user should know, in a line."""

    def prepared(self, setup: Setup) -> None:
        """Says that the worker is ready. An `InputError` is raised instead of answered."""

    def next_trial(self) -> TrialConfig | Turn:
        """Asks for work."""

    def report(self, report: Report) -> Verdict:
        """Tells a tick; the answer decides whether the trial goes on."""

    def finish(self, result: TrialResult) -> None:
        """Ends a trial."""


class Engine(Protocol):
    """Trains: takes work from the driver, reports at ticks, finishes, until there is none."""

    def run(self, driver: Driver) -> None:
        """Returns when `next_trial` said DONE."""


# --- shared arithmetic ---------------------------------------------------------------------------


def tick_examples(budget: TrialBudget, batch_size: int) -> tuple[int, ...]:
    """The examples seen at each tick: the first whole batch at or beyond k/N of the budget.

    The last batch may be short, so the last tick is at `budget.examples` exactly.
    """
    shares = (budget.examples * k / budget.ticks for k in range(1, budget.ticks + 1))
    return tuple(min(math.ceil(s / batch_size) * batch_size, budget.examples) for s in shares)


def optimizer_steps(examples: int, batch_size: int) -> int:
    """The optimizer steps that `examples` make, a short last batch included."""
    return math.ceil(examples / batch_size)
