"""Target modules: presets and names, resolved against the modules that a model really has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bases import NAMES, load, random_base

from trials.base import Base, resolve_targets
from trials.contract import InputError
from trials.quiet import quiet


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Qwen2", {"qv": "q_proj v_proj", "mlp": "gate_proj up_proj down_proj"}),
        ("Qwen3", {"attention": "q_proj k_proj v_proj o_proj"}),
        ("Mistral", {"qkvo": "q_proj k_proj v_proj o_proj"}),
        ("Gemma", {"all-linear": " ".join(NAMES)}),
        ("GPT2", {"qv": "c_attn", "attention": "c_attn attn.c_proj", "mlp": "c_fc mlp.c_proj"}),
        ("OPT", {"qv": "q_proj v_proj", "qkvo": "q_proj k_proj v_proj out_proj", "mlp": "fc1 fc2"}),
        ("Phi3", {"qv": "qkv_proj", "attention": "qkv_proj o_proj",
                  "mlp": "gate_up_proj down_proj"}),
    ],
)
def test_presets_mean_the_models_own_modules(
    tmp_path: Path, kind: str, expected: dict[str, str]
) -> None:
    from peft import LoraConfig, get_peft_model

    base = load(name=random_base(tmp_path, kind))
    for preset, names in expected.items():
        found = resolve_targets(base.facts, preset)
        assert set(found) == set(names.split()), preset
    with quiet():
        adapted = get_peft_model(base.model, LoraConfig(target_modules=list(found), r=2))
    wrapped = [n for n, m in adapted.named_modules() if hasattr(m, "lora_A")]
    assert all(any(path.endswith(f".{name}") for path in wrapped) for name in found)
    assert all(path.endswith(tuple(f".{name}" for name in found)) for path in wrapped)


def test_names_and_lists_of_names(plain_base: Base) -> None:
    assert resolve_targets(plain_base.facts, "q_proj") == ("q_proj",)
    assert resolve_targets(plain_base.facts, ("v_proj", "q_proj")) == ("v_proj", "q_proj")
    both = resolve_targets(plain_base.facts, ("mlp", "up_proj"))
    assert both == ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_porj", "Did you mean 'q_proj'.*Modules: q_proj, k_proj.*Presets: q, "),
        ("lm_head", "no such module"),
        (("q_proj", "c_attn"), "'c_attn'"),
        ((), "is empty"),
    ],
)
def test_unknown_modules(plain_base: Base, target: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_targets(plain_base.facts, target)


def test_a_preset_that_the_model_lacks(plain_base: Base) -> None:
    only = ("up_proj",)
    facts = replace(plain_base.facts, linear_modules=only, presets={"all-linear": only})
    with pytest.raises(InputError, match="no modules for this preset.*Modules: up_proj"):
        resolve_targets(facts, "attention")
