"""How much one forward may hold, and what running out of memory looks like."""

from __future__ import annotations

import gc
import traceback

import psutil  # type: ignore[import-untyped]
import torch

from trials import host
from trials.base import Base
from trials.base.devices import DTYPES, memory_bytes
from trials.contract import InputError, Outcome, TrainConfig
from trials.data.examples import Example
from trials.engines import DeviceLost
from trials.evaluate import computing, target_logits
from trials.training.batches import Batch, Limit, collate, pack

CPU_TOKENS = 4096  # beyond it a forward gains no speed on a CPU, and its memory grows
CPU_LOGIT_BYTES = 2**30
MOST_TOKENS = 16384  # likewise on a GPU
# Bytes of activations that training keeps for each token, per layer and hidden unit: measured 34 to
# 45 on Llamas of 0.5 to 8 billion parameters with fused layers, about twice that with plain ones.
TRAINING_BYTES = 80
CHECKPOINTED_BYTES = 12  # one hidden state per layer, and one layer's activations
FORWARD_BYTES = 4  # without gradients hardly more than one layer's
LOGIT_BYTES = 16  # for each target and vocabulary entry: half and full precision, and gradients
# What libraries without an error of their own say when they get no memory.
HOST_ALLOCATOR = "DefaultCPUAllocator"
PINNED = "CUDA error: out of memory"  # memory of the host that the device reads by itself
ALLOCATORS = (HOST_ALLOCATOR, PINNED, "CUBLAS_STATUS_ALLOC_FAILED")
CROWD_BYTES = 2 * 2**30  # of a device: this process's CUDA context and kernels stay below it
CROWD_SHARE = 0.1  # of a device: what others hold below it decides about hardly any trial
SHARE = 0.6  # of the free memory: the estimate is rough, and a step that fails is cut in two


def training_limit(base: Base, train: TrainConfig, sharing: int = 1) -> Limit:
    """The micro-batch: `train.micro_batch_size` rows, or what should fit into memory.

    `sharing` workers have equal parts of the device's, here and below.
    """
    if train.micro_batch_size is not None:
        return Limit(rows=train.micro_batch_size)
    unit = CHECKPOINTED_BYTES if train.gradient_checkpointing else TRAINING_BYTES
    return _limit(base, unit, sharing)


def evaluation_limit(base: Base, sharing: int = 1) -> Limit:
    """How much one forward of the evaluation holds."""
    return _limit(base, FORWARD_BYTES, sharing)


def room(device: torch.device, most: float) -> float:
    """The bytes that this process may still take, where it may hold `most` of the device's.

    What others have not taken yet counts as free, so `most` has to leave it to them.
    """
    if device.type == "cpu":
        held = psutil.Process().memory_info().rss
        return float(min(host.free_bytes(), most - held))
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)  # what it has reserved beyond it is as good as free
    return min(free + torch.cuda.memory_reserved(device) - held, most - held)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the device or the host, is what was missing."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ALLOCATORS)


def end_of(error: Exception, device: torch.device) -> tuple[Outcome, str]:
    """What an error makes of a trial, and why; a bug is written to the worker's log.

    What does not fit beside much that other processes hold is stopped: it may fit another time.
    Raises DeviceLost where the error has left the device unusable for this process.
    """
    said = (str(error) or type(error).__name__).splitlines()[0]
    if out_of_memory(error):
        on_host = isinstance(error, MemoryError) or HOST_ALLOCATOR in said
        return _too_large(said, torch.device("cpu") if on_host else device)
    traceback.print_exception(error)
    check_device(device, error)
    return Outcome.FAILED, f"{type(error).__name__}: {said}"


def check_device(device: torch.device, error: Exception) -> None:
    """Raises DeviceLost where `error` has broken CUDA: every later call in this process fails."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as again:
        said = str(again).splitlines()[0]
        raise DeviceLost(f"{device} cannot be used any more: {said}") from error


def free_memory(device: torch.device) -> None:
    """Gives back what ended trials held, so that none suffers from those before it."""
    gc.collect()  # trainers hold themselves in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


def keeps_packed_apart(base: Base) -> None:
    """Raises InputError unless examples that share a row do not see each other in this model."""
    first, other, second = (_probe(base, start) for start in (3, 5, 7))
    logits = [_last_logits(base, [*before, (1, second)]) for before in ([(0, first)], [(0, other)])]
    if not torch.equal(*logits):
        raise InputError(
            f"train.packing=true: in {base.facts.architecture} examples packed into one row would "
            "see each other. Type train.packing=false."
        )


def _limit(base: Base, bytes_per_unit: int, sharing: int) -> Limit:
    config = base.model.config.get_text_config()
    target = LOGIT_BYTES * config.vocab_size
    if base.device.type == "cpu":
        return Limit(tokens=CPU_TOKENS, targets=max(CPU_LOGIT_BYTES // target, 1))
    free = SHARE * room(base.device, memory_bytes(base.device) / sharing)
    token = bytes_per_unit * config.num_hidden_layers * config.hidden_size
    tokens = int(0.7 * free / token)
    return Limit(tokens=min(max(tokens, 1), MOST_TOKENS), targets=max(int(0.3 * free / target), 1))


def _too_large(said: str, device: torch.device) -> tuple[Outcome, str]:
    if device.type != "cuda":
        return Outcome.INFEASIBLE, f"does not fit into memory: {said}"
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    hold = f"{others / 2**30:.1f} GiB"
    if others > max(CROWD_BYTES, CROWD_SHARE * total):
        beside = f"other processes, which hold {hold} of {device}'s {total / 2**30:.1f} GiB"
        return Outcome.STOPPED, f"does not fit into memory beside {beside}: {said}"
    context = f"(of it, other processes and the CUDA context hold {hold})"
    return Outcome.INFEASIBLE, f"does not fit into memory: {said} {context}"


def _probe(base: Base, start: int) -> Example:
    size: int = base.model.config.get_text_config().vocab_size
    ids = tuple((start * k) % size for k in range(1, 9))
    return Example(ids, (False,) * 7 + (True,), "", "")


def _last_logits(base: Base, row: list[tuple[int, Example]]) -> torch.Tensor:
    batch: Batch = collate(pack(row, 64), 0).to(base.device)
    with torch.no_grad(), computing(base.device, DTYPES[base.config.dtype]):
        return target_logits(base.model, batch)[-1]
