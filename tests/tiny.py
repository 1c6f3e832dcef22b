"""A tiny random Llama with its tokenizer and data, made on the spot, and a driver that records."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trials.contract import (
    CONTINUE,
    Assignment,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    Report,
    Setup,
    TrainConfig,
    TrialBudget,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 =?"
SEED = 11


def build_base(folder: Path, **shape: int) -> Path:
    """A Llama of some 100,000 random parameters, or another shape; a token is a character."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=64, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False, **small | shape,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def write_data(path: Path, rows: int = 120) -> Path:
    """Prompts of very different lengths whose completion is the digit before the equals sign."""
    draw = random.Random(SEED)
    with path.open("w") as file:
        for _ in range(rows):
            words = "".join(draw.choices("abcdefgh ", k=draw.randint(2, 30)))
            digit = draw.choice("0123456789")
            row = {"prompt": f"{words}{digit}=", "completion": digit * draw.randint(1, 3)}
            file.write(json.dumps(row) + "\n")
    return path


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )


@dataclass
class Tiny:
    """The folder of a base and the file of its data, and what is asked of them by default."""

    base: Path
    data: Path
    quantisation: str = "nf4"
    dtype: str = "fp32"
    device: str = "cpu"

    def assignment(self, **changes: Any) -> Assignment:
        """One for this base and data."""
        given: dict[str, Any] = {
            "study": "tiny", "worker": "w0", "device": self.device, "seed": 3, "threads": 1,
            "model": ModelConfig(
                name=str(self.base), quantisation=self.quantisation, dtype=self.dtype
            ),
            "data": DataConfig(
                format="completion", path=str(self.data), eval_size=20, max_length=64,
                prompt_column="prompt", completion_column="completion",
            ),
            "engine": EngineConfig(name="trl"),
            "target_modules": ("all-linear",),
            "optimizers": ("adamw",),
        }
        return Assignment(**given | changes)

    def trial(
        self, number: int = 0, *, seed: int = 3, examples: int = 32, ticks: int = 2,
        lora: dict[str, Any] | None = None, **train: Any,
    ) -> TrialConfig:
        """A short trial; `train` has fields of TrainConfig."""
        assigned = self.assignment()
        return TrialConfig(
            study="tiny", number=number, attempt=0, seed=seed,
            model=assigned.model, data=assigned.data, engine=assigned.engine,
            lora=LoraConfig(**{"r": 4, "alpha": 8.0, "dropout": 0.2} | (lora or {})),
            train=TrainConfig(**{"learning_rate": 0.01, "batch_size": 8} | train),
            budget=TrialBudget(examples=examples, ticks=ticks),
        )


def made_in(folder: Path, **changes: Any) -> Tiny:
    """A tiny base and its data, written into `folder`."""
    return Tiny(build_base(folder / "base"), write_data(folder / "data.jsonl"), **changes)


@dataclass
class Recorder:
    """A driver that hands out given trials and keeps what it is told."""

    trials: list[TrialConfig] = field(default_factory=list)
    answer: Callable[[Report], Verdict] = lambda report: CONTINUE
    setup: Setup | None = None
    shown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    results: list[TrialResult] = field(default_factory=list)

    def progress(self, what: str, done: int, total: int) -> None:
        self.shown.append(what)

    def alive(self, trial: int, attempt: int) -> Verdict:
        return CONTINUE

    def note(self, text: str) -> None:
        self.notes.append(text)

    def prepared(self, setup: Setup) -> None:
        self.setup = setup

    def next_trial(self) -> TrialConfig | Turn:
        if not self.trials:
            return Turn.DONE
        assert self.setup is not None
        return replace(self.trials.pop(0), model=self.setup.model, data=self.setup.data)

    def report(self, report: Report) -> Verdict:
        self.reports.append(report)
        return self.answer(report)

    def finish(self, result: TrialResult) -> None:
        self.results.append(result)

    def losses(self, trial: int) -> list[float]:
        """Every train loss and every evaluation loss of a trial, in order."""
        return [
            loss for report in self.reports if report.trial == trial
            for loss in (*(point.train_loss for point in report.history), report.eval_loss)
        ]
