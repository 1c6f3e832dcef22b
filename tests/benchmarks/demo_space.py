"""Does the demo make a sweep meaningful? Trains real trials over the space of `+search=full`.

    python -m tests.benchmarks.demo_space                    # about half an hour on two free cores
    python -m tests.benchmarks.demo_space --workers 8        # minutes on sixteen
    python -m tests.benchmarks.demo_space --random 4 --knobs r --seeds 2     # a few minutes

Each knob alone is moved from a good configuration (those that must matter over all seeds), and
random configurations fill the space. Printed: losses, shares of exactly right prices, and PASS or
FAIL for each demand on the demo: far below the base and below the worst, little noise, and knobs
that make a difference.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from random import Random
from typing import Any

from tests.tiny import Recorder
from trials.contract import (
    CONTINUE,
    Assignment,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    Outcome,
    Report,
    Setup,
    TrainConfig,
    TrialBudget,
    TrialConfig,
    TrialResult,
    Verdict,
)
from trials.worker import work

KNOBS: dict[str, list[Any]] = {
    "r": [4, 8, 16, 32, 64],
    "target_modules": ["qv", "attention", "mlp", "all-linear"],
    "learning_rate": [1e-4, 3e-4, 1e-3, 2e-3, 5e-3],
    "alpha_ratio": [0.5, 1, 2, 4],
    "batch_size": [4, 8, 16, 32],
    "scheduler": ["constant", "linear", "cosine"],
    "warmup": [0.0, 0.03, 0.1],
    "dropout": [0.0, 0.1, 0.2],
}
GOOD: dict[str, Any] = {
    "r": 16, "target_modules": "all-linear", "learning_rate": 2e-3, "alpha_ratio": 2,
    "batch_size": 8, "scheduler": "linear", "warmup": 0.03, "dropout": 0.0, "seed": 0,
}
RATES = (5e-5, 5e-3)  # between which a random learning rate lies, as in conf/search/full.yaml
WARMUP, DROPOUT = 0.2, 0.2  # the most, likewise
MUST_MATTER = ("r", "target_modules", "learning_rate")
EVENLY_GUESSED = 2.4  # nats; a loss above it has diverged (ten digits: 2.3)

Point = dict[str, Any]
Trained = tuple[TrialResult, list[float]]  # with its curve


@dataclass(frozen=True)
class Part:
    """What one process trained, by number."""

    setup: Setup
    trained: dict[int, Trained]


def main() -> None:
    """Trains all points and prints what they show; exits with 1 if a demand is not met."""
    options = parse()
    points = choose(options)
    configs = [trial(number, point, options) for number, point in enumerate(points)]
    if options.workers == 1:
        parts = [train(configs, options)]
    else:
        shares = [configs[worker :: options.workers] for worker in range(options.workers)]
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(train, shares, [options] * options.workers))
    trained = {number: found for part in parts for number, found in part.trained.items()}
    ended = [(point, *trained[number]) for number, point in enumerate(points)]
    show_knobs(ended, options.knobs)
    raise SystemExit(0 if show_demands(ended, parts[0].setup) else 1)


def train(configs: list[TrialConfig], options: argparse.Namespace) -> Part:
    """Trains a share of the trials in this process."""
    driver = Watching(configs)
    work(assignment(options), driver)
    assert driver.setup is not None
    numbers = [config.number for config in configs]
    return Part(driver.setup, {n: (driver.ended(n), driver.curve(n)) for n in numbers})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.demo_space")
    parser.add_argument("--random", type=int, default=24, help="random configurations")
    parser.add_argument("--knobs", nargs="*", default=list(KNOBS), choices=list(KNOBS))
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the good configuration")
    parser.add_argument("--examples", type=int, default=1200)
    parser.add_argument("--ticks", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, default=None, help="of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="trl")
    return parser.parse_args()


def choose(options: argparse.Namespace) -> list[Point]:
    """The good point first, its seeds, its neighbours along each knob, then random ones."""
    seeds = range(max(1, options.seeds))
    points = [GOOD | {"seed": seed} for seed in seeds]
    for knob in options.knobs:
        moved = [GOOD | {knob: value} for value in KNOBS[knob] if value != GOOD[knob]]
        repeats = seeds if knob in MUST_MATTER else (0,)
        points += [point | {"seed": seed} for point in moved for seed in repeats]
    return points + [random_point(Random(number)) for number in range(options.random)]


def random_point(random: Random) -> Point:
    """A point of the whole space."""
    point = {knob: random.choice(values) for knob, values in KNOBS.items()}
    warmup = 0.0 if point["scheduler"] == "constant" else random.uniform(0, WARMUP)
    rate = math.exp(random.uniform(*map(math.log, RATES)))
    dropout = random.uniform(0, DROPOUT)
    return point | {"learning_rate": rate, "warmup": warmup, "dropout": dropout, "seed": 0}


def trial(number: int, point: Point, options: argparse.Namespace) -> TrialConfig:
    """A point as a complete trial."""
    train = ("learning_rate", "scheduler", "warmup", "batch_size")
    given = assignment(options)
    return TrialConfig(
        study="demo_space", number=number, attempt=0, seed=point["seed"],
        model=given.model, data=given.data, engine=given.engine,
        lora=LoraConfig(
            r=point["r"], alpha=point["alpha_ratio"] * point["r"],
            dropout=point["dropout"], target_modules=point["target_modules"],
        ),
        train=TrainConfig(**{name: point[name] for name in train}),
        budget=TrialBudget(examples=options.examples, ticks=options.ticks),
    )


def assignment(options: argparse.Namespace) -> Assignment:
    """The demo's base and data, as the default sweep has them."""
    return Assignment(
        study="demo_space", worker="benchmark", device=options.device, seed=0,
        model=ModelConfig(name="demo"),
        data=DataConfig(format="demo", train_size=2000, eval_size=96, max_length=64),
        engine=EngineConfig(name=options.engine), threads=options.threads,
        target_modules=tuple(KNOBS["target_modules"]), optimizers=("adamw",),
    )


