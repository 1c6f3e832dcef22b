"""Rows are laid end to end only in bases that compute them so as they compute them in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import LLAMA_LIKE, load, random_base
from tiny import Recorder, Tiny, write_data
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trials.contract import EngineConfig
from trials.engines.packed import attention, prepare
from trials.engines.packed.apart import check_apart
from trials.engines.packed.forward import Forward

WINDOW = 16  # tokens, fewer than the rows that are tried have
SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
APART: dict[str, dict[str, Any]] = {
    "Llama": {}, "Qwen3": {}, "Mistral": {"sliding_window": WINDOW},
    "Gemma3Text": {"sliding_window": WINDOW, "num_hidden_layers": 6},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
SEEING: dict[str, dict[str, Any]] = {
    "Bloom": {"n_layer": 2, "n_head": 2},
    "GPTJ": {"n_embd": 64, "n_layer": 2, "n_head": 2, "rotary_dim": 16},
    "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128},
    "GraniteMoeHybrid": {"layer_types": ["mamba", "attention"], "num_local_experts": 0,
                         "num_experts_per_tok": 0, "shared_intermediate_size": 64, **SSM},
}


class Reference:
    """What the kernels of CUDA compute, in plain torch."""

    causal = True

    @classmethod
    def apply(
        cls, q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int,
        scale: float | None, window: int | None,
    ) -> Tensor:
        given = [states.repeat_interleave(q.shape[1] // states.shape[1], 1).transpose(0, 1)
                 for states in (q, k, v)]
        row = torch.searchsorted(ends, torch.arange(len(q)), right=True)
        back = torch.arange(len(q))[:, None] - torch.arange(len(q))
        seen = (row[:, None] == row) & (back < (window or longest))
        seen &= (back >= 0) | (not cls.causal)
        return scaled_dot_product_attention(*given, attn_mask=seen, scale=scale).transpose(0, 1)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows laid end to end on the CPU."""
    monkeypatch.setattr(attention, "_kernels", lambda q, longest: Reference)


def check(folder: Path, kind: str, sizes: dict[str, Any]) -> None:
    """Checks a random base of a family."""
    name = random_base(folder, kind, **LLAMA_LIKE | sizes)
    base = load(name=name, quantisation="none", dtype="bf16")
    check_apart(base, Forward(base, 2**30), longest=64)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", APART)
def test_rows_end_to_end_are_those_of_a_batch(tmp_path: Path, kind: str) -> None:
    check(tmp_path, kind, APART[kind])


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", SEEING)
def test_what_mixes_tokens_past_the_attention_interface_is_found(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ValueError, match=f"in {kind}ForCausalLM .* tokens that they must not see"):
        check(tmp_path, kind, SEEING[kind])


@pytest.mark.usefixtures("on_cpu")
def test_attention_with_parts_that_kernels_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attention with a soft cap, sinks or a mask"):
        check(tmp_path, "GptOss", {"num_local_experts": 4})


def test_logits_that_are_not_the_heads_alone_are_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CohereForCausalLM makes its logits in a way of its own"):
        check(tmp_path, "Cohere", {})


@pytest.mark.usefixtures("on_cpu")
def test_attention_that_computes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reference, "apply", lambda q, *_: torch.zeros_like(q))
    with pytest.raises(ValueError, match="in LlamaForCausalLM .* something else than alone"):
        check(tmp_path, "Llama", {})


@pytest.mark.usefixtures("on_cpu")
def test_a_lost_causal_mask_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "causal", False)
    with pytest.raises(ValueError, match="tokens that they must not see"):
        check(tmp_path, "Llama", {})


# --- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "ragged"), [("Llama", True), ("GPTJ", False), ("Lfm2", False)])
def test_cuda_rows_that_would_see_each_other_are_padded(
    tmp_path: Path, kind: str, ragged: bool
) -> None:
    name = random_base(tmp_path / "base", kind, **LLAMA_LIKE | {**APART, **SEEING}[kind])
    tiny = Tiny(Path(name), write_data(tmp_path / "data.jsonl"), dtype="bf16", device="cuda:0")
    assigned = tiny.assignment(engine=EngineConfig(name="packed", options={"capacity": 2}))
    driver = Recorder()
    engine, driver.setup = prepare(replace(assigned, target_modules=("attention",)), driver)
    assert engine.size.ragged is ragged
    said = [note for note in driver.notes if note.startswith("packs pad their rows here")]
    assert len(said) == (0 if ragged else 1)
    assert all(f"in {kind}ForCausalLM rows laid end to end would see" in note for note in said)
