"""Bases to test with: the demo's, and folders with randomly initialised ones of any family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trials.base import Base, load_base
from trials.base.origin import DEMO
from trials.contract import ModelConfig
from trials.quiet import quiet

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_LIKE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
              "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    "OPT": {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 64},
    "Phi3": {**LLAMA_LIKE, "num_key_value_heads": 2},
}


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def load(**settings: Any) -> Base:
    """The demo base, or another one, on the CPU."""
    return load_base(ModelConfig(**{"name": "demo", **settings}), "cpu", silent)


SEED = 1  # of the weights, so that a test sees the same base whichever tests ran before it


def random_base(folder: Path, kind: str, **sizes: Any) -> str:
    """Puts a randomly initialised base of an architecture into `folder`, the demo's tokenizer too.

    Some tokenizer classes add tokens of their own, so the vocabulary is a little larger.
    """
    import torch
    import transformers

    options = {**SIZES.get(kind, LLAMA_LIKE), "vocab_size": 1100, "pad_token_id": 0,
               "bos_token_id": 1, "eos_token_id": 2, **sizes}
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        config = getattr(transformers, f"{kind}Config")(**options)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)
