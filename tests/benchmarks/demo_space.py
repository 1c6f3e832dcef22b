"""Does the demo make a sweep meaningful? Trains real trials over the space of `+search=full`.

    python -m tests.benchmarks.demo_space                    # about half an hour on two free cores
    python -m tests.benchmarks.demo_space --random 4 --knobs r --seeds 2     # a few minutes

Each knob alone is moved from a good configuration, seeds are repeated, and random configurations
fill the space. Printed: losses, shares of exactly right prices, and the four demands of the demo.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    Report,
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
RATES = (-4.0, -2.3)  # powers of ten between which a random learning rate lies
EVENLY_GUESSED = 2.4  # nats; a loss above it has diverged (ten digits: 2.3)

Point = dict[str, Any]


def main() -> None:
    """Trains all points and prints what they show; exits with 1 if a demand is not met."""
    options = parse()
    points = choose(options)
    driver = Watching([trial(number, point, options) for number, point in enumerate(points)])
    work(assignment(options), driver)
    ended = [(point, driver.ended(number)) for number, point in enumerate(points)]
    show_knobs(ended, options.knobs)
    raise SystemExit(0 if show_demands(ended, driver) else 1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.demo_space")
    parser.add_argument("--random", type=int, default=24, help="random configurations")
    parser.add_argument("--knobs", nargs="*", default=list(KNOBS), choices=list(KNOBS))
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the good configuration")
    parser.add_argument("--examples", type=int, default=1200)
    parser.add_argument("--ticks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="trl")
    return parser.parse_args()


def choose(options: argparse.Namespace) -> list[Point]:
    """The good point first, its seeds, its neighbours along each knob, then random ones."""
    points = [GOOD | {"seed": seed} for seed in range(max(1, options.seeds))]
    for knob in options.knobs:
        points += [GOOD | {knob: value} for value in KNOBS[knob] if value != GOOD[knob]]
    return points + [random_point(Random(number)) for number in range(options.random)]


def random_point(random: Random) -> Point:
    """A point of the whole space."""
    point = {knob: random.choice(values) for knob, values in KNOBS.items()}
    point |= {"learning_rate": 10 ** random.uniform(*RATES), "warmup": random.uniform(0, 0.1)}
    return point | {"dropout": random.uniform(0, 0.2), "seed": 0}


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
        data=DataConfig(format="demo", train_size=2000, eval_size=200, max_length=64),
        engine=EngineConfig(name=options.engine), threads=options.threads,
        target_modules=tuple(KNOBS["target_modules"]), optimizers=("adamw",),
    )


class Watching(Recorder):
    """A recorder that shows each trial as it ends."""

    def __init__(self, trials: Sequence[TrialConfig]) -> None:
        super().__init__(trials=list(trials))
        self.configs = list(trials)
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


Ended = list[tuple[Point, TrialResult]]


def show_knobs(ended: Ended, knobs: Sequence[str]) -> None:
    """For each knob, the loss and the share of right prices where it alone was moved."""
    for knob in knobs:
        alone = {
            point[knob]: result for point, result in ended
            if all(point[other] == GOOD[other] for other in GOOD if other != knob)
        }
        known = (value for value in KNOBS[knob] + [GOOD[knob]] if value in alone)
        cells = {
            value: f"{value}: {loss(alone[value]):.3f} ({alone[value].eval_accuracy or 0:.0%})"
            for value in known
        }
        print(f"{knob:15} " + "   ".join(cells.values()))


def show_demands(ended: Ended, driver: Watching) -> bool:
    """Whether the demo's demands are met, each on a line."""
    assert driver.setup is not None
    base, base_right = driver.setup.baseline_loss, driver.setup.baseline_accuracy
    sound = [result for _, result in ended if loss(result) < EVENLY_GUESSED]
    best, worst = min(sound, key=loss), max(sound, key=loss)
    repeated = [loss(r) for p, r in ended if p == GOOD | {"seed": p["seed"]}]
    noise = statistics.stdev(repeated) if len(repeated) > 1 else 0.0
    spread = loss(worst) - loss(best)
    early = correlation([driver.curve(r.trial)[1] for r in sound], [loss(r) for r in sound])
    print(f"\nbase {base:.3f} ({base_right or 0:.0%} exact), best {loss(best):.3f} "
          f"({best.eval_accuracy or 0:.0%} exact), worst {loss(worst):.3f}, of {len(ended)} trials "
          f"{len(ended) - len(sound)} diverged")
    return all([
        demand("best below the base, share", 1 - loss(best) / base, ">=", 0.30),
        demand("best below the worst, share", 1 - loss(best) / loss(worst), ">=", 0.15),
        demand("seed deviation / spread", noise / max(spread, 1e-9), "<", 0.20),
        demand("rank correlation, second tick with last", early, ">=", 0.5),
    ])


def demand(what: str, value: float, sign: str, bound: float) -> bool:
    """Prints one demand and says whether it is met."""
    compare: Callable[[float, float], bool] = float.__ge__ if sign == ">=" else float.__lt__
    met = compare(float(value), bound)
    print(f"{'ok  ' if met else 'FAIL'}  {what}: {value:.3f} (must be {sign} {bound})")
    return met


def loss(result: TrialResult) -> float:
    """The last evaluation loss."""
    assert result.eval_loss is not None
    return result.eval_loss


def correlation(first: list[float], second: list[float]) -> float:
    """Spearman's: the correlation of ranks."""
    ranks = [[sorted(values).index(value) for value in values] for values in (first, second)]
    return statistics.correlation(*ranks) if len(first) > 2 else 1.0


if __name__ == "__main__":
    main()
