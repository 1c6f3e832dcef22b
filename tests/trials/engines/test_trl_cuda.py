"""The TRL engine on CUDA: precision, memory, and the losses of the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from running import fp32_of, outcomes, run
from tiny import Recorder, Tiny
from torch.nn.functional import scaled_dot_product_attention

from trials.contract import PAGED, Outcome, TrialConfig


def on_cuda(tiny: Tiny, quantisation: str = "nf4", dtype: str = "bf16") -> Tiny:
    """The same base on the first CUDA device."""
    return replace(tiny, device="cuda:0", quantisation=quantisation, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("quantisation", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_cuda_trains_in_mixed_precision(
    tiny: Tiny, quantisation: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fp32_of(monkeypatch)
    device = on_cuda(tiny, quantisation, dtype)
    driver = run(device, device.trial(0, examples=160), device.trial(1, examples=160))
    assert outcomes(driver) == [Outcome.COMPLETE] * 2
    assert seen == {"weight": {torch.float32}, "moment": {torch.float32}}
    assert driver.setup is not None
    assert (driver.results[0].eval_loss or 9.0) < driver.setup.baseline_loss - 0.1
    assert driver.losses(0) == pytest.approx(driver.losses(1), rel=1e-3)
    assert 0 < driver.results[0].memory_bytes < 2**31


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "rel"), [("fp32", 1e-4), ("bf16", 2e-2), ("fp16", 1e-2)])
@pytest.mark.parametrize("setting", [
    {"micro_batch_size": 4}, {"micro_batch_size": 3}, {"gradient_checkpointing": True},
    {"packing": True},
], ids=str)
def test_on_cuda_too_how_a_batch_is_computed_does_not_matter(
    tiny: Tiny, dtype: str, rel: float, setting: dict[str, Any]
) -> None:
    device = on_cuda(tiny, "none", dtype)
    whole = device.trial(0, batch_size=16, micro_batch_size=16)
    driver = run(device, whole, device.trial(1, batch_size=16, **setting))
    assert outcomes(driver) == [Outcome.COMPLETE] * 2
    assert driver.losses(1) == pytest.approx(driver.losses(0), rel=rel)


@pytest.mark.gpu
def test_gradients_of_masked_attention_are_finite(tiny: Tiny) -> None:
    length, width = 704, 64  # cuDNN's backward gives NaN where all scores are far below 0
    run(on_cuda(tiny), tiny.trial(examples=8, ticks=1))
    q, k, v = (torch.randn(1, 1, length, width, device="cuda").bfloat16() for _ in "qkv")
    q[..., 0], k[..., 0] = 1.0, -120.0 * width**0.5
    q.requires_grad_()
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()[None, None]
    scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


@pytest.mark.gpu
def test_cuda_gives_the_losses_of_the_cpu(dense: Tiny) -> None:
    device = on_cuda(dense, "none", "fp32")
    trial = dense.trial(examples=40)
    assert run(device, trial).losses(0) == pytest.approx(run(dense, trial).losses(0), rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", PAGED)
def test_paged_optimizers_train_and_reuse_their_pages(tiny: Tiny, optimizer: str) -> None:
    from trials.training import optimizers

    device = on_cuda(tiny)
    wide = {"r": 1024, "alpha": 1024.0}  # large enough to be paged
    trials = [device.trial(k, examples=96, lora=wide, optimizer=optimizer) for k in range(3)]
    driver = run(device, *trials[:1], optimizers=(optimizer,))
    pages = sum(page.numel() for page in optimizers._free_pages)
    assert pages > 0
    driver = run(device, *trials, optimizers=(optimizer,))
    assert sum(page.numel() for page in optimizers._free_pages) == pages
    assert outcomes(driver) == [Outcome.COMPLETE] * 3
    assert driver.setup is not None
    assert (driver.results[2].eval_loss or 9.0) < driver.setup.baseline_loss
    assert driver.losses(2) == pytest.approx(driver.losses(0), rel=1e-3)


@pytest.mark.gpu
def test_cuda_memory_is_as_before_after_trials_of_every_end(tiny: Tiny) -> None:
    from trials.engines.trl import prepare

    device = on_cuda(tiny)
    driver = Recorder()
    engine, driver.setup = prepare(device.assignment(), driver)

    def bytes_after(*trials: TrialConfig) -> int:
        driver.trials += trials
        engine.run(driver)
        return torch.cuda.memory_allocated()

    first = bytes_after(device.trial(0))
    ends = device.trial(1), device.trial(2, learning_rate=1e30), device.trial(3, packing=True)
    assert bytes_after(*ends) == first


@pytest.mark.gpu
def test_running_out_of_cuda_memory_is_infeasible_and_hurts_no_one_else(tiny: Tiny) -> None:
    from trials.engines.trl import prepare

    device = on_cuda(tiny)
    fresh = run(device, device.trial(1))
    driver = Recorder([device.trial(0, lora={"r": 65536})])
    engine, driver.setup = prepare(device.assignment(), driver)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        engine.run(driver)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    driver.trials.append(device.trial(1))
    engine.run(driver)
    assert outcomes(driver) == [Outcome.INFEASIBLE, Outcome.COMPLETE]
    assert driver.results[0].reason is not None
    assert "out of memory" in driver.results[0].reason
    assert driver.losses(1) == pytest.approx(fresh.losses(1), rel=1e-3)


@pytest.mark.gpu
def test_another_cuda_device_than_the_first_works(tiny: Tiny) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    device = replace(on_cuda(tiny), device="cuda:1")
    assert outcomes(run(device, device.trial())) == [Outcome.COMPLETE]
