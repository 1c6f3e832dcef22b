"""What one forward may hold, what counts as out of memory, and which models keep packs apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import Tiny, made_in

from trials.base import Base, load_base
from trials.contract import InputError, TrainConfig
from trials.training import limits
from trials.training.batches import Limit
from trials.training.limits import (
    evaluation_limit,
    keeps_packed_apart,
    out_of_memory,
    training_limit,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny base."""
    tiny = made_in(tmp_path_factory.mktemp("tiny"))
    return load_base(tiny.assignment().model, "cpu", lambda what, done, total: None)


def test_a_named_micro_batch_is_taken_as_it_is(base: Base) -> None:
    train = TrainConfig(learning_rate=0.1, micro_batch_size=3)
    assert training_limit(base, train) == Limit(rows=3)


def test_an_automatic_one_is_bounded_by_tokens_and_by_logits(base: Base) -> None:
    for limit in (training_limit(base, TrainConfig(learning_rate=0.1)), evaluation_limit(base)):
        assert limit.rows is None
        assert limit.allows(64, 64, 64)
        assert not limit.allows(65, 64, 64)
        assert not limit.allows(1, 64, 2**30 // 16 // 64 + 1)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, memory: bool) -> None:
    assert out_of_memory(error) is memory


def test_a_llama_keeps_packed_examples_apart(base: Base) -> None:
    keeps_packed_apart(base)


def test_a_model_that_ignores_positions_may_not_pack(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = base.model.forward

    def deaf(**inputs: Any) -> Any:
        return forward(**{name: value for name, value in inputs.items() if name != "position_ids"})

    monkeypatch.setattr(base.model, "forward", deaf)
    with pytest.raises(InputError, match="LlamaForCausalLM examples packed into one row would see"):
        keeps_packed_apart(base)


def test_workers_on_one_gpu_have_equal_parts_of_it(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, held = 2**28, 2**25
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - held, total))
    for name in ("memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: held)
    monkeypatch.setattr(limits, "memory_bytes", lambda device: total)
    shared = replace(base, device=torch.device("cuda:0"))
    train = TrainConfig(learning_rate=0.1)

    def found(sharing: int) -> int:
        limit = training_limit(shared, train, sharing)
        assert limit.tokens is not None and limit.targets is not None
        assert evaluation_limit(shared, sharing).targets == limit.targets
        return limit.tokens

    alone, half, quarter = map(found, (1, 2, 4))
    free = [total // sharing - held for sharing in (1, 2, 4)]
    assert half / alone == pytest.approx(free[1] / free[0], rel=1e-2)
    assert quarter / alone == pytest.approx(free[2] / free[0], rel=1e-2)


@pytest.mark.gpu
def test_on_cuda_free_memory_bounds_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny: Tiny = made_in(tmp_path_factory.mktemp("tiny"))
    base = load_base(tiny.assignment().model, "cuda:0", lambda what, done, total: None)
    limit = training_limit(base, TrainConfig(learning_rate=0.1))
    assert limit.tokens is not None and limit.targets is not None
    assert 1024 <= limit.tokens <= 16384
    keeps_packed_apart(base)
