"""Bases of true shapes with random weights, and rows of so many tokens, for the benchmarks.

    python -m tests.benchmarks.shapes 1B /tmp/bases/1B --device cuda
    python -m tests.benchmarks.shapes 1B /tmp/bases/1B-bf16 --device cuda --quantisation none

Weights are drawn on the device and written tensor by tensor, as 4-bit ones already (NF4 with double
quantisation, in the form that transformers itself writes), so that the processes of a benchmark
start quickly. The tokenizer is the demo's, whose every digit is one token.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials.demo import BASE as DEMO

POSITIONS = 2048
STD = 0.02  # of every weight, as these models are initialised: losses and gradients stay finite
SHARD_BYTES = 2 * 2**30
AROUND = 1  # the beginning that the tokenizer puts before a text; its end is predicted, not read


@dataclass(frozen=True)
class Shape:
    """What decides a base's speed. `kind` is the configuration's class, less `Config`."""

    kind: str
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """A layer's linear modules: inputs and outputs by name."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.width, q), "k_proj": (self.width, kv), "v_proj": (self.width, kv),
            "o_proj": (q, self.width), "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner), "down_proj": (self.inner, self.width),
        }  # fmt: skip


SHAPES = {
    "tiny": Shape("Llama", 1100, 64, 128, 2, 2, 1, 32, True),
    "0.5B": Shape("Qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),  # Qwen2.5-0.5B
    "1B": Shape("Llama", 128256, 2048, 8192, 16, 32, 8, 64, True),  # Llama-3.2-1B
    "8B": Shape("Llama", 128256, 4096, 14336, 32, 32, 8, 128, False),  # Llama-3.1-8B
}


def save_base(shape: Shape, folder: Path, device: str, quantisation: str = "nf4") -> Path:
    """Writes a base of this shape into `folder`, unless a complete one is there already."""
    if (folder / "config.json").exists():  # written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)
    dtype = "float32" if device == "cpu" else "bfloat16"  # what `model.dtype=auto` computes in
    _write_weights(_weights(shape, device, dtype, quantisation), folder)
    configuration(shape, dtype, quantisation).save_pretrained(folder)
    return folder


def write_rows(path: Path, lengths: Sequence[int], seed: int = 0) -> Path:
    """JSONL of one `text` of random digits for each length: in tokens that the base reads."""
    draw = random.Random(seed)
    texts = ("".join(draw.choices("0123456789", k=length - AROUND)) for length in lengths)
    aside = path.with_suffix(".part")
    aside.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return aside.replace(path)


def log_uniform(count: int, least: int, most: int, seed: int = 0) -> list[int]:
    """Whole numbers whose logarithms are spread evenly."""
    draw = random.Random(seed)
    return [round(math.exp(draw.uniform(math.log(least), math.log(most)))) for _ in range(count)]


def configuration(shape: Shape, dtype: str, quantisation: str) -> Any:
    """The configuration of transformers; `quantisation` none for one without."""
    import transformers

    config = getattr(transformers, f"{shape.kind}Config")(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_width,
        max_position_embeddings=POSITIONS, tie_word_embeddings=shape.tied,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype=dtype,
        architectures=[f"{shape.kind}ForCausalLM"],
    )
    if quantisation != "none":
        config.quantization_config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quantisation, bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ).to_dict()
    return config


def _weights(
    shape: Shape, device: str, dtype: str, quantisation: str
) -> Iterator[dict[str, Any]]:
    """The tensors of one parameter after another, by the names that they are stored under."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(shape, dtype, "none"))
    draw = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():  # tied ones once
        made = torch.ones(parameter.shape, dtype=getattr(torch, dtype), device=device)
        if parameter.dim() > 1 or name.endswith("bias"):
            made.normal_(std=STD, generator=draw)
        if "_proj.weight" in name and quantisation != "none":
            yield _quantised(name, made, quantisation)
        else:
            yield {name: made.cpu()}


def _quantised(name: str, weight: Any, quantisation: str) -> dict[str, Any]:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, quant_type=quantisation, compress_statistics=True)
    parts = {f"{name}.{part}": tensor.cpu() for part, tensor in state.as_dict(packed=True).items()}
    return {name: packed.cpu(), **parts}


def _write_weights(weights: Iterator[dict[str, Any]], folder: Path) -> None:
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shard: dict[str, Any] = {}
    total = 0

    def write() -> None:
        file = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, file))
        shard.clear()

    for tensors in weights:
        shard.update(tensors)
        total += sum(tensor.nbytes for tensor in tensors.values())
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            write()
    if shard:
        write()
    listing = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))


def main() -> None:
    """Writes one base."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shapes")
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quantisation", default="nf4", choices=["nf4", "fp4", "none"])
    given = parser.parse_args()
    save_base(SHAPES[given.shape], given.folder, given.device, given.quantisation)


if __name__ == "__main__":
    main()
