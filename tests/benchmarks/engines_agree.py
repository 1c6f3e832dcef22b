"""Do both engines train the same trials to the same losses? Sixteen trials of the demo, compared.

    python -m tests.benchmarks.engines_agree --workers 2              # minutes on two free cores
    python -m tests.benchmarks.engines_agree --trials 0 5 --ways 3 --examples 96

Each trial runs under engine=packed, in one pack of eight slots that take the next trial as soon as
one has ended, and under engine=trl several times: as it is, with micro-batches of another size, and
with the rows of each batch in other orders. Those runs differ in rounding alone, so the largest
difference between two of their final losses is the trial's noise floor. Demanded: packed and TRL
(as it is) differ by at most twice the trial's own noise floor, and Spearman's rank correlation over
all trials. Everything is in fp32 on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from random import Random
from typing import Any

from tests.tiny import Recorder
from trials.contract import (
    Assignment,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    Outcome,
    TrainConfig,
    TrialBudget,
    TrialConfig,
)
from trials.worker import work

# Rates are moderate: at large ones rounding grows until two runs of one engine have little in
# common, and nothing is learnt from comparing them. Budgets differ so that outcomes do.
TRIALS: tuple[dict[str, Any], ...] = (
    {"r": 4, "alpha": 16, "dropout": 0.05, "batch_size": 16, "learning_rate": 2e-4,
     "max_grad_norm": 0.3, "examples": 320},
    {"r": 4, "alpha": 8, "dropout": 0.05, "target_modules": "qv", "learning_rate": 1e-3,
     "examples": 240},
    {"r": 32, "alpha": 32, "dropout": 0.2, "target_modules": "mlp", "learning_rate": 5e-4,
     "scheduler": "constant", "weight_decay": 0.1, "examples": 192},
    {"r": 16, "alpha": 32, "dropout": 0.1, "target_modules": "attention", "learning_rate": 3e-4,
     "warmup": 0.2, "examples": 320},
    {"r": 8, "alpha": 8, "dropout": 0.15, "learning_rate": 1e-3, "scheduler": "inverse_sqrt",
     "group_by_length": True, "examples": 320},
    {"r": 32, "alpha": 64, "dropout": 0.05, "learning_rate": 3e-4, "scheduler": "polynomial",
     "examples": 160},
    {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": "attention", "learning_rate": 2e-3,
     "scheduler": "cosine", "warmup": 0.1, "examples": 480},
    {"r": 16, "alpha": 32, "dropout": 0.05, "learning_rate": 1e-3, "warmup": 0.03,
     "examples": 480},
    {"r": 8, "alpha": 16, "dropout": 0.1, "batch_size": 4, "learning_rate": 7e-4,
     "group_by_length": True, "examples": 360},
    {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": "mlp", "learning_rate": 2e-3,
     "weight_decay": 0.01, "packing": True, "examples": 480},
    {"r": 16, "alpha": 32, "dropout": 0.05, "batch_size": 16, "learning_rate": 1e-3,
     "scheduler": "cosine", "packing": True, "examples": 320},
    {"r": 32, "alpha": 64, "dropout": 0.1, "target_modules": "qv", "batch_size": 4,
     "learning_rate": 1e-3, "scheduler": "warmup_stable_decay", "warmup": 0.05, "examples": 400},
    {"r": 16, "alpha": 16, "dropout": 0.2, "target_modules": "mlp", "batch_size": 4,
     "learning_rate": 1e-3, "scheduler": "cosine_with_restarts", "examples": 440},
    {"r": 32, "alpha": 64, "dropout": 0.1, "learning_rate": 1e-3, "scheduler": "constant",
     "weight_decay": 0.05, "examples": 520},
    {"r": 16, "alpha": 32, "dropout": 0.1, "learning_rate": 0.02, "optimizer": "sgd",
     "scheduler": "constant", "examples": 160},
    {"r": 8, "alpha": 32, "dropout": 0.05, "batch_size": 4, "learning_rate": 0.05,
     "optimizer": "sgd", "weight_decay": 1e-3, "examples": 160},
)
LORA = ("r", "alpha", "dropout", "target_modules")
CORRELATION = 0.98  # at least
NOISES = 2.0  # a difference is at most so many noise floors
RESOLUTION = 1e-6  # nats; fp32 logits cannot tell losses apart that are nearer


@dataclass(frozen=True)
class Way:
    """One way to run the trials: under `engine`, with that many rows per forward, in that order."""

    name: str
    engine: str = "trl"
    rows: int | None = None
    order: int | None = None  # a seed; None: as the engine has it


PACKED = Way("packed", engine="packed")
TRL = (
    Way("as it is"),
    Way("micro-batches of 3", rows=3),
    *(Way(f"row order {seed}", order=seed) for seed in (1, 2, 3)),
)


@dataclass(frozen=True)
class Compared:
    """A trial's final losses in nats: packed, and TRL's in all ways, as it is first."""

    trial: int
    packed: float
    trl: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Between packed and TRL."""
        return abs(self.packed - self.trl[0])

    @property
    def noise(self) -> float:
        """The noise floor: the largest difference between two of TRL's runs."""
        return max(max(self.trl) - min(self.trl), RESOLUTION)

    @property
    def agrees(self) -> bool:
        """Whether the trial's demand is met."""
        return self.difference <= NOISES * self.noise


