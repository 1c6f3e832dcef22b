"""A sweep as its observers see it, without workers, driver or database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sweep.config import SweepConfig, compose
from sweep.observers import Closed, Observer, Opened
from sweep.observers.tally import Tally
from sweep.store import TrialRecord
from trials.contract import (
    CONTINUE,
    CurvePoint,
    DataFacts,
    DeviceFacts,
    EngineConfig,
    LoraConfig,
    ModelFacts,
    Outcome,
    RenderedSample,
    Report,
    Setup,
    TrainConfig,
    TrialBudget,
    TrialConfig,
    TrialResult,
    Verdict,
)

TICKS = 4
TICK_EXAMPLES = 40
BASELINE = 2.0
RANKS = (4, 8, 16, 32, 64)
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"


def config(folder: Path, *overrides: str, n_trials: int = 6, **changes: object) -> SweepConfig:
    """A checked configuration whose results lie in `folder`; W&B is off unless asked for."""
    composed = compose(
        [
            "+search=lora_rank",
            "tracking=none",
            f"budget.ticks={TICKS}",
            f"budget.examples={TICKS * TICK_EXAMPLES}",
            f"n_trials={n_trials}",
            f"results_dir={folder}",
            *overrides,
        ]
    )
    return dataclasses.replace(composed, **changes)  # type: ignore[arg-type]


def setup(asked: SweepConfig, text: str = "Price is $", **changes: object) -> Setup:
    """What a worker would have found; `text` is the prompt of the first example."""
    found = Setup(
        worker="w0",
        model=dataclasses.replace(asked.model, dtype="fp32", revision="abc123"),
        data=dataclasses.replace(
            asked.data, content_hash="cafe", prompt_column="prompt", completion_column="completion"
        ),
        model_facts=ModelFacts(
            name="demo",
            revision="abc123",
            architecture="LlamaForCausalLM",
            parameters=3_500_000,
            linear_modules=("q_proj", "v_proj"),
            presets={},
            loaded_bytes=4_000_000,
        ),
        data_facts=DataFacts(
            content_hash="cafe",
            columns={"prompt": "question", "completion": "answer"},
            guessed=("prompt",),
            train_examples=1000,
            eval_examples=100,
            mean_length=30.0,
            max_length=60,
            truncated=2,
            dropped=0,
            warnings=("2 samples are shortened to 512 tokens",),
        ),
        device=DeviceFacts(
            name="a processor", kind="cpu", memory_bytes=2**33, dtype="fp32", versions={}
        ),
        rendered=RenderedSample(pieces=((text, False), ("149", True), ("</s>", True))),
        baseline_loss=BASELINE,
        baseline_accuracy=0.03,
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def opened(asked: SweepConfig, past: Sequence[TrialRecord] = (), text: str = "$") -> Opened:
    """The study of `asked`, open."""
    return Opened(
        config=asked, study_uuid=UUID, setup=setup(asked, text), first_rung=1, past=past
    )


def trial(asked: SweepConfig, number: int, attempt: int = 0) -> TrialConfig:
    """Trial `number` of the study."""
    rank = RANKS[number % len(RANKS)]
    found = setup(asked)
    return TrialConfig(
        study=asked.study,
        number=number,
        attempt=attempt,
        seed=asked.seed,
        model=found.model,
        data=found.data,
        lora=LoraConfig(r=rank, alpha=2.0 * rank, target_modules=("q_proj", "v_proj")),
        train=TrainConfig(learning_rate=2e-4, batch_size=8),
        budget=TrialBudget(examples=TICKS * TICK_EXAMPLES, ticks=TICKS),
        engine=EngineConfig(name="simulated"),
    )


def params(number: int) -> dict[str, object]:
    """Its searched values."""
    rank = RANKS[number % len(RANKS)]
    return {"lora.r": rank, "lora.alpha_ratio": 2.0, "train.learning_rate": 2e-4}


def report(number: int, tick: int, loss: float, attempt: int = 0) -> Report:
    """Trial `number` at a tick, with the five optimizer steps since the last."""
    first = (tick - 1) * TICK_EXAMPLES
    history = tuple(
        CurvePoint(
            examples=first + 8 * step,
            train_loss=loss + 0.1,
            learning_rate=2e-4,
            grad_norm=0.5,
            tokens_per_s=1000.0,
        )
        for step in range(1, TICK_EXAMPLES // 8 + 1)
    )
    return Report(
        trial=number,
        attempt=attempt,
        tick=tick,
        eval_loss=loss,
        examples=tick * TICK_EXAMPLES,
        tokens=tick * 1000,
        seconds=tick * 2.0,
        eval_seconds=tick * 0.2,
        memory_bytes=2**20,
        utilisation=0.5,
        eval_accuracy=0.25,
        worker="w0",
        history=history,
    )


def result(last: Report | None, number: int, outcome: Outcome, **changes: object) -> TrialResult:
    """The end of trial `number`, whose last report was `last`."""
    shared = {} if last is None else {
        name: getattr(last, name)
        for name in ("eval_loss", "eval_accuracy", "examples", "tokens", "seconds",
                     "eval_seconds", "memory_bytes")
    }  # fmt: skip
    ticks = last.tick if last else 0
    ended = TrialResult(**{"eval_loss": None} | shared, trial=number, attempt=0, outcome=outcome,
                        ticks=ticks, trainable_parameters=1234, worker="w0")  # fmt: skip
    return dataclasses.replace(ended, **changes)  # type: ignore[arg-type]


def losses(number: int) -> list[float]:
    """The evaluation losses of trial `number`, the lower the higher its number."""
    return [BASELINE - 0.1 * tick - 0.01 * number for tick in range(1, TICKS + 1)]


def run_trial(
    observer: Observer | Tally,
    asked: SweepConfig,
    number: int,
    outcome: Outcome = Outcome.COMPLETE,
    reason: str | None = None,
    adapter: str | None = None,
) -> None:
    """One trial from start to end; all but complete ones end at tick 2."""
    config_ = trial(asked, number)
    observer.started(config_, params(number), "w0")
    last = None
    for tick, loss in enumerate(losses(number), 1):
        stop = outcome is not Outcome.COMPLETE and tick == 2
        last = report(number, tick, loss)
        observer.reported(last, Verdict(stop=True, reason=reason) if stop else CONTINUE)
        if stop:
            break
    observer.finished(config_, result(last, number, outcome, reason=reason, adapter=adapter))


OUTCOMES = {
    1: (Outcome.PRUNED, "asha: not among the best third"),
    2: (Outcome.FAILED, "RuntimeError: [bold]a bug[/bold]"),
    3: (Outcome.DIVERGED, "loss is not a number"),
}


def play(observer: Observer, asked: SweepConfig, trials: int = 6) -> list[TrialRecord]:
    """A whole sweep: trials 1 to 3 pruned, failed and diverged, the others complete."""
    seen = Tally(opened(asked))
    observer.progress("w0", "loading the base", 0, 0)
    observer.progress("w0", "tokenising", 5, 10)
    observer.opened(opened(asked))
    for number in range(trials):
        outcome, reason = OUTCOMES.get(number, (Outcome.COMPLETE, None))
        for one in (observer, seen):
            run_trial(one, asked, number, outcome, reason)
    records = list(seen.records.values())
    observer.closed(Closed(complete=True, reason="all trials are done", records=records))
    return records
