"""Adapters come as PEFT makes them, train in fp32, leave no trace, and load elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Tiny, made_in

from trials.adapters import Adapter, export, fresh_adapter
from trials.base import Base, load_base
from trials.contract import LoraConfig
from trials.data.examples import Example
from trials.dropout import KeyedDropout, row_keys
from trials.evaluate import evaluate, evaluation_batches
from trials.quiet import quiet
from trials.training.batches import Limit

TARGETS = ("q_proj", "down_proj")
IDS = torch.arange(3, 19).view(2, 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A base of this module's own."""
    return made_in(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["nf4", "fp4", "int8", "none"])
def base(tiny: Tiny, request: pytest.FixtureRequest) -> Base:
    """The base under each quantisation."""
    return loaded(tiny, request.param)


def loaded(tiny: Tiny, quantisation: str, dtype: str = "fp32", device: str = "cpu") -> Base:
    """The tiny base as asked for."""
    model = Tiny(tiny.base, tiny.data, quantisation, dtype).assignment().model
    return load_base(model, device, lambda what, done, total: None)


def lora(**changes: object) -> LoraConfig:
    """A small adapter with dropout."""
    return LoraConfig(**{"r": 4, "alpha": 8.0, "dropout": 0.25} | changes)  # type: ignore[arg-type]


