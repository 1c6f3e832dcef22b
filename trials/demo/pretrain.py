"""Rebuilds the embedded base model and its tokenizer, from text that `trials.demo.text` generates.

    python -m trials.demo.pretrain --device cuda     # 3 minutes on an H200: trials/assets/demo
    python -m trials.demo.pretrain --steps 20 --documents 500 --out /tmp/demo     # a look, on a CPU

Everything follows from the seed and the options; another device's kernels change the last bits.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trials.demo import text

ASSETS = Path(__file__).parent.parent / "assets" / "demo"
LENGTH = 96  # tokens; one document in twenty is longer and is cut
PAD, BOS, EOS = 0, 1, 2
CHUNK = 1000  # documents that one process makes at a time


def main(argv: list[str] | None = None) -> None:
    """Train the tokenizer, then the base, and write both."""
    options = parse(argv)
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(options.seed)
    rows = documents(tokenizer, options.documents, options.seed)
    model = build(len(tokenizer)).to(options.device)
    train(model, rows, options)
    save(model, tokenizer, options)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; the defaults are those of the model in trials/assets/demo."""
    parser = argparse.ArgumentParser(prog="python -m trials.demo.pretrain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=512, help="documents in a step")
    parser.add_argument("--documents", type=int, default=400_000, help="different documents")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ASSETS)
    return parser.parse_args(argv)


def train_tokenizer(seed: int) -> Any:
    """A byte-level BPE with single digits: it covers any text, and reads prices digit by digit."""
    core = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex("[0-9]"), "isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, spelling])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(text.neighbours(4000, seed=seed), _trainer())
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    load: Any = PreTrainedTokenizerFast  # untyped in transformers
    return load(tokenizer_object=core, model_max_length=512, **names)


def _trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def documents(tokenizer: Any, count: int, seed: int) -> torch.Tensor:
    """Token rows of `count` documents, each with its end token, padded or cut to `LENGTH`."""
    jobs = [(tokenizer, min(CHUNK, count - at), seed, at) for at in range(0, count, CHUNK)]
    if len(jobs) == 1:
        return torch.from_numpy(_rows(jobs[0]))
    with multiprocessing.get_context("fork").Pool() as pool:
        return torch.from_numpy(np.concatenate(pool.map(_rows, jobs, chunksize=1)))


def _rows(job: tuple[Any, int, int, int]) -> NDArray[np.int16]:
    tokenizer, count, seed, start = job
    rows = np.full((count, LENGTH), PAD, dtype=np.int16)
    docs = text.neighbours(count, seed=seed, start=start)
    for row, ids in zip(rows, tokenizer(docs)["input_ids"], strict=True):
        ids = [*ids, EOS][:LENGTH]
        row[: len(ids)] = ids
    return rows


def build(vocabulary: int) -> LlamaForCausalLM:
    """A Llama of 3.3 million parameters; linear sizes are multiples of 64, the block of NF4."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, rows: torch.Tensor, options: argparse.Namespace) -> None:
    """AdamW with a linear warm-up and a cosine decay to zero, on whole documents."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    rows, generator = rows.to(options.device), torch.Generator().manual_seed(options.seed)
    began = time.time()
    for step in range(options.steps):
        picks = torch.randint(len(rows), (options.batch,), generator=generator)
        loss = _update(model, rows[picks.to(rows.device)].long(), optimizer)
        schedule.step()
        if step % 200 == 0 or step == options.steps - 1:
            print(f"step {step}  loss {loss.item():.4f}  {time.time() - began:.0f} s", flush=True)


def _update(
    model: LlamaForCausalLM, batch: torch.Tensor, optimizer: torch.optim.Optimizer
) -> torch.Tensor:
    kind = batch.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        targets = batch[:, 1:].flatten()
        loss = cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=PAD)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def save(model: LlamaForCausalLM, tokenizer: Any, options: argparse.Namespace) -> None:
    """Weights in bf16, configuration, tokenizer, and a note on where they come from."""
    torch.nn.Module.to(model, "cpu", torch.bfloat16)  # transformers leaves its own `to` untyped
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    (options.out / "README.md").write_text(_note(model.num_parameters(), options))


def _note(parameters: int, options: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "a CPU"
    return f"""# The demo base

A Llama-architecture model of {parameters:,} parameters and its tokenizer, made by

    python -m trials.demo.pretrain --device {options.device} --seed {options.seed} \\
        --steps {options.steps} --batch {options.batch} --documents {options.documents} \\
        --learning-rate {options.learning_rate}

on {device} with torch {torch.__version__}. Another device or version changes the last bits, and
training carries such differences on.

Its text is generated by `trials/demo/text.py`: products and questions about them, never their
prices. No other data went into it, so it carries the licence of this repository (Apache-2.0). It
serves this project's demo and tests, and knows nothing else.
"""


if __name__ == "__main__":
    main()
