"""The ceiling: the least time that a trial's step can take on a device of measured rates.

    python -m tests.benchmarks.roofline --shapes 0.5B 1B 8B --device cuda
    python -m tests.benchmarks.roofline --shapes 0.5B 1B 8B --flops 790e12 --bytes 4.3e12

    seconds = (base + head + attention + LoRA FLOPs) / GEMM rate
            + (LoRA + elementwise + optimizer bytes) / copy bandwidth

The two do not overlap here: the products of the base and what runs between them alternate. All is
linear in the tokens, so the ceiling in trial-steps/s does not depend on how many trials are packed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.shapes import SHAPES, Shape

HALF = 2  # bytes of a bf16 number
LORA_BYTES = 8  # per token, module and unit of width; see `lora_bytes`
OPTIMIZER_BYTES = 34  # per parameter of an adapter and step; see `parts`
PACKED_TOKENS = 16 * 4 * 182  # rows of the measured products: a clock of 16 trials
CUBE = 8192  # of one more product, where the device is at its best
COPIED_BYTES = 2**30
ROUNDS, REPEATS = 5, 10


@dataclass(frozen=True)
class Rates:
    """What a device does: FLOP/s of its best product, and bytes/s of a copy (read and written)."""

    flops: float
    bytes: float
    products: dict[str, float]  # FLOP/s by their sizes
    device: str = ""


@dataclass(frozen=True)
class Load:
    """A trial's optimizer step, on average."""

    r: int
    tokens: float  # each of them read, and predicting the next one
    length: float  # of the example that a token is in, in tokens: the mean over all tokens


def step_seconds(shape: Shape, load: Load, rates: Rates) -> float:
    """The least seconds that a device can spend on a trial's step, all linear modules targeted."""
    return sum(parts(shape, load, rates).values())


def parts(shape: Shape, load: Load, rates: Rates) -> dict[str, float]:
    """Of these seconds, what each kind of work takes.

    The optimizer reads the parameter, its gradient and two moments and writes back all but the
    gradient, which it clears (4 bytes each: 32), and writes the bf16 copy (2).
    """
    flop_s, byte_s = load.tokens / rates.flops, load.tokens / rates.bytes
    optimizer = OPTIMIZER_BYTES * adapter_parameters(shape, load.r)
    return {
        "base": base_flops(shape) * flop_s,
        "head": head_flops(shape) * flop_s,
        "attention": attention_flops(shape, load.length) * flop_s,
        "LoRA, FLOPs": lora_flops(shape, load.r) * flop_s,
        "LoRA, bytes": lora_bytes(shape) * byte_s,
        "elementwise": elementwise_bytes(shape) * byte_s,
        "optimizer": optimizer / rates.bytes,
    }


def base_flops(shape: Shape) -> float:
    """Per token: 2P forward, and 2P backward for the inputs' gradients; P of the linear modules."""
    return 4.0 * shape.layers * sum(d_in * d_out for d_in, d_out in shape.linears.values())


def head_flops(shape: Shape) -> float:
    """Per token that predicts one: likewise for the logits."""
    return 4.0 * shape.vocabulary * shape.width


def attention_flops(shape: Shape, length: float) -> float:
    """Per token: two products of 2 * length * width forward, twice that backward, half causal."""
    return 6.0 * length * shape.heads * shape.head_width * shape.layers


def lora_flops(shape: Shape, r: int) -> float:
    """Per token: forward x A and s B, backward ds, dB, dA and dx: 6 r (d_in + d_out) a module."""
    return 6.0 * r * _widths(shape)


def lora_bytes(shape: Shape) -> float:
    """Per token, in bf16: what the products of each module read and write of full width.

    Of d_in: x is read forward and for dA (2 + 2 bytes), dx read and written where the gradient
    is added to the base's (4). Of d_out: the base's output is read and written (4), dy is read for
    ds and for dB (2 + 2). So 8 (d_in + d_out); what has the width r is not counted.
    """
    return float(LORA_BYTES * _widths(shape))


def elementwise_bytes(shape: Shape) -> float:
    """Per token, in bf16, for fused kernels: every input read and every output written once.

    Units read and written, forward + backward: two norms of 2 + 3 widths; two residual sums of
    3 + 3; rotary 2 + 2 of queries and keys; the gated activation 3 + 5 of the inner width.
    """
    rotated = (shape.heads + shape.kv_heads) * shape.head_width
    units = 10 * shape.width + 12 * shape.width + 4 * rotated + 8 * shape.inner
    return float(HALF * shape.layers * units)


def adapter_parameters(shape: Shape, r: int) -> int:
    """Of an adapter on all linear modules."""
    return r * _widths(shape)


def _widths(shape: Shape) -> int:
    return shape.layers * sum(d_in + d_out for d_in, d_out in shape.linears.values())


# --- what the device does --------------------------------------------------------------------


def measure(shapes: Sequence[Shape], device: str) -> Rates:
    """The rate of the best product, of the shapes' sizes and a cube, and of a large copy."""
    import torch

    from trials.base.devices import device_facts

    on_cuda = device != "cpu"
    dtype = torch.bfloat16 if on_cuda else torch.float32
    products = {}
    for rows, inner, columns in dict.fromkeys(_sizes(shapes, on_cuda)):
        left = torch.randn(rows, inner, dtype=dtype, device=device)
        right = torch.randn(columns, inner, dtype=dtype, device=device).t()  # as a layer has it
        taken = _best_s(lambda x=left, y=right: x @ y, device)  # type: ignore[misc]
        products[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / taken
    source = torch.ones(COPIED_BYTES if on_cuda else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best_s(lambda: target.copy_(source), device)
    facts = device_facts(torch.device(device), "")
    return Rates(max(products.values()), copied, products, facts.name)


def _sizes(shapes: Sequence[Shape], on_cuda: bool) -> Iterator[tuple[int, int, int]]:
    rows = PACKED_TOKENS if on_cuda else 256
    for shape in shapes:
        yield rows, shape.width, shape.width
        yield rows, shape.width, shape.inner
        yield rows, shape.inner, shape.width
    if on_cuda:
        yield CUBE, CUBE, CUBE


def _best_s(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call: the best of some rounds, each of several calls."""
    from torch import cuda

    wait = (lambda: None) if device == "cpu" else (lambda: cuda.synchronize(device))
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        wait()
        began = time.perf_counter()
        for _ in range(REPEATS):
            call()
        wait()
        best = min(best, (time.perf_counter() - began) / REPEATS)
    return best


def main() -> None:
    """Prints the rates and each shape's ceiling as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.roofline")
    parser.add_argument("--shapes", nargs="+", default=["1B"], choices=list(SHAPES))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--flops", type=float, help="FLOP/s; with --bytes: nothing is measured")
    parser.add_argument("--bytes", type=float, help="bytes/s")
    given = parser.parse_args()
    shapes = [SHAPES[name] for name in given.shapes]
    if given.flops and given.bytes:
        rates = Rates(given.flops, given.bytes, {})
    else:
        rates = measure(shapes, given.device)
    load = Load(r=16, tokens=4 * 182, length=182)
    ceilings = {name: 1 / step_seconds(SHAPES[name], load, rates) for name in given.shapes}
    print(json.dumps({"rates": asdict(rates), "trial_steps_per_s": ceilings}))


if __name__ == "__main__":
    main()
