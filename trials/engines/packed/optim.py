"""AdamW and SGD over the rows of a bank: each row at its own rate and step, only due rows change.

What differs between rows is a vector of coefficients per step, made once per trial on the host by
the formulas of torch.optim. A row that is not due has coefficients that leave it bit for bit as it
is, so one elementwise pass serves all rows, whatever each of them does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trials.contract import InputError, TrainConfig
from trials.engines.packed.bank import Bank
from trials.training.optimizers import BETAS, EPSILON
from trials.training.schedule import rate_factor, warmup_steps

SUPPORTED = ("adamw", "sgd")
COEFFICIENTS = (
    "due",  # 1: the row's gradient is complete
    "clip",  # the gradient's largest norm; inf: any
    "decay",  # what weight decay leaves of a parameter
    "new_first",  # the gradient's share in the first moment
    "old_second",  # the share of the second moment that stays
    "new_second",  # the squared gradient's share in it
    "root",  # the square root of the second moment's bias correction
    "adam",  # what first / (sqrt(second) / root + eps) is multiplied with
    "plain",  # what the gradient is multiplied with (sgd)
)
NOT_DUE = np.array([0.0, math.inf, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_


def check_supported(optimizer: str) -> None:
    """Raises InputError, naming engine=trl, for an optimizer that has no rows."""
    if optimizer not in SUPPORTED:
        raise InputError(
            f"train.optimizer={optimizer}: engine=packed has {' and '.join(SUPPORTED)}. "
            "Type engine=trl, or train.optimizer=adamw."
        )


def learning_rates(train: TrainConfig, steps: int) -> list[float]:
    """The rate at each of a trial's steps."""
    warmup = warmup_steps(train.warmup, steps)
    return [train.learning_rate * rate_factor(train.scheduler, step, steps=steps, warmup=warmup)
            for step in range(steps)]


def coefficients(train: TrainConfig, rates: list[float]) -> NDArray[np.float64]:
    """`[steps, len(COEFFICIENTS)]` for a trial with these learning rates."""
    row = _adamw if train.optimizer == "adamw" else _sgd
    clip = train.max_grad_norm if train.max_grad_norm > 0 else math.inf
    return np.array([
        (1.0, clip, 1.0 - rate * train.weight_decay, *row(rate, step))
        for step, rate in enumerate(rates, start=1)
    ])


def _adamw(rate: float, step: int) -> tuple[float, ...]:
    first, second = BETAS
    root = math.sqrt(1.0 - second**step)
    return 1.0 - first, second, 1.0 - second, root, -rate / (1.0 - first**step), 0.0


def _sgd(rate: float, step: int) -> tuple[float, ...]:
    return 0.0, 1.0, 0.0, 1.0, 0.0, -rate


def step(bank: Bank, n: int, given: Tensor, losses: Tensor, *, has_sgd: bool) -> Tensor:
    """One optimizer step of the due rows among the first `n`; the gradient norms `[n]`.

    `given` is `[n, len(COEFFICIENTS)]` in fp64. A due row whose norm or loss is not finite is
    left as it is. The due rows' gradients are 0 afterwards.
    """
    gradients = bank.gradients[:n]
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
    c = dict(zip(COEFFICIENTS, given.to(gradients.dtype).unsqueeze(-1).unbind(1), strict=True))
    due = c["due"] > 0
    bad = due & ~(torch.isfinite(norms) & torch.isfinite(losses)).unsqueeze(-1)
    c = _left_alone(c, bad)
    _clip(gradients, c["clip"], norms, due, bad)
    _update(bank, n, c, has_sgd)
    gradients.masked_fill_(due, 0.0)
    bank.round(n)
    return norms


def _left_alone(c: dict[str, Tensor], bad: Tensor) -> dict[str, Tensor]:
    plain = dict(zip(COEFFICIENTS, NOT_DUE.tolist(), strict=True))
    return {name: torch.where(bad, plain[name], value) for name, value in c.items()}


def _clip(g: Tensor, most: Tensor, norms: Tensor, due: Tensor, bad: Tensor) -> None:
    share = (most / (norms.unsqueeze(-1) + CLIP_EPSILON)).clamp(max=1.0)
    g.mul_(torch.where(due & ~bad, share, 1.0))
    g.masked_fill_(bad, 0.0)  # nothing that is not finite may meet a coefficient


def _update(bank: Bank, n: int, c: dict[str, Tensor], has_sgd: bool) -> None:
    p, g, first, second = (rows[:n] for rows in bank.rows)
    scratch = torch.empty_like(p)  # before anything changes: memory may run out here
    p.mul_(c["decay"])
    first.lerp_(g, c["new_first"])
    second.mul_(c["old_second"]).addcmul_(g, torch.mul(g, c["new_second"], out=scratch))
    torch.sqrt(second, out=scratch).div_(c["root"]).add_(EPSILON)
    p.add_(torch.div(first, scratch, out=scratch).mul_(c["adam"]))
    if has_sgd:
        p.addcmul_(g, c["plain"].expand_as(g))
