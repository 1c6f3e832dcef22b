"""What a model is asked to write: the last completion, behind all that came before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bases import random_base, silent
from transformers import GenerationConfig

from trials import generate
from trials.base import Base, load_base
from trials.contract import ModelConfig
from trials.data.examples import Example
from trials.decode import decoded, recordable
from trials.evaluate import computing
from trials.generate import samples
from trials.quiet import quiet


class Writer:
    """A model that notes what it is asked and writes the same letters in every row."""

    training = True
    device = torch.device("cpu")

    def __init__(self, base: Base, writes: tuple[int, ...] = (), room: int = 64) -> None:
        self.config: Any = base.model.config
        self.generation_config = GenerationConfig(eos_token_id=[2, 9], repetition_penalty=1.5)
        self.asked: list[list[int]] = []
        self.batches: list[int] = []
        self._writes, self._room = writes, room

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        assert not self.training and self.generation_config.repetition_penalty in (None, 1.0)
        self.batches.append(len(input_ids))
        if len(input_ids) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        pairs = zip(input_ids, attention_mask, strict=True)
        self.asked += [row[real.bool()].tolist() for row, real in pairs]
        new = torch.tensor([self._writes] * len(input_ids), dtype=torch.long)
        return torch.cat([input_ids, new], 1)


def example(prompt: str, length: int = 3, completion: int = 2) -> Example:
    ids = tuple(range(10, 10 + length + completion))
    return Example(ids, (False,) * length + (True,) * completion, prompt, f"to {prompt}")


@pytest.mark.parametrize(
    ("mask", "asked"),
    [
        ([0, 0, 0, 1, 1], [5, 6, 7]),
        ([0, 0, 1, 0, 1], [5, 6, 7, 8]),  # a conversation: its last answer
        ([0, 1, 1, 1, 1], [5]),  # a text without a prompt
    ],
)
def test_the_last_completion_is_asked_for(
    plain_base: Base, mask: list[int], asked: list[int]
) -> None:
    writer = Writer(plain_base)
    given = Example((5, 6, 7, 8, 9), tuple(map(bool, mask)), "asked", "wanted")
    [[sample]] = samples(writer, plain_base.tokenizer, [given], torch.float32)
    assert writer.asked == [asked]
    assert (sample.prompt, sample.reference, sample.generated) == ("asked", "wanted", "")
    assert writer.training and writer.generation_config.repetition_penalty == 1.5


def test_a_text_ends_at_its_first_end_or_its_own_limit(plain_base: Base) -> None:
    tokenizer = plain_base.tokenizer
    given = [example("short", completion=1), example("long", length=5, completion=4)]
    [both] = samples(Writer(plain_base, (40, 41, 42, 9, 43)), tokenizer, given, torch.float32)
    assert both[0].generated == tokenizer.decode([40, 41])  # twice the reference
    assert both[1].generated == tokenizer.decode([40, 41, 42])  # token 9 ends a turn


@pytest.mark.parametrize(("room", "batches"), [(64, [6]), (5, [6, 2, 4]), (2, [6, 2, 4, 2, 2])])
def test_rows_are_ordered_by_slot_and_halved_where_memory_ends(
    plain_base: Base, room: int, batches: list[int]
) -> None:
    writer = Writer(plain_base, room=room)
    given = [example(name, length=2 + at) for at, name in enumerate("abc")]
    found = samples(writer, plain_base.tokenizer, given, torch.float32, slots=2)
    assert [[sample.prompt for sample in of] for of in found] == [["a", "b", "c"]] * 2
    assert writer.batches == batches
    if len(batches) == 1:
        assert [len(ids) for ids in writer.asked] == [2, 3, 4, 2, 3, 4]


def test_a_prompt_without_room_is_an_error(plain_base: Base) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        samples(Writer(plain_base, room=0), plain_base.tokenizer, [example("a")], torch.float32)


def test_no_prompts_ask_nothing(plain_base: Base) -> None:
    assert samples(None, plain_base.tokenizer, [], torch.float32, slots=3) == [(), (), ()]


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text"])
def test_a_batch_writes_what_each_prompt_would_alone(tmp_path: Path, kind: str) -> None:
    name = random_base(tmp_path, kind)
    with quiet():
        base = load_base(ModelConfig(name=name, quantisation="none", dtype="fp32"), "cpu", silent)
        given = [replace(example(str(at), 3 + 4 * at, 6), input_ids=tuple(
            (7 * at + 13 * place) % 900 + 50 for place in range(9 + 4 * at))) for at in range(3)]
        alone = [samples(base.model, base.tokenizer, [one], torch.float32)[0][0] for one in given]
        [together] = samples(base.model, base.tokenizer, given, torch.float32)
    assert list(together) == alone
    assert all(sample.generated for sample in alone)


def padded(rows: int = 3, width: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of several lengths, padded on the left."""
    ids = torch.randint(50, 900, (rows, width), generator=torch.Generator().manual_seed(0))
    real = (torch.arange(width) >= 4 * torch.arange(rows)[:, None]).long()
    return ids * real, real