def main() -> None:
    """Prints the table and the demands; exits with 1 if one is not met."""
    options = parse()
    found = compare(options.trials, TRL[: options.ways], examples=options.examples,
                    threads=options.threads, workers=options.workers)
    show(found)
    raise SystemExit(0 if demands_met(found) else 1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines_agree")
    every = range(len(TRIALS))
    parser.add_argument("--trials", type=int, nargs="+", default=[*every], choices=every)
    parser.add_argument("--ways", type=int, default=len(TRL), choices=range(2, len(TRL) + 1),
                        help="runs of each trial under engine=trl")
    parser.add_argument("--examples", type=int, help="of each trial (default: its own number)")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    return parser.parse_args()


def compare(
    trials: Sequence[int], ways: Sequence[Way] = TRL, *, examples: int | None = None,
    threads: int = 1, workers: int = 1,
) -> list[Compared]:
    """Runs the trials (by their places in TRIALS) in all ways."""
    train = partial(final_losses, trials=tuple(trials), examples=examples, threads=threads)
    if workers == 1:
        packed, *trl = map(train, (PACKED, *ways))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            packed, *trl = pool.map(train, (PACKED, *ways))
    return [Compared(number, packed[number], tuple(losses[number] for losses in trl))
            for number in trials]


def final_losses(
    way: Way, trials: tuple[int, ...], examples: int | None, threads: int
) -> dict[int, float]:
    """The last evaluation loss of each trial, trained in one way."""
    results = trained(way, trials, examples, threads).results
    assert all(result.outcome is Outcome.COMPLETE for result in results)
    return {result.trial: float(result.eval_loss or 0.0) for result in results}


def trained(
    way: Way, trials: tuple[int, ...], examples: int | None = None, threads: int = 1
) -> Recorder:
    """The trials run in one way, with all that was told of them."""
    given = assignment(way.engine, threads)
    driver = Recorder([configuration(number, given, way, examples) for number in trials])
    with reordered(way.order):
        work(given, driver)
    return driver


def assignment(engine: str, threads: int) -> Assignment:
    """The demo's base and data; rows are wide enough for packing to put several examples in one."""
    options = {"capacity": 8} if engine == "packed" else {}
    return Assignment(
        study="engines_agree", worker="benchmark", device="cpu", seed=0, threads=threads,
        model=ModelConfig(name="demo"),
        data=DataConfig(format="demo", train_size=2000, eval_size=96, max_length=128),
        engine=EngineConfig(name=engine, options=options), packing=True,
        target_modules=("all-linear", "attention", "mlp", "qv"), optimizers=("adamw", "sgd"),
    )


def configuration(
    number: int, given: Assignment, way: Way, examples: int | None
) -> TrialConfig:
    """Trial `number` as it is run in one way."""
    chosen = {"target_modules": "all-linear"} | TRIALS[number]
    own = chosen.pop("examples")
    lora = LoraConfig(**{name: chosen.pop(name) for name in LORA})
    return TrialConfig(
        study=given.study, number=number, attempt=0, seed=number, model=given.model,
        data=given.data, engine=given.engine, lora=lora,
        train=TrainConfig(**chosen, micro_batch_size=way.rows),
        budget=TrialBudget(examples=examples or own, ticks=1),
    )


@contextmanager
def reordered(seed: int | None) -> Iterator[None]:
    """Within, the TRL engine takes the rows of a forward in another order, drawn by `seed`."""
    from trials.engines import trl_trainer

    split, random = trl_trainer.split, Random(seed)
    if seed is not None:
        trl_trainer.split = lambda rows, limit: (
            random.sample(group, len(group)) for group in split(rows, limit))
    try:
        yield
    finally:
        trl_trainer.split = split


def show(found: Sequence[Compared]) -> None:
    """The table, the lowest loss first."""
    print("trial  packed    trl       difference  noise floor  ratio  what")
    for row in sorted(found, key=lambda row: row.packed):
        print(f"{row.trial:5}  {row.packed:.6f}  {row.trl[0]:.6f}  {row.difference:10.1e}  "
              f"{row.noise:11.1e}  {row.difference / row.noise:5.2f}  {described(row.trial)}")


def described(number: int) -> str:
    """What a trial has, in the words of its fields."""
    return " ".join(f"{name}={value}" for name, value in TRIALS[number].items())


def demands_met(found: Sequence[Compared]) -> bool:
    """Whether all demands are met, each on a line."""
    apart = [row.trial for row in found if not row.agrees]
    rank = rank_correlation(found)
    print(f"\n{'FAIL' if apart else 'PASS'}  packed and TRL differ by at most {NOISES:g} noise "
          f"floors: {len(found) - len(apart)} of {len(found)} trials")
    print(f"{'PASS' if rank >= CORRELATION else 'FAIL'}  rank correlation: {rank:.4f} "
          f"(must be at least {CORRELATION})")
    losses = sorted(row.trl[0] for row in found)
    gap = min(after - before for before, after in pairwise(losses))
    print(f"losses from {losses[0]:.3f} to {losses[-1]:.3f}, at least {gap:.4f} apart")
    return not apart and rank >= CORRELATION


def rank_correlation(found: Sequence[Compared]) -> float:
    """Spearman's, of the final losses under both engines."""
    from scipy.stats import spearmanr

    return float(spearmanr([row.packed for row in found], [row.trl[0] for row in found])[0])


if __name__ == "__main__":
    main()
