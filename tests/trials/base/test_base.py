"""The base: quantised as asked and nothing else, frozen, with its facts right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import NAMES, load, random_base, silent

from trials.base import Base, load_base
from trials.base.origin import DEMO
from trials.contract import InputError, ModelConfig
from trials.quiet import quiet


@pytest.fixture(scope="module")
def demo() -> Base:
    return load()


# --- what is loaded -------------------------------------------------------------------------------


def test_the_demo_is_nf4_frozen_and_pinned(demo: Base) -> None:
    import bitsandbytes

    layers = [m for m in demo.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == len(NAMES) * demo.model.config.num_hidden_layers
    states = [layer.weight.quant_state for layer in layers]
    assert {(state.quant_type, state.nested) for state in states} == {("nf4", True)}
    assert not any(p.requires_grad for p in demo.model.parameters())
    assert demo.model.config.use_cache is False
    assert demo.config.revision and demo.config.dtype in ("fp32", "bf16")
    assert load_base(demo.config, "cpu", silent).config == demo.config


def test_facts_count_parameters_not_packed_bytes(demo: Base) -> None:
    from safetensors import safe_open

    with safe_open(DEMO / "model.safetensors", "pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert demo.facts.parameters == sum(torch.Size(shape).numel() for shape in stored.values())
    assert demo.facts.linear_modules == NAMES
    assert demo.facts.architecture == "LlamaForCausalLM"
    dense = load(quantisation="none", dtype="fp32").facts
    assert dense.parameters == demo.facts.parameters
    assert dense.loaded_bytes > 4 * dense.parameters > demo.facts.loaded_bytes


@pytest.mark.parametrize("quantisation", ["nf4", "fp4", "int8"])
def test_quantised_weights_are_close_to_the_files(quantisation: str) -> None:
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        dense = load(quantisation="none", dtype="fp32").model(ids).logits
        logits = load(quantisation=quantisation, dtype="fp32").model(ids).logits
    error = ((logits - dense).norm() / dense.norm()).item()
    assert 0 < error < {"nf4": 0.3, "fp4": 0.5, "int8": 0.05}[quantisation]


@pytest.mark.parametrize("double", [True, False])
def test_double_quantisation_saves_memory(double: bool, demo: Base) -> None:
    base = load(double_quantisation=double)
    assert (base.facts.loaded_bytes > demo.facts.loaded_bytes) is not double


@pytest.mark.parametrize("quantisation", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gradients_are_right_after_an_evaluation(quantisation: str, dtype: str) -> None:
    """bitsandbytes repacks 4-bit weights at the first evaluation on some CPUs; ours must not."""
    import bitsandbytes

    base = load(quantisation=quantisation, dtype=dtype)
    ids = torch.arange(3, 67).reshape(2, 32)
    base.model.eval()
    with torch.no_grad():
        base.model(ids)  # the evaluation that used to spoil what follows
    found = _input_gradient(base.model, ids)
    for path, layer in list(base.model.named_modules()):
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            base.model.set_submodule(path, _dense(layer))
    expected = _input_gradient(base.model, ids)
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < (1e-4 if dtype == "fp32" else 0.05)


def _input_gradient(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.train()
    inputs = model.get_input_embeddings()(ids).detach().float().requires_grad_()
    model(inputs_embeds=inputs.to(model.dtype), labels=ids).loss.backward()
    return inputs.grad  # type: ignore[return-value]


def _dense(layer: Any) -> torch.nn.Linear:
    import bitsandbytes.functional

    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    dense.weight = torch.nn.Parameter(weight.to(layer.compute_dtype), requires_grad=False)
    return dense


def test_the_tokenizer_pads_on_the_right(demo_copy: Path, demo: Base) -> None:
    settings = json.loads((demo_copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    settings["padding_side"] = "left"
    (demo_copy / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load(name=str(demo_copy)).tokenizer
    assert (tokenizer.pad_token, tokenizer.padding_side) == (tokenizer.eos_token, "right")
    assert demo.tokenizer.pad_token == "<pad>"


def test_a_folder_is_named_absolutely_and_pinned_by_content(
    demo_copy: Path, monkeypatch: pytest.MonkeyPatch, demo: Base
) -> None:
    monkeypatch.chdir(demo_copy.parent)
    base = load(name="base")
    assert base.config.name == str(demo_copy)
    assert base.config.revision == demo.config.revision  # the same files
    settings = json.loads((demo_copy / "config.json").read_text())
    (demo_copy / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-5}))
    with pytest.raises(InputError, match="the base has changed"):
        load_base(base.config, "cpu", silent)


def test_progress_is_told() -> None:
    said: list[tuple[str, int, int]] = []
    load_base(ModelConfig(name="demo"), "cpu", lambda *step: said.append(step))
    assert [done for _, done, _ in said] == list(range(len(said)))
    assert said[-1][1] == said[-1][2]


def test_loading_is_silent() -> None:
    code = ("from trials.base import load_base; from trials.contract import ModelConfig\n"
            "load_base(ModelConfig(name='demo'), 'cpu', lambda *step: None)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_base_stored_in_4_bit_is_taken_as_it_is(tmp_path: Path, demo: Base) -> None:
    with quiet():
        demo.model.save_pretrained(tmp_path)
    demo.tokenizer.save_pretrained(tmp_path)
    again = load(name=str(tmp_path))
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, demo.model.eval()(ids).logits)
    with pytest.raises(InputError, match="quantised as nf4, doubly, asked was fp4, doubly"):
        load(name=str(tmp_path), quantisation="fp4")
    with pytest.raises(InputError, match="already quantised"):
        load(name=str(tmp_path), quantisation="none")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantisation": "nf3"}, "Known: nf4, fp4, int8, none"),
        ({"dtype": "fp64"}, "Known: auto, bf16, fp16, fp32"),
        ({"dtype": "fp16"}, "model.dtype=fp32"),
        ({"name": "./nowhere"}, "no such folder"),
        ({"name": "Some/Model"}, "hub did not answer"),
        ({"revision": "0123456789abcdef"}, "the base has changed"),
    ],
)
def test_bad_settings_are_input_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(**settings)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no safetensors weights"),
        ("tokenizer*", "tokenizer's files are missing"),
        ("tokenizer.json", "tokenizer cannot be loaded"),
    ],
)
def test_a_folder_with_files_missing(demo_copy: Path, file: str, message: str) -> None:
    for path in demo_copy.glob(file):
        path.unlink()
    (demo_copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        load(name=str(demo_copy))


def test_without_safetensors_it_says_how_to_convert(demo_copy: Path) -> None:
    (demo_copy / "model.safetensors").rename(demo_copy / "pytorch_model.bin")
    with pytest.raises(InputError) as refused:
        load(name=str(demo_copy))
    said = str(refused.value)
    assert "pytorch_model.bin can run code when it is loaded" in said
    assert f"from_pretrained({str(demo_copy)!r}).save_pretrained('converted')" in said
    assert "model.revision=refs/pr/" in said and said.endswith("and type model.name=converted.")


def test_weights_that_are_missing_are_not_made_up(demo_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(demo_copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, demo_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 weights \(model.norm.weight"):
        load(name=str(demo_copy))


def test_damaged_weights(demo_copy: Path) -> None:
    whole = (demo_copy / "model.safetensors").read_bytes()
    (demo_copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="model cannot be loaded"):
        load(name=str(demo_copy))


def test_a_width_that_4_bit_blocks_do_not_divide(tmp_path: Path) -> None:
    folder = random_base(tmp_path, "Llama", intermediate_size=96)
    with pytest.raises(InputError, match="down_proj is 96 wide, not a multiple of the 64"):
        load(name=folder)
    assert load(name=folder, quantisation="int8").facts.linear_modules == NAMES


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not belong together"):
        load(name=random_base(tmp_path, "Llama", vocab_size=100))


def test_code_of_the_model_is_not_run_unasked(demo_copy: Path) -> None:
    settings = json.loads((demo_copy / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (demo_copy / "config.json").write_text(json.dumps(settings))
    (demo_copy / "own.py").write_text(f"open({str(demo_copy / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="model.trust_remote_code=true"):
        load(name=str(demo_copy))
    assert not (demo_copy / "ran").exists()