def trained_a_little(adapter: Adapter) -> None:
    """Moves every weight away from its start."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(9)
        for parameter in adapter.parameters:
            parameter += torch.randn_like(parameter) * 0.1


def test_it_starts_as_peft_initialises_it_under_the_seed(tiny: Tiny) -> None:
    import peft

    base = loaded(tiny, "none")
    with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed=5) as adapter:
        ours = [parameter.detach().clone() for parameter in adapter.parameters]
    plain = loaded(tiny, "none")
    config = peft.LoraConfig(r=4, lora_alpha=8.0, target_modules=list(TARGETS))
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        model = peft.get_peft_model(plain.model, config)
    theirs = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(ours) == len(theirs) == 2 * 2 * 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_global_random_state_does_not_matter_and_is_not_touched(tiny: Tiny) -> None:
    base = loaded(tiny, "nf4")
    starts = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed=5) as adapter:
            starts.append([parameter.detach().clone() for parameter in adapter.parameters])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_its_weights_are_fp32(tiny: Tiny, dtype: str) -> None:
    for quantisation in ("nf4", "none"):
        base = loaded(tiny, quantisation, dtype)
        with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed=5) as adapter:
            assert {parameter.dtype for parameter in adapter.parameters} == {torch.float32}
            assert adapter.trainable_parameters == 2 * (4 * (64 + 64) + 4 * (128 + 64))


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 2.0), (True, 4.0)])
def test_alpha_scales_as_told(tiny: Tiny, rslora: bool, scaling: float) -> None:
    base = loaded(tiny, "nf4")
    with quiet(), fresh_adapter(base.model, lora(rslora=rslora), TARGETS, seed=5) as adapter:
        layers = [m for m in adapter.model.modules() if hasattr(m, "lora_dropout")]
        assert [layer.scaling["default"] for layer in layers] == [scaling] * 4


def test_dropout_is_keyed_by_the_module_path_in_the_base(tiny: Tiny) -> None:
    base = loaded(tiny, "nf4")
    with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed=5) as adapter:
        found = [m for m in adapter.model.modules() if isinstance(m, KeyedDropout)]
        expected = {KeyedDropout(0.25, f"model.layers.{i}.{name}", adapter.keys).module
                    for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}
        assert {module.module for module in found} == expected
        assert not any(isinstance(m, torch.nn.Dropout) for m in adapter.model.modules())


def test_nothing_of_it_stays_on_the_base(base: Base) -> None:
    with torch.no_grad():
        before = base.model(IDS).logits
    modules = [type(module) for module in base.model.modules()]
    attributes = set(vars(base.model))
    for seed in (1, 2):
        with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed) as adapter:
            trained_a_little(adapter)
            adapter.keys.rows = row_keys(1, torch.arange(2)[:, None], torch.arange(8)[None])
            adapter.model.train()
            assert not torch.equal(adapter.model(IDS).logits, before)
    with torch.no_grad():
        assert torch.equal(base.model(IDS).logits, before)
    assert [type(module) for module in base.model.modules()] == modules
    assert set(vars(base.model)) == attributes
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_it_is_removed_after_an_error_too(tiny: Tiny) -> None:
    base = loaded(tiny, "nf4")
    with torch.no_grad():
        before = base.model(IDS).logits
    with pytest.raises(KeyError), quiet(), fresh_adapter(base.model, lora(), TARGETS, 1) as adapter:
        trained_a_little(adapter)
        base.model.forward = lambda *inputs: None  # as a Trainer patches it
        raise KeyError
    with torch.no_grad():
        assert torch.equal(base.model(IDS).logits, before)


def test_half_an_adapter_is_removed_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import LoraLayer

    base = loaded(tiny, "nf4")
    modules = [type(module) for module in base.model.modules()]
    attributes = set(vars(base.model))
    update, calls = LoraLayer.update_layer, iter(range(9))

    def failing(layer: LoraLayer, *given: object, **named: object) -> None:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        update(layer, *given, **named)

    monkeypatch.setattr(LoraLayer, "update_layer", failing)
    with pytest.raises(torch.OutOfMemoryError), quiet():
        with fresh_adapter(base.model, lora(), TARGETS, 1):
            pytest.fail("not reached")
    assert [type(module) for module in base.model.modules()] == modules
    assert set(vars(base.model)) == attributes


def test_gradients_are_those_of_the_dequantised_model_after_an_evaluation(tiny: Tiny) -> None:
    import bitsandbytes

    quantised, dense = loaded(tiny, "nf4"), loaded(tiny, "none")
    twins = dict(dense.model.named_modules())
    for name, module in quantised.model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            packed, state = module.weight, module.weight.quant_state
            weight = bitsandbytes.functional.dequantize_4bit(packed, state)
            twins[name].weight.data = weight.view_as(twins[name].weight).clone()
    gradients = []
    for base in (quantised, dense):
        with torch.no_grad():
            base.model.eval()(IDS)  # repacks the weights on some CPUs, unless told not to
        with quiet(), fresh_adapter(base.model, lora(dropout=0.0), TARGETS, 1) as adapter:
            trained_a_little(adapter)
            adapter.model.train()(IDS).logits.square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in adapter.parameters])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("quantisation", ["nf4", "none"])
def test_an_export_loads_elsewhere_with_the_same_loss(
    tiny: Tiny, tmp_path: Path, quantisation: str
) -> None:
    from peft import AutoPeftModelForCausalLM

    base = loaded(tiny, quantisation)
    example = Example(tuple(range(3, 20)), (False,) * 10 + (True,) * 7, "", "")
    batches = evaluation_batches([example], pad=0, limit=Limit(), device=base.device)
    with quiet(), fresh_adapter(base.model, lora(rslora=True), TARGETS, seed=5) as adapter:
        trained_a_little(adapter)
        expected = evaluate(adapter.model, batches, torch.float32).loss
        folder = export(adapter, tmp_path / "7", base=str(tiny.base))
    with quiet():
        options = {"quantization_config": base.model.config.quantization_config,
                   "device_map": {"": "cpu"}} if quantisation == "nf4" else {}
        other = AutoPeftModelForCausalLM.from_pretrained(folder, **options)
    # A plain loader lets bitsandbytes compute in bf16 on CPUs that have it.
    precision = 1e-3 if quantisation == "nf4" else 1e-6
    assert evaluate(other, batches, torch.float32).loss == pytest.approx(expected, rel=precision)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_an_export_replaces_an_earlier_one(tiny: Tiny, tmp_path: Path) -> None:
    base = loaded(tiny, "nf4")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "left.over").touch()
    with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed=5) as adapter:
        folder = export(adapter, tmp_path / "7", base=str(tiny.base))
    assert not (folder / "left.over").exists()


def test_an_export_goes_over_what_a_killed_one_left(tiny: Tiny, tmp_path: Path) -> None:
    base = loaded(tiny, "nf4")
    (tmp_path / ".7.new").mkdir()
    (tmp_path / ".7.new" / "half.safetensors").touch()
    with quiet(), fresh_adapter(base.model, lora(), TARGETS, seed=5) as adapter:
        folder = export(adapter, tmp_path / "7", base=str(tiny.base))
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    assert not (folder / "half.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("quantisation", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_on_cuda_too_nothing_of_it_stays(tiny: Tiny, quantisation: str, dtype: str) -> None:
    base = loaded(tiny, quantisation, dtype, device="cuda:0")
    ids = IDS.cuda()
    with torch.no_grad():
        before = base.model(ids).logits
    with quiet(), fresh_adapter(base.model, lora(dropout=0.0), TARGETS, 1) as adapter:
        trained_a_little(adapter)
        assert {parameter.dtype for parameter in adapter.parameters} == {torch.float32}
        assert {parameter.device.type for parameter in adapter.parameters} == {"cuda"}
        with torch.no_grad(), torch.autocast("cuda", dtype=getattr(torch, {
            "bf16": "bfloat16", "fp16": "float16"}[dtype])):
            assert not torch.equal(adapter.model(ids).logits, before)
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, before)
