"""Packs on the families of bases that users have, on the CPU and on CUDA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import random_base
from packs import alone, bench, mixed, prepared, run, seated
from tiny import Recorder, Tiny, made_in, write_data

from trials.contract import EngineConfig, InputError, Outcome
from trials.engines.packed import prepare
from trials.worker import work


def family(folder: Path, kind: str, **sizes: Any) -> Tiny:
    """A random base of a family with the tiny data."""
    base = Path(random_base(folder / "base", kind, **sizes))
    return Tiny(base, write_data(folder / "data.jsonl"))


def trl(tiny: Tiny, *trials: Any) -> Recorder:
    """The same trials through the TRL engine."""
    driver = Recorder(list(trials))
    assigned = tiny.assignment(optimizers=("adamw", "sgd"), target_modules=("all-linear",))
    work(assigned, driver)
    return driver


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Phi3"])
def test_families_train_as_under_trl(tmp_path: Path, kind: str) -> None:
    tiny = family(tmp_path, kind, max_position_embeddings=128)
    trials = [tiny.trial(k, seed=k, lora={"r": 4 + k}) for k in range(2)]
    driver = Recorder(list(trials))
    assigned = tiny.assignment(engine=EngineConfig(name="packed", options={"capacity": 2}))
    engine, driver.setup = prepare(assigned, driver)
    engine.run(driver)
    other = trl(tiny, *trials)
    for k in range(2):
        assert driver.losses(k) == pytest.approx(other.losses(k), rel=1e-4)


def test_layers_of_another_type_are_named(tmp_path: Path) -> None:
    tiny = replace(family(tmp_path, "GPT2"), quantisation="none")
    assigned = tiny.assignment(engine=EngineConfig(name="packed"))
    with pytest.raises(InputError, match="h.0.attn.c_attn is a Conv1D.* Type engine=trl"):
        prepare(assigned, Recorder())


# --- CUDA ----------------------------------------------------------------------------------------


def on_cuda(folder: Path, quantisation: str = "nf4", dtype: str = "bf16") -> Tiny:
    """The tiny Llama on the first CUDA device."""
    return made_in(folder, quantisation=quantisation, dtype=dtype, device="cuda:0")


@pytest.mark.gpu
@pytest.mark.parametrize(("quantisation", "dtype", "rel"), [
    ("none", "fp32", 1e-4), ("nf4", "fp32", 1e-3), ("nf4", "bf16", 2e-2),
])
def test_cuda_packs_train_as_under_trl(
    tmp_path: Path, quantisation: str, dtype: str, rel: float
) -> None:
    tiny = on_cuda(tmp_path, quantisation, dtype)
    trials = mixed(tiny, examples=64)
    packed, other = run(tiny, *trials, capacity=3), trl(tiny, *trials)
    for trial in trials:
        assert packed.losses(trial.number) == pytest.approx(other.losses(trial.number), rel=rel)


@pytest.mark.gpu
def test_cuda_slots_start_where_peft_would(tmp_path: Path) -> None:
    tiny = on_cuda(tmp_path)
    engine, _ = prepared(tiny, capacity=4)
    with bench(engine, slots=4) as slots:
        trials = mixed(tiny)
        seated(slots, *trials)
        found = [{name: (a.clone(), b.clone()) for name, (a, b)
                  in slots.bank.factors(k, t.lora.r).items()} for k, t in enumerate(trials)]
    for k, trial in enumerate(trials):
        for name, pair in alone(engine, trial, steps=0).factors.items():
            assert all(map(torch.equal, pair, found[k][name]))


@pytest.mark.gpu
def test_cuda_divergence_ends_a_trial_alone(tmp_path: Path) -> None:
    tiny = on_cuda(tmp_path)
    trials = [tiny.trial(0, examples=80), tiny.trial(1, examples=80, learning_rate=1e30)]
    results = {r.trial: r for r in run(tiny, *trials, capacity=2).results}
    assert results[0].outcome is Outcome.COMPLETE
    assert results[1].outcome is Outcome.DIVERGED
    assert results[1].examples == 16
