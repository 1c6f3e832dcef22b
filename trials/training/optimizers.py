"""The optimizers by name, with the settings that every engine shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trials.contract import OPTIMIZERS, PAGED, InputError, TrainConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def check_optimizers(names: Iterable[str], device: torch.device) -> None:
    """Raises InputError for an unknown optimizer and for a paged one where there is no CUDA."""
    for name in names:
        if name not in OPTIMIZERS:
            near = difflib.get_close_matches(name, OPTIMIZERS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(OPTIMIZERS)
            raise InputError(f"train.optimizer={name!r} is unknown.{hint} Known: {known}.")
        if name in PAGED and device.type != "cuda":
            raise InputError(
                f"train.optimizer={name} needs a CUDA device, and the trials run on {device}. "
                "Type train.optimizer=adamw, or device=cuda where there is one."
            )


def build_optimizer(
    train: TrainConfig, parameters: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of `train` over all of an adapter's parameters, at its peak learning rate."""
    shared: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    adam: dict[str, Any] = shared | {"betas": BETAS, "eps": EPSILON}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **adam, foreach=True)
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, **shared, foreach=True)
    if train.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        return Adafactor(parameters, **shared, **fixed)  # type: ignore[no-any-return]
    return _paged(train.optimizer, parameters, adam)


def saved(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer remembers: copies of its tensors on the CPU, and plain numbers.

    Both are named "<parameter's place>.<the optimizer's own name>".
    """
    if any(parameter.is_cuda for parameter in _parameters(optimizer)):
        torch.cuda.synchronize()  # paged states are read where the device writes them
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for place, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
            elif value is not None:
                numbers[f"{place}.{name}"] = value
    return tensors, numbers


def restore(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Takes back what `saved` gave, bit for bit."""
    places = dict(enumerate(_parameters(optimizer)))
    if hasattr(optimizer, "init_state"):  # of bitsandbytes, where pages must be the optimizer's own
        for place, parameter in places.items():
            if f"{place}.step" in numbers:
                optimizer.init_state(optimizer.param_groups[0], parameter, 0, place)
    for key, value in (*tensors.items(), *numbers.items()):
        number, _, name = key.partition(".")
        parameter = places[int(number)]
        _put(optimizer.state[parameter], name, value, parameter.device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _put(state: dict[str, Any], name: str, value: Any, device: torch.device) -> None:
    there = state.get(name)
    if isinstance(there, Tensor):
        there.copy_(value)
    elif isinstance(value, Tensor) and name != "step":  # torch counts steps on the CPU
        state[name] = value.to(device)
    else:
        state[name] = value


def release_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Gives paged states back for the next trial; call it when `optimizer` is done."""
    paged = [value for state in optimizer.state.values() for value in state.values()
             if isinstance(value, Tensor) and getattr(value, "is_paged", False)]
    if paged:
        optimizer.page_mng.paged_tensors.clear()  # type: ignore[attr-defined]
        _free_pages.extend(value.pages for value in paged)  # type: ignore[attr-defined]
    optimizer.state.clear()


# bitsandbytes never frees the managed memory of paged states, so trials would pile it up.
_free_pages: list[Tensor] = []


def _paged(
    name: str, parameters: Sequence[nn.Parameter], settings: dict[str, Any]
) -> torch.optim.Optimizer:
    import bitsandbytes

    kinds = {
        "paged_adamw_32bit": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    optimizer: Any = kinds[name](parameters, **settings)
    plain = optimizer.get_state_buffer

    def reused(p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        paged = p.device.type == "cuda" and p.numel() >= PAGED_FROM
        return _pages(p, dtype) if paged else plain(p, dtype)

    optimizer.get_state_buffer = reused
    return optimizer  # type: ignore[no-any-return]


PAGED_FROM = 100_000  # elements; below it bitsandbytes itself does not page


def _pages(p: Tensor, dtype: torch.dtype) -> Tensor:
    from bitsandbytes import functional

    need = p.numel() * dtype.itemsize
    fitting = [k for k, pages in enumerate(_free_pages) if pages.numel() >= need]
    if fitting:
        pages = _free_pages.pop(min(fitting, key=lambda k: _free_pages[k].numel()))
    else:
        pages = functional.get_paged(need, dtype=torch.uint8, device=p.device)
    state: Any = pages[:need].view(dtype).view(p.shape)
    state.is_paged, state.page_deviceid, state.pages = True, p.device.index, pages
    functional.fill(state, 0)
    functional.GlobalPageManager.get_instance().paged_tensors.append(state)
    return state  # type: ignore[no-any-return]
