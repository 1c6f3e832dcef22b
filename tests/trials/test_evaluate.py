"""Evaluation: the model's own loss, whatever the batches and the architecture."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from trials.data.examples import Example
from trials.evaluate import Evaluation, evaluate, evaluation_batches, target_logits
from trials.training.batches import Limit, collate, pack

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}


def llama() -> torch.nn.Module:
    """The plainest layout."""
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gemma() -> torch.nn.Module:
    """Soft caps behind the head, tied embeddings, windows in every other layer."""
    config = Gemma2Config(**SIZES, sliding_window=8, final_logit_softcapping=0.5)
    return Gemma2ForCausalLM(config)


def gpt2() -> torch.nn.Module:
    """Learned positions and fused projections."""
    sizes = {"vocab_size": 50, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


MODELS = {"llama": llama, "gemma": gemma, "gpt2": gpt2}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """Random weights, large enough that losses differ between tokens."""
    torch.manual_seed(1)
    made = MODELS[request.param]()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return made.train()


def some_examples(count: int = 12) -> list[Example]:
    """Random tokens of random lengths."""
    draw = random.Random(2)
    found = []
    for _ in range(count):
        length, targets = draw.randint(4, 30), draw.randint(1, 3)
        ids = tuple(draw.randrange(3, 50) for _ in range(length))
        found.append(Example(ids, (False,) * (length - targets) + (True,) * targets, "", ""))
    return found


def measured(model: torch.nn.Module, examples: list[Example], limit: Limit) -> Evaluation:
    """The evaluation in fp32 on the CPU."""
    batches = evaluation_batches(examples, pad=0, limit=limit, device=torch.device("cpu"))
    return evaluate(model, batches, torch.float32)


def one_by_one(model: torch.nn.Module, examples: list[Example]) -> Evaluation:
    """The same by the model's own loss and full logits."""
    total, targets, right = 0.0, 0, 0
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([example.input_ids])
            labels = torch.where(torch.tensor([example.loss_mask]), ids, -100)
            out = model.eval()(input_ids=ids, labels=labels)
            count = sum(example.loss_mask)
            total, targets = total + float(out.loss) * count, targets + count
            guesses = out.logits.argmax(-1)[0, -count - 1 : -1]
            right += bool((guesses == ids[0, -count:]).all())
    return Evaluation(loss=total / targets, accuracy=right / len(examples))


def test_it_is_the_models_own_loss_over_all_target_tokens(model: torch.nn.Module) -> None:
    examples = some_examples()
    found, expected = measured(model, examples, Limit(rows=5)), one_by_one(model, examples)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.accuracy == expected.accuracy


@pytest.mark.parametrize(
    "limit", [Limit(rows=1), Limit(rows=7), Limit(tokens=64), Limit(targets=3), Limit()]
)
def test_batches_do_not_change_it(model: torch.nn.Module, limit: Limit) -> None:
    examples = some_examples()
    found, expected = measured(model, examples, limit), measured(model, examples, Limit(rows=3))
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.accuracy == expected.accuracy


def test_packed_rows_give_the_same_logits(model: torch.nn.Module) -> None:
    examples = list(enumerate(some_examples(6)))
    apart = collate([[item] for item in examples], pad=0)
    packed = collate(pack(examples, 48), pad=0)
    assert packed.input_ids.shape[0] < 6
    model.eval()

    def by_place(batch: Any) -> dict[tuple[int, int], torch.Tensor]:
        places = zip(batch.order.flatten()[batch.index].tolist(),
                     batch.tokens.flatten()[batch.index].tolist(), strict=True)
        return dict(zip(places, target_logits(model, batch), strict=True))

    one, other = by_place(apart), by_place(packed)
    assert one.keys() == other.keys()
    for place, logits in one.items():
        torch.testing.assert_close(other[place], logits, rtol=1e-4, atol=1e-5)


def test_logits_are_computed_at_targets_only(model: torch.nn.Module) -> None:
    batch = collate([[item] for item in enumerate(some_examples())], pad=0)
    seen: list[torch.Size] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    target_logits(model, batch)
    handle.remove()
    calls = len(head._forward_pre_hooks)
    assert calls == 0
    assert target_logits(model, batch).shape == (len(batch.targets), 50)
    assert seen == [torch.Size([*batch.input_ids.shape, 32])]  # before ours gathers


def test_a_model_that_hides_its_head_gives_the_same(model: torch.nn.Module) -> None:
    examples = some_examples()
    expected = measured(model, examples, Limit(rows=4))
    model.get_output_embeddings = lambda: None
    assert measured(model, examples, Limit(rows=4)).loss == pytest.approx(expected.loss, rel=1e-6)


def test_training_goes_on_in_the_mode_it_was_in(model: torch.nn.Module) -> None:
    measured(model, some_examples(), Limit(rows=4))
    assert model.training
    measured(model.eval(), some_examples(), Limit(rows=4))
    assert not model.training


def test_a_completion_is_right_only_to_its_last_token() -> None:
    class Successor(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            logits = torch.nn.functional.one_hot(input_ids + 1, 50).float()
            return type("Output", (), {"logits": logits})

    def counting(*ids: int) -> Example:
        return Example(ids, (False, False, True, True, True), "", "")

    examples = [counting(3, 4, 5, 6, 7), counting(3, 4, 5, 6, 9), counting(9, 3, 4, 5, 6)]
    assert measured(Successor(), examples, Limit()).accuracy == pytest.approx(2 / 3)


def test_a_loss_that_is_not_finite_is_returned() -> None:
    torch.manual_seed(1)
    model = llama()
    next(model.parameters()).data.fill_(float("nan"))
    loss = measured(model, some_examples(), Limit()).loss
    assert loss != loss


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = llama()
    examples = some_examples()
    expected = measured(model, examples, Limit()).loss
    device = torch.device("cuda:0")
    batches = evaluation_batches(examples, pad=0, limit=Limit(rows=3), device=device)
    found = evaluate(model.to(device), batches, dtype).loss
    assert found == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 2e-2)
