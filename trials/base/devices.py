"""Where a worker computes: the device by name, its compute dtype, and the facts about it."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache
from pathlib import Path

import torch

from trials import host
from trials.contract import DeviceFacts, InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def resolve_device(name: str) -> torch.device:
    """The device called auto, cpu, cuda or cuda:N. Raises InputError where it does not exist."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{index}" for index in range(count))]
    wanted = {"auto": there[min(count, 1)], "cuda": "cuda:0"}.get(name, name)
    if wanted in there:
        return torch.device(wanted)
    if wanted.startswith("mps"):
        raise InputError(
            f"device={name}: 4-bit training on Apple's MPS is not supported. Type device=cpu."
        )
    raise InputError(
        f"device={name}: no such device. This machine has: {', '.join(there)}. "
        "Type device=auto to take the best one."
    )


def compute_dtype(device: torch.device, asked: str) -> str:
    """The compute dtype by name: `asked`, or for "auto" the fast one that trains well on `device`.

    Raises InputError where the device cannot compute in it.
    """
    known = ("auto", *DTYPES)
    if asked not in known:
        raise InputError(f"model.dtype={asked!r} is unknown. Known: {', '.join(known)}.")
    if device.type == "cuda":
        return _cuda_dtype(device, asked)
    if asked == "fp16":
        raise InputError(
            "model.dtype=fp16 does not train on a CPU (no loss scaling, and some ten times slower "
            "than fp32). Type model.dtype=fp32, or model.dtype=auto."
        )
    return _cpu_dtype() if asked == "auto" else asked


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Where CUDA graphs of the device are recorded: torch's own is of whichever came first."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def device_facts(device: torch.device, dtype: str) -> DeviceFacts:
    """What the device is, and the versions of what computes on it."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    return DeviceFacts(
        name=_cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        kind=device.type,
        memory_bytes=memory_bytes(device),
        dtype=dtype,
        versions=versions,
    )


def memory_bytes(device: torch.device) -> int:
    """All memory of the device; of a CPU, the host's that this process may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host.total_bytes()


def _cuda_dtype(device: torch.device, asked: str) -> str:
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and not has_bf16:
        raise InputError(
            f"model.dtype=bf16: {torch.cuda.get_device_name(device)} has no bf16. "
            "Type model.dtype=fp16, or model.dtype=auto."
        )
    if asked != "auto":
        return asked
    return "bf16" if has_bf16 else "fp16"


def _cpu_dtype() -> str:
    # bf16 is sure to pay on a CPU with AMX tiles. With AVX512-BF16 alone (Zen 5, two busy cores)
    # the demo's step took as long in bf16 as in fp32 within the noise, a base 1024 wide under half
    # as long: there fp32 is the default for its exactness, and model.dtype=bf16 is worth a try.
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