class Watching(Recorder):
    """A recorder that shows each trial as it ends."""

    def __init__(self, trials: Sequence[TrialConfig]) -> None:
        super().__init__(trials=list(trials))
        self.configs = {trial.number: trial for trial in trials}
        self.began = time.time()

    def report(self, report: Report) -> Verdict:
        self.reports.append(report)
        return CONTINUE

    def finish(self, result: TrialResult) -> None:
        self.results.append(result)
        config = self.configs[result.trial]
        curve = " ".join(f"{loss:.2f}" for loss in self.curve(result.trial))
        right = result.eval_accuracy or 0.0
        steps_per_s = result.examples / config.train.batch_size / max(result.seconds, 1e-9)
        print(f"{time.time() - self.began:5.0f} s  {show(config)}  {curve}  exact {right:.0%}  "
              f"{steps_per_s:.1f} steps/s  {result.outcome.value}", flush=True)

    def curve(self, number: int) -> list[float]:
        """A trial's evaluation losses, tick by tick."""
        return [report.eval_loss for report in self.reports if report.trial == number]

    def ended(self, number: int) -> TrialResult:
        """A trial's result; one that went astray counts as endlessly bad."""
        result = next(result for result in self.results if result.trial == number)
        return result if result.eval_loss is not None else replace(result, eval_loss=float("inf"))


def show(config: TrialConfig) -> str:
    """A trial's configuration on one line."""
    lora, train = config.lora, config.train
    return (f"r {lora.r:2} x{lora.alpha / lora.r:<3g} {str(lora.target_modules):10} "
            f"drop {lora.dropout:.2f} lr {train.learning_rate:.1e} {train.scheduler:8} "
            f"warm {train.warmup:.2f} batch {train.batch_size:2} seed {config.seed}")


