"""Packs on the families of bases that users have, on the CPU and on CUDA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import random_base
from packs import alone, bench, check_distances, mixed, prepared, run, seated
from tiny import Recorder, Tiny, made_in, write_data

from trials.contract import EngineConfig, InputError, Outcome
from trials.engines.packed import prepare
from trials.engines.packed.engine import PackedEngine
from trials.worker import work

CUDA = "cuda:0"
LAYERS = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {  # windows are shorter than rows
    "Qwen2": {}, "Qwen3": {}, "Mistral": {"sliding_window": 8}, "Gemma": {},
    "Gemma2": {"sliding_window": 8, "layer_types": LAYERS},
    "Gemma3Text": {"sliding_window": 8, "layer_types": LAYERS}, "Phi3": {},
}


def family(folder: Path, kind: str, **given: Any) -> Tiny:
    """A random base of a family with the tiny data."""
    base = random_base(folder / "base", kind, **FAMILIES.get(kind, {}))
    return Tiny(Path(base), write_data(folder / "data.jsonl"), **given)


def check_family(tiny: Tiny, *, rel: float) -> PackedEngine:
    """A pack of two trials trains as TRL does."""
    trials = [tiny.trial(k, seed=k, lora={"r": 4 + k}) for k in range(2)]
    driver, other = Recorder(list(trials)), Recorder(list(trials))
    engine, driver.setup = prepare(
        tiny.assignment(engine=EngineConfig(name="packed", options={"capacity": 2})), driver)
    engine.run(driver)
    work(tiny.assignment(), other)
    for k in range(2):
        assert driver.losses(k) == pytest.approx(other.losses(k), rel=rel)
    return engine


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_train_as_under_trl(tmp_path: Path, kind: str) -> None:
    check_family(family(tmp_path, kind), rel=1e-4)


def test_layers_of_another_type_are_named(tmp_path: Path) -> None:
    tiny = replace(family(tmp_path, "GPT2"), quantisation="none")
    assigned = tiny.assignment(engine=EngineConfig(name="packed"))
    with pytest.raises(InputError, match="h.0.attn.c_attn is a Conv1D.* Type engine=trl"):
        prepare(assigned, Recorder())


# --- CUDA ----------------------------------------------------------------------------------------


def on_cuda(folder: Path, dtype: str = "bf16") -> Tiny:
    """The tiny Llama in NF4 on the first CUDA device."""
    return made_in(folder, dtype=dtype, device=CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_cuda_losses_are_as_near_as_two_trl_runs_are(tmp_path: Path, dtype: str) -> None:
    tiny = on_cuda(tmp_path, dtype)
    check_distances(tiny, mixed(tiny, examples=64))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Gemma3Text"])
def test_cuda_families_train_as_under_trl(tmp_path: Path, kind: str) -> None:
    engine = check_family(family(tmp_path, kind, dtype="bf16", device=CUDA), rel=2e-3)
    assert engine.size.ragged is (kind != "Gemma2")  # its attention has a soft cap


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