@pytest.mark.parametrize(
    "kind", ["Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3Text", "Phi3", "GPT2"]
)
def test_a_cache_of_full_size_writes_what_the_library_does(tmp_path: Path, kind: str) -> None:
    sizes = {"sliding_window": 6} if kind in ("Mistral", "Gemma2", "Gemma3Text", "Phi3") else {}
    name = random_base(tmp_path, kind, **sizes)
    ids, real = padded()
    with quiet():
        base = load_base(ModelConfig(name=name, quantisation="none", dtype="fp32"), "cpu", silent)
        with torch.no_grad():
            want = base.model.generate(
                input_ids=ids, attention_mask=real, max_new_tokens=20, do_sample=False,
                pad_token_id=0, eos_token_id=[5000])[:, ids.shape[1]:]  # fmt: skip
            for most in (1, 2, 20):
                found = decoded(base.model, ids, real, most=most, ends=[5000], records=False)
                assert torch.equal(found, want[:, :most])
            ends = want[:, 9].tolist()
            found = decoded(base.model, ids, real, most=20, ends=ends, records=False)
            last = int(torch.isin(want, torch.tensor(ends)).int().argmax(1).max())
            assert torch.equal(found, want[:, : 8 * (last // 8 + 1)])  # at the next look


@pytest.mark.parametrize(
    ("kind", "sizes", "can"),
    [
        ("Llama", {}, True),
        ("Qwen3", {}, True),
        ("Gemma2", {}, True),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, False),
        ("GPTNeo", {"attention_types": [[["global", "local"], 1]]}, False),
        ("Mamba2", {"num_heads": 8, "head_dim": 16, "hidden_size": 64}, False),
        ("Rwkv", {}, False),
    ],
)
def test_only_what_keeps_keys_and_values_alone_is_recorded(
    kind: str, sizes: dict[str, Any], can: bool
) -> None:
    config: Any = getattr(transformers, f"{kind}Config")(num_hidden_layers=2, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert recordable(model) is can


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, tried = random_base(tmp_path, "Llama"), []

    def failing(*_: Any, **__: Any) -> torch.Tensor:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    with quiet():
        base = load_base(ModelConfig(name=name, quantisation="none"), "cuda:0", silent)
        given = [example("a", 9, 6)]
        recorded = samples(base.model, base.tokenizer, given, torch.bfloat16)
        monkeypatch.setattr(generate, "decoded", failing)
        plain = [samples(base.model, base.tokenizer, given, torch.bfloat16) for _ in range(2)]
    assert plain == [recorded, recorded] and len(tried) == 1
    assert "step by step" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("quantisation", ["nf4", "none"])
def test_recorded_steps_write_the_same(tmp_path: Path, quantisation: str) -> None:
    name = random_base(tmp_path, "Llama")
    config = ModelConfig(name=name, quantisation=quantisation, dtype="bf16")
    with quiet():
        base = load_base(config, "cuda:0", silent)
        ids, real = (tensor.to("cuda:0") for tensor in padded())
        with computing(torch.device("cuda:0"), torch.bfloat16):
            plain, recorded = (
                decoded(base.model, ids, real, most=40, ends=[5000], records=records)
                for records in (False, True)
            )
    assert torch.equal(plain, recorded) and len(plain.unique()) > 3
