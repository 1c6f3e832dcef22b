"""AdamW and SGD over the rows of a bank: each row at its own rate and step, only due rows change.

What differs between rows is a vector of coefficients per step, made once per trial on the host by
the formulas of torch.optim and kept on the device, where each row knows how many steps it has made.
A row that is not due has coefficients that leave it bit for bit as it is (what is not finite is
lost in any case, but on CUDA, where such rows are passed over), so one elementwise pass serves all
rows, whatever each of them does. In fp16 each row has a loss scale of its own: a step
whose gradient overflows is not made, and halves it (torch.amp.GradScaler's rule and numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trials.contract import TrainConfig
from trials.engines.packed.bank import Bank
from trials.engines.packed.later import sent
from trials.engines.packed.refusals import Refused
from trials.training.optimizers import BETAS, EPSILON
from trials.training.schedule import rate_factor, warmup_steps

SUPPORTED = ("adamw", "sgd")
COEFFICIENTS = (
    "due",  # 1: the row's gradient is complete
    # The largest norm allowed; inf: any. `step` puts in its place what the gradient is multiplied
    "clip",  # with; 0: it is not finite, and counts as 0.
    "decay",  # what weight decay leaves of a parameter
    "new_first",  # the gradient's share in the first moment
    "old_second",  # the share of the second moment that stays
    "new_second",  # the squared gradient's share in it
    "root",  # the square root of the second moment's bias correction
    "adam",  # what first / (sqrt(second) / root + eps) is multiplied with
    "plain",  # what the gradient is multiplied with (sgd)
    "rate",  # the learning rate, to be told
)
NOT_DUE = (0.0, math.inf, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_
PIECE = 4096  # numbers of a row that are summed by themselves
FIRST_SCALE, GROWTH, BACKOFF, GROWTH_STEPS = 65536.0, 2.0, 0.5, 2000  # torch.amp.GradScaler
LOWEST_SCALE = 1.0  # where gradients overflow even unscaled, they are not finite


def check_supported(optimizer: str) -> None:
    """Raises Refused for an optimizer that has no rows."""
    if optimizer not in SUPPORTED:
        raise Refused(
            f"train.optimizer={optimizer}: engine=packed has {' and '.join(SUPPORTED)}.",
            "Type engine=trl, or train.optimizer=adamw.",
        )


def coefficients(train: TrainConfig, steps: int) -> NDArray[np.float64]:
    """`[steps, len(COEFFICIENTS)]` for a trial of so many steps."""
    row = _adamw if train.optimizer == "adamw" else _sgd
    clip = train.max_grad_norm if train.max_grad_norm > 0 else math.inf
    warmup = warmup_steps(train.warmup, steps)
    rates = [train.learning_rate * rate_factor(train.scheduler, step, steps=steps, warmup=warmup)
             for step in range(steps)]
    return np.array([
        (1.0, clip, 1.0 - rate * train.weight_decay, *row(rate, step), rate)
        for step, rate in enumerate(rates, start=1)
    ])


def _adamw(rate: float, step: int) -> tuple[float, ...]:
    first, second = BETAS
    root = math.sqrt(1.0 - second**step)
    return 1.0 - first, second, 1.0 - second, root, -rate / (1.0 - first**step), 0.0


def _sgd(rate: float, step: int) -> tuple[float, ...]:
    return 0.0, 1.0, 0.0, 1.0, 0.0, -rate


class Optimizer:
    """What the rows of a bank need besides their moments, a row for each slot."""

    def __init__(self, slots: int, device: torch.device, *, scaled: bool) -> None:
        self.table = torch.zeros(slots, 1, len(COEFFICIENTS), dtype=torch.float64, device=device)
        self.made = torch.zeros(slots, dtype=torch.long, device=device)  # steps
        self.scale = torch.ones(slots, device=device)  # of the loss; all 1 but in fp16
        self._good = torch.zeros(slots, dtype=torch.long, device=device)  # steps since it changed
        self._not_due = torch.tensor(NOT_DUE, dtype=torch.float64, device=device)
        self._scaled = scaled

    def seat(self, slot: int, given: NDArray[np.float64]) -> None:
        """Starts a slot with `coefficients`."""
        if len(given) > self.table.shape[1]:
            self._widen(len(given))
        self.table[slot, : len(given)] = sent(torch.from_numpy(given), self.table.device)
        self.made[slot].fill_(0)
        self._good[slot].fill_(0)
        self.scale[slot].fill_(FIRST_SCALE if self._scaled else 1.0)

    def saved(self, slot: int) -> Tensor:
        """A copy of a slot's numbers, fp64 `[3]`."""
        return torch.stack([row[slot].double() for row in (self.made, self._good, self.scale)])

    def restore(self, slot: int, saved: Sequence[float]) -> None:
        """Takes back what `saved` gave."""
        for row, number in zip((self.made, self._good, self.scale), saved, strict=True):
            row[slot].fill_(number)

    def move(self, source: int, target: int) -> None:
        """Takes a slot's numbers along when its rows of the bank move."""
        for rows in (self.table, self.made, self.scale, self._good):
            rows[target] = rows[source]

    def step(self, bank: Bank, due: Tensor, losses: Tensor) -> Tensor:
        """One step of the first n rows where `due` `[n]` is 1; their gradients are 0 afterwards.

        Returns `[4, n]`: the losses as given, the gradients' norms before they were clipped, the
        learning rates, and 1 where the loss scale was too large and no step was made. A due row
        whose norm or loss is not finite is left as it is.
        """
        n = len(due)
        c = self._coefficients(due)
        norms = _norms(bank, due) / self.scale[:n]
        finite = torch.isfinite(norms)
        bad = (due > 0) & ~(finite & torch.isfinite(losses))
        skipped = bad & torch.isfinite(losses) & (self.scale[:n] * BACKOFF >= LOWEST_SCALE)
        told = torch.stack([losses.double(), norms.double(), c[:, -1], skipped.double()])
        share = (c[:, 1] / (norms.double() + CLIP_EPSILON)).clamp(max=1.0) / self.scale[:n]
        c = torch.where(bad[:, None], self._not_due, c)
        c[:, 0] = due
        c[:, 1] = torch.where((due > 0) & ~bad, share, (due == 0).double())
        _update(bank, c.to(bank.parameters.dtype))
        self._count(due > 0, bad, skipped)
        return told

    def _coefficients(self, due: Tensor) -> Tensor:
        n = len(due)
        last = self.table.shape[1] - 1
        c = self.table[torch.arange(n, device=due.device), self.made[:n].clamp(max=last)]
        return torch.where(due[:, None] > 0, c, self._not_due)

    def _count(self, due: Tensor, bad: Tensor, skipped: Tensor) -> None:
        n = len(due)
        self.made[:n] += due & ~bad
        if not self._scaled:
            return
        good = torch.where(bad, 0, self._good[:n] + (due & ~bad).long())
        grows = good >= GROWTH_STEPS
        self._good[:n] = torch.where(grows, 0, good)
        factor = torch.where(skipped, BACKOFF, torch.where(grows, GROWTH, 1.0))
        self.scale[:n] *= factor.to(self.scale.dtype)

    def _widen(self, steps: int) -> None:
        wider = self.table.new_zeros(len(self.made), 2 ** math.ceil(math.log2(steps)),
                                     len(COEFFICIENTS))
        wider[:, : self.table.shape[1]] = self.table
        self.table = wider


