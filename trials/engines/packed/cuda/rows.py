"""Passes over whole rows as Triton kernels: of a bank, for the optimizer, and of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trials.engines.packed.bank import BLOCK
from trials.engines.packed.cuda import kernels
from trials.engines.packed.cuda.launch import launch
from trials.engines.packed.cuda.ragged import TYPES
from trials.training.optimizers import EPSILON

if TYPE_CHECKING:
    from trials.engines.packed.bank import Bank

LOSSES = {"LANES": 1024, "EACH": 8, "num_warps": 32}


def losses(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Each row's cross entropy `[N]` in fp32.

    The gradient of their sum weighted by `weights` `[N]` takes the place of the logits.
    """
    found = logits.new_empty(len(logits), dtype=torch.float32)
    launch(
        kernels.losses, (len(logits),), logits, targets, weights, found, logits.stride(0),
        COLUMNS=logits.shape[1], DTYPE=TYPES[logits.dtype], **LOSSES,
    )
    return found


def norms(bank: Bank, due: Tensor) -> Tensor:
    """The gradient norms `[n]` of the rows where `due` is 1; 0 of the others."""
    partial = bank.gradients.new_empty(len(due), len(bank.blocks))
    launch(
        kernels.squares, (len(bank.blocks), len(due)), bank.gradients, partial, bank.blocks,
        bank.ranks, due, bank.numel, SIZE=BLOCK, num_warps=4,
    )
    return partial.sum(1).sqrt()


def update(bank: Bank, coefficients: Tensor) -> None:
    """One step of the due rows by `optim.COEFFICIENTS`, fp32 `[n, ...]`; their gradients are 0."""
    n, count = coefficients.shape
    launch(
        kernels.update, (len(bank.blocks), n), *bank.rows, bank.compute, bank.blocks, bank.ranks,
        coefficients, EPSILON, bank.numel, COUNT=count, SIZE=BLOCK,
        DTYPE=TYPES[bank.compute.dtype], num_warps=4,
    )