Ended = list[tuple[Point, TrialResult, list[float]]]


def show_knobs(ended: Ended, knobs: Sequence[str]) -> None:
    """For each knob, the mean loss and the share of right prices where it alone was moved."""
    for knob in knobs:
        alone = moved_alone(ended, knob)
        cells = [
            f"{value}: {statistics.fmean(map(loss, alone[value])):.3f}"
            f" ({statistics.fmean(r.eval_accuracy or 0 for r in alone[value]):.0%})"
            for value in KNOBS[knob] if value in alone
        ]
        print(f"{knob:15} " + "   ".join(cells))


def moved_alone(ended: Ended, knob: str) -> dict[Any, list[TrialResult]]:
    """By a knob's value, the results of all seeds where everything else was good."""
    found: dict[Any, list[TrialResult]] = {}
    for point, result, _ in ended:
        if all(point[other] == GOOD[other] for other in GOOD if other not in (knob, "seed")):
            found.setdefault(point[knob], []).append(result)
    return found


def show_demands(ended: Ended, setup: Setup) -> bool:
    """Whether the demo's demands are met, each on a line."""
    base, base_right = setup.baseline_loss, setup.baseline_accuracy
    sound = [(result, curve) for _, result, curve in ended if converged(result)]
    results = [result for result, _ in sound]
    best, worst = min(results, key=loss), max(results, key=loss)
    repeated = [loss(r) for p, r, _ in ended if p == GOOD | {"seed": p["seed"]}]
    noise = statistics.stdev(repeated) if len(repeated) > 1 else math.nan
    spread = max(loss(worst) - loss(best), 1e-9)
    early = correlation([curve[1] for _, curve in sound], [loss(r) for r in results])
    print(f"\nbase {base:.3f} ({base_right or 0:.0%} exact), best {loss(best):.3f} "
          f"({best.eval_accuracy or 0:.0%} exact), worst {loss(worst):.3f}, of {len(ended)} trials "
          f"{len(ended) - len(sound)} diverged; seed deviation {noise:.3f}")
    return all([  # a list: every line is printed
        demand("best below the base, share", 1 - loss(best) / base, ">=", 0.30),
        demand("best below the worst, share", 1 - loss(best) / loss(worst), ">=", 0.15),
        demand("seed deviation / spread", noise / spread, "<", 0.20),
        *(demand(f"difference by {knob} / seed deviation", reach(ended, knob) / noise, ">=", 2.0)
          for knob in MUST_MATTER),
        demand("rank correlation, second tick with last", early, ">=", 0.5),
    ])


def converged(result: TrialResult) -> bool:
    """Whether a trial came to its end with a loss better than an even guess."""
    return result.outcome is Outcome.COMPLETE and loss(result) < EVENLY_GUESSED


def reach(ended: Ended, knob: str) -> float:
    """How far apart a knob's values are in mean loss; unknown where it was not moved."""
    means = [statistics.fmean(map(loss, found)) for found in moved_alone(ended, knob).values()]
    return max(means) - min(means) if len(means) > 1 else math.nan


def demand(what: str, value: float, sign: str, bound: float) -> bool:
    """Prints one demand and says whether it is met; one that was not measured is not."""
    compare: Callable[[float, float], bool] = float.__ge__ if sign == ">=" else float.__lt__
    met = compare(float(value), bound)
    print(f"{'PASS' if met else 'FAIL'}  {what}: {value:.3f} (must be {sign} {bound})")
    return met


def loss(result: TrialResult) -> float:
    """The last evaluation loss."""
    assert result.eval_loss is not None
    return result.eval_loss


def correlation(first: list[float], second: list[float]) -> float:
    """Spearman's: the correlation of ranks."""
    ranks = [[sorted(values).index(value) for value in values] for values in (first, second)]
    return statistics.correlation(*ranks) if len(first) > 2 else math.nan


if __name__ == "__main__":
    main()
