"""The schedules: equal to transformers' where those suit short trials, each with warm-up."""

from __future__ import annotations

import pytest
import torch

from trials.contract import SCHEDULERS, InputError
from trials.training.schedule import DECAY_SHARE, RESTARTS, rate_factor, warmup_steps

STEPS = 100


def factors(name: str, warmup: int, steps: int = STEPS) -> list[float]:
    """Every step's factor."""
    return [rate_factor(name, step, steps=steps, warmup=warmup) for step in range(steps)]


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize(
    ("name", "theirs", "settings"),
    [
        ("constant", "constant_with_warmup", {}),
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("cosine_with_restarts", "cosine_with_restarts", {"num_cycles": RESTARTS}),
        ("polynomial", "polynomial", {"power": 2.0, "lr_end": 0.0}),
        ("warmup_stable_decay", "warmup_stable_decay",
         {"num_decay_steps": round(DECAY_SHARE * STEPS)}),
    ],
)
def test_shapes_are_those_of_transformers(
    name: str, theirs: str, settings: dict[str, float], warmup: int
) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS,
                             scheduler_specific_kwargs=settings)
    rates = []
    for _ in range(STEPS):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert factors(name, warmup) == pytest.approx(rates, abs=1e-9)


def test_inverse_square_root_falls_from_one_as_transformers_does() -> None:
    from transformers import get_inverse_sqrt_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=10)
    for step in range(STEPS):
        assert rate_factor("inverse_sqrt", step, steps=STEPS, warmup=10) == pytest.approx(
            schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (7, 7), (40, 4)])
def test_factors_stay_between_zero_and_one(name: str, steps: int, warmup: int) -> None:
    found = factors(name, warmup, steps)
    assert all(0.0 <= factor <= 1.0 for factor in found)
    assert found[:warmup] == [step / warmup for step in range(warmup)]
    if warmup < steps:
        assert found[warmup] == pytest.approx(1.0) or steps - warmup == 1


def test_warmup_is_a_share_rounded_up() -> None:
    assert [warmup_steps(share, 150) for share in (0.0, 0.001, 0.03, 0.1)] == [0, 1, 5, 15]


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="'cosin' is unknown. Known schedulers: constant, linear"):
        rate_factor("cosin", 0, steps=10, warmup=0)
