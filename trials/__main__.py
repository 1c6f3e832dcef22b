"""Replays one trial alone, from the JSON that a sweep keeps of it: no study, no search space.

    python -m trials results/lora_rank/trials/7.json
    python -m trials results/lora_rank/trials/7.json --device cpu --threads 2 --adapters somewhere
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import IO

from trials.contract import (
    CONTINUE,
    Assignment,
    InputError,
    Outcome,
    Report,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
    from_json,
)
from trials.worker import work

BAD_INPUT = 2  # exit code
RULES: Mapping[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {  # of numbers, all finite
    "at least 0": (lambda number: number >= 0, ("seed", "lora.dropout", "train.warmup",
                                                "train.weight_decay", "train.max_grad_norm")),
    "above 0": (lambda number: number > 0, ("lora.alpha", "train.learning_rate")),
    "at least 1": (lambda number: number >= 1, ("lora.r", "train.batch_size", "budget.examples",
                                                "train.micro_batch_size", "budget.ticks")),
    "below 1": (lambda number: number < 1, ("lora.dropout", "train.warmup")),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code is 0, 1 when the trial ended early, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        trial = read_trial(options.trial)
        _check_trust(trial, options)
        replay = Replay(trial)
        work(_assignment(trial, options), replay)
    except InputError as error:
        _say(str(error), sys.stderr)
        return BAD_INPUT
    return 0 if replay.complete else 1


def read_trial(path: Path) -> TrialConfig:
    """The trial in a JSON file. Raises InputError where there is none."""
    try:
        trial = from_json(TrialConfig, path.read_text())
        _check_numbers(trial)
        return trial
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}. Name a trial's file, as in results/<study>/trials/7.json."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not a trial as a sweep writes it: {error}.") from error


def _check_numbers(trial: TrialConfig) -> None:
    """Raises ValueError for one that a sweep does not write, but a hand may."""
    for rule, (holds, names) in RULES.items():
        for name in names:
            value = attrgetter(name)(trial)
            if value is not None and not (holds(value) and value < math.inf):
                raise ValueError(f"TrialConfig.{name} has to be {rule}, and is {value}")


@dataclass
class Replay:
    """A driver with one trial to give, which prints what it is told."""

    trial: TrialConfig
    complete: bool = False
    _given: bool = field(default=False, init=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """See `trials.contract.Driver`."""
        _say(f"{what} {done}/{total}" if total else what)

    def alive(self, trial: int, attempt: int) -> Verdict:
        """A replay is never stopped, here and below."""
        return CONTINUE

    def note(self, text: str) -> None:
        """Prints it."""
        _say(text)

    def prepared(self, setup: Setup) -> None:
        """Says what was loaded, and where it is not what the trial was run on."""
        device = setup.device
        _say(f"{setup.model.name} ({setup.model.quantisation}, {device.dtype}) on {device.name}")
        if self.trial.data.content_hash not in (None, setup.data.content_hash):
            raise InputError(
                f"the data has changed: the trial saw {self.trial.data.content_hash}, and it is "
                f"now {setup.data.content_hash}. Put the old data back."
            )
        _say(f"untouched base: loss {setup.baseline_loss:.4f}{_right(setup.baseline_accuracy)}")

    def next_trial(self) -> TrialConfig | Turn:
        """See `trials.contract.Driver`."""
        if self._given:
            return Turn.DONE
        self._given = True
        return self.trial

    def report(self, report: Report) -> Verdict:
        """Prints the tick."""
        _say(
            f"tick {report.tick}/{self.trial.budget.ticks}: loss {report.eval_loss:.4f}"
            f"{_right(report.eval_accuracy)}, {report.examples} examples, {report.seconds:.1f} s"
        )
        return CONTINUE

    def finish(self, result: TrialResult) -> None:
        """Prints how the trial ended."""
        self.complete = result.outcome is Outcome.COMPLETE
        reason = f" ({result.reason})" if result.reason else ""
        loss = "none" if result.eval_loss is None else f"{result.eval_loss:.6f}"
        _say(f"trial {result.trial} of {self.trial.study}: {result.outcome.value}{reason}")
        if result.adapter:
            _say(f"adapter: {result.adapter}")
        _say(f"final loss: {loss}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trials",
        description="Replays one trial alone, from the JSON that a sweep keeps of it.",
    )
    parser.add_argument("trial", type=Path, help="a file as results/<study>/trials/7.json")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--adapters", type=Path, metavar="DIR",
                        help="write the adapter to DIR/<trial's number>, in PEFT format")
    parser.add_argument("--trust-remote-code", action="store_true",
                        help="run the code that the trial's base brings along")
    return parser


def _check_trust(trial: TrialConfig, options: argparse.Namespace) -> None:
    """A file that came from somewhere does not decide whose code is run here."""
    if trial.model.trust_remote_code and not options.trust_remote_code:
        raise InputError(
            f"{options.trial}: its base {trial.model.name} brings code of its own. Read that code, "
            "then type --trust-remote-code."
        )


def _assignment(trial: TrialConfig, options: argparse.Namespace) -> Assignment:
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: it must be at least 1.")
    return Assignment(
        study=trial.study,
        worker="replay",
        device=options.device,
        seed=trial.seed,
        model=trial.model,
        data=trial.data,
        engine=trial.engine,
        target_modules=(trial.lora.target_modules,),
        optimizers=(trial.train.optimizer,),
        max_batch_size=trial.train.batch_size,
        packing=trial.train.packing,
        dropout=trial.lora.dropout > 0,
        max_r=trial.lora.r,
        gradient_checkpointing=trial.train.gradient_checkpointing,
        threads=options.threads,
        adapters_dir=None if options.adapters is None else str(options.adapters.absolute()),
    )


def _say(text: str, stream: IO[str] | None = None) -> None:
    """A line for a terminal, which obeys nothing that a model or a file has put into it."""
    shown = (c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    print("".join(shown), file=stream or sys.stdout, flush=True)


def _right(accuracy: float | None) -> str:
    return "" if accuracy is None else f", {accuracy:.1%} exactly right"


if __name__ == "__main__":
    sys.exit(main())
