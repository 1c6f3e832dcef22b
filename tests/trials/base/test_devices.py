"""Devices by name, the dtype they compute in, and the facts about them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from bases import silent

from trials.base import Base, device_facts, load_base, resolve_device
from trials.base.devices import compute_dtype
from trials.contract import InputError, ModelConfig


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    names = ["auto", "cpu", "cuda", "cuda:1"]
    assert [str(resolve_device(name)) for name in names] == ["cuda:0", "cpu", "cuda:0", "cuda:1"]
    with pytest.raises(InputError, match="This machine has: cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert str(resolve_device("auto")) == "cpu"
    for name in ("cuda", "cuda:0", "tpu"):
        with pytest.raises(InputError, match="This machine has: cpu"):
            resolve_device(name)
    with pytest.raises(InputError, match="device=cpu"):
        resolve_device("mps")


def test_cuda_without_bf16_computes_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert compute_dtype(torch.device("cuda:0"), "auto") == "bf16"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert compute_dtype(torch.device("cuda:0"), "auto") == "fp16"
    with pytest.raises(InputError, match="Tesla T4 has no bf16"):
        compute_dtype(torch.device("cuda:0"), "bf16")


def test_device_facts_name_versions(plain_base: Base) -> None:
    facts = device_facts(plain_base.device, plain_base.config.dtype)
    assert (facts.kind, facts.dtype) == ("cpu", plain_base.config.dtype)
    assert facts.memory_bytes > 2**30 and facts.name
    assert set(facts.versions) == {"torch", "transformers", "peft", "trl", "bitsandbytes", "python"}


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    base = load_base(ModelConfig(name="demo"), "cuda", silent)
    assert {p.device.type for p in base.model.parameters()} == {"cuda"}
    facts = device_facts(base.device, base.config.dtype)
    assert facts.kind == "cuda" and facts.memory_bytes > 2**30
