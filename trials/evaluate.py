"""The evaluation of every engine: token-weighted loss and exactly right completions on a fixed set.

    batches = evaluation_batches(examples, pad=..., limit=..., device=...)   # once
    evaluate(model, batches, dtype).loss                                      # at each tick
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trials.data.examples import Example
from trials.training.batches import Batch, Limit, collate, split


@dataclass(frozen=True)
class Evaluation:
    """A model's measure on the evaluation set."""

    loss: float  # mean over all target tokens, in nats
    accuracy: float  # share of examples whose every target token is the model's first choice


def evaluate(
    model: nn.Module,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measures `model` teacher-forced, without dropout; its mode is restored afterwards.

    The targets are the tokens that carry loss, the end-of-text token among them, so an example is
    right when greedy decoding would write its completion and stop. The result does not depend on
    how the examples are batched, up to rounding. A loss that is not finite is returned as it is.
    """
    device = batches[0].input_ids.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.long, device=device)
    with _evaluating(model), torch.no_grad(), computing(device, dtype):
        for done, batch in enumerate(batches):
            progress(done, len(batches))
            logits = target_logits(model, batch)
            total += cross_entropy(logits.float(), batch.targets, reduction="none").double().sum()
            right += _right_examples(logits, batch)
    progress(len(batches), len(batches))
    targets = sum(len(batch.targets) for batch in batches)
    examples = sum(batch.examples for batch in batches)
    return Evaluation(loss=total.item() / targets, accuracy=right.item() / examples)


def evaluation_batches(
    examples: Sequence[Example], *, pad: int, limit: Limit, device: torch.device
) -> list[Batch]:
    """The evaluation set as batches on `device`, made once for a whole sweep."""
    rows = [[(position, example)] for position, example in enumerate(examples)]
    return [collate(group, pad).to(device) for group in split(rows, limit)]


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits `[N, vocabulary]` where the next token is a target, and nowhere else.

    The hidden states are gathered before the output head, so whatever the model does behind it
    (scaling, soft caps) stays the model's own affair. A model whose head cannot be found or sees
    another shape computes all logits, and the wanted ones are taken out.
    """
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    with _head_sees_only(model, batch):
        logits = model(input_ids=batch.input_ids, use_cache=False, **positions).logits
    if logits.dim() == 3:
        logits = logits.flatten(0, 1).index_select(0, batch.index)
    assert isinstance(logits, Tensor)
    return logits


def computing(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision as the engines use it: autocast, but for a base that computes in fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _head_sees_only(model: nn.Module, batch: Batch) -> Iterator[None]:
    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = inputs[0]
        if hidden.shape[:-1] != batch.input_ids.shape:
            return None
        return (hidden.flatten(0, 1).index_select(0, batch.index), *inputs[1:])

    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _right_examples(logits: Tensor, batch: Batch) -> Tensor:
    wrong = (logits.argmax(-1) != batch.targets).long()
    misses = torch.zeros(batch.examples, dtype=torch.long, device=logits.device)
    return (misses.index_add_(0, batch.example, wrong) == 0).sum()
