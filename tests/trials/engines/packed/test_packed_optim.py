"""Steps of a bank's rows are those that torch makes of each row by itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from trials.contract import TrainConfig
from trials.engines.packed import optim
from trials.engines.packed.bank import Bank
from trials.engines.packed.optim import Optimizer, coefficients
from trials.training.optimizers import build_optimizer
from trials.training.schedule import rate_factor

CPU = torch.device("cpu")
TRAIN = TrainConfig(learning_rate=0.01, weight_decay=0.1, scheduler="linear", max_grad_norm=0.5)
STEPS = 20


def bank_of(slots: int, d_in: int = 3, d_out: int = 5, r: int = 8) -> Bank:
    """Rows of random parameters and gradients."""
    bank = Bank({"m": (d_in, d_out)}, slots=slots, r=r, device=CPU)
    for tensor in (bank.parameters, bank.gradients):
        tensor.normal_(generator=torch.Generator().manual_seed(1))
    return bank


def seated(slots: int, *, scaled: bool) -> Optimizer:
    """An optimizer whose rows all start with the same trial."""
    optimizer = Optimizer(slots, CPU, scaled=scaled)
    for slot in range(slots):
        optimizer.seat(slot, coefficients(TRAIN, STEPS))
    return optimizer


@dataclass
class Single:
    """One row by torch: AdamW, clipping, and fp16's loss scaling."""

    parameter: Tensor
    scaler: torch.amp.GradScaler
    made: int = 0

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(TRAIN, [self.parameter])

    def step(self, gradient: Tensor) -> None:
        """With the gradient of the loss, not scaled yet."""
        self.parameter.grad = self.scaler.scale(gradient)
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_([self.parameter], TRAIN.max_grad_norm)
        factor = rate_factor(TRAIN.scheduler, self.made, steps=STEPS, warmup=0)
        self.optimizer.param_groups[0]["lr"] = TRAIN.learning_rate * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.made += bool(gradient.isfinite().all())


def test_each_row_has_the_loss_scale_that_torch_would_give_it(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.amp.GradScaler("cpu").get_growth_interval() == optim.GROWTH_STEPS
    monkeypatch.setattr(optim, "GROWTH_STEPS", 3)
    every, overflows = (1, 1, 2, 1), ((2,), (0, 1, 7, 8), (), (4, 10))
    bank, optimizer = bank_of(4), seated(4, scaled=True)
    singles = [Single(row.clone(), torch.amp.GradScaler("cpu", growth_interval=3))
               for row in bank.parameters]
    for number in range(STEPS - 4):
        due = torch.tensor([float(number % steps == 0) for steps in every])
        gradients = torch.randn(bank.gradients.shape,
                                generator=torch.Generator().manual_seed(number))
        skips = [float(number in when) for when in overflows]
        gradients[torch.tensor(skips) > 0, 3] = float("inf")
        bank.gradients.copy_(gradients * optimizer.scale[:, None])
        told = optimizer.step(bank, due, torch.zeros(4))
        for slot, single in enumerate(singles):
            if due[slot]:
                single.step(gradients[slot])
        assert told[3].tolist() == skips
        assert optimizer.scale.tolist() == [single.scaler.get_scale() for single in singles]
        assert optimizer.made.tolist() == [single.made for single in singles]
    for row, single in zip(bank.parameters, singles, strict=True):
        torch.testing.assert_close(row, single.parameter, rtol=1e-5, atol=1e-6)
    assert len({single.scaler.get_scale() for single in singles}) > 2


def test_what_overflows_unscaled_is_not_finite() -> None:
    bank, optimizer = bank_of(2), seated(2, scaled=True)
    before, skipped = bank.parameters[0].clone(), []
    for _ in range(18):
        bank.gradients.fill_(1.0)
        bank.gradients[0] = float("inf")
        told = optimizer.step(bank, torch.ones(2), torch.zeros(2))
        skipped.append(told[3].tolist())
        assert told[1, 0] == float("inf")
    assert skipped == [[1.0, 0.0]] * 16 + [[0.0, 0.0]] * 2  # from 2**16 down to 1
    assert optimizer.scale.tolist() == [1.0, 2.0**16]
    assert torch.equal(bank.parameters[0], before)


def test_a_norm_of_millions_of_numbers_is_exact() -> None:
    bank, optimizer = bank_of(2, d_in=9000, d_out=9000, r=128), seated(2, scaled=False)
    exact = bank.gradients.double().norm(dim=1)
    told = optimizer.step(bank, torch.ones(2), torch.zeros(2))
    torch.testing.assert_close(told[1], exact, rtol=1e-6, atol=0.0)
