"""The optimizers by name: their settings, and what only a worker's device can refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trials.contract import OPTIMIZERS, PAGED, InputError, TrainConfig
from trials.training.optimizers import build_optimizer, check_optimizers, release_optimizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FREE = [name for name in OPTIMIZERS if name not in PAGED]


def built(name: str, **train: Any) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    """A matrix of ones with a gradient of one, and its optimizer."""
    weight = torch.nn.Parameter(torch.ones(8, 8))
    weight.grad = torch.ones(8, 8)
    config = TrainConfig(learning_rate=0.1, optimizer=name, **train)
    return weight, build_optimizer(config, [weight])


@pytest.mark.parametrize("name", FREE)
def test_a_first_step_is_the_learning_rate_long(name: str) -> None:
    weight, optimizer = built(name)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((8, 8), 0.9), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FREE)
def test_weight_decay_pulls_towards_zero(name: str) -> None:
    weight, optimizer = built(name, weight_decay=0.5)
    weight.grad = torch.full((8, 8), 1e-30)
    optimizer.step()
    assert (weight < 1.0).all()


def test_adamw_has_the_usual_settings() -> None:
    _, optimizer = built("adamw", weight_decay=0.25)
    [group] = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.25)
    assert not group["fused"] and not group["amsgrad"]


def test_released_optimizers_hold_nothing() -> None:
    _, optimizer = built("adamw")
    optimizer.step()
    assert optimizer.state
    release_optimizer(optimizer)
    assert not optimizer.state


def test_paged_ones_need_cuda() -> None:
    check_optimizers(OPTIMIZERS, CUDA)
    check_optimizers(FREE, CPU)
    for name in PAGED:
        with pytest.raises(InputError, match=f"train.optimizer={name} needs a CUDA device"):
            check_optimizers([name], CPU)


def test_an_unknown_one_names_the_nearest_and_all() -> None:
    with pytest.raises(InputError, match="Did you mean 'adamw'.* Known: adamw, sgd, adafactor, pa"):
        check_optimizers(["adamm"], CUDA)