def _norms(bank: Bank, due: Tensor) -> Tensor:
    if bank.by_kernels:
        from trials.engines.packed.cuda.rows import norms

        return norms(bank, due)
    # In pieces: on a CPU, one long sum of squares in fp32 comes out too small, by 1e-4 at 2e6 of
    # them, and a clipped step would be too large by as much.
    rows = bank.gradients[: len(due)]
    whole = rows.shape[1] // PIECE * PIECE
    parts = rows[:, :whole].unflatten(1, (-1, PIECE))  # type: ignore[no-untyped-call]
    pieces = torch.linalg.vector_norm(parts, dim=2)
    found: Tensor = torch.linalg.vector_norm(torch.cat([pieces, rows[:, whole:]], dim=1), dim=1)
    return found


def _update(bank: Bank, given: Tensor) -> None:
    if bank.by_kernels:
        from trials.engines.packed.cuda.rows import update

        update(bank, given)
        return
    n = len(given)
    p, g, first, second = (rows[:n] for rows in bank.rows)
    c = {name: given[:, k, None] for k, name in enumerate(COEFFICIENTS)}
    scratch = torch.empty_like(p)  # before anything changes: memory may run out here
    g.mul_(c["clip"])
    g.masked_fill_(c["clip"] == 0, 0.0)  # nothing that is not finite may meet a coefficient
    p.mul_(c["decay"])
    first.lerp_(g, c["new_first"])
    second.mul_(c["old_second"]).addcmul_(g, torch.mul(g, c["new_second"], out=scratch))
    torch.sqrt(second, out=scratch).div_(c["root"]).add_(EPSILON)
    p.add_(torch.div(first, scratch, out=scratch).mul_(c["adam"]))
    torch.mul(g, c["plain"], out=scratch)
    p.add_(scratch)
    g.masked_fill_(c["due"] > 0, 0.0)
    bank.round(n)
