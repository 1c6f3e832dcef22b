"""The evaluation of several slots at once: every batch of the fixed set, once for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trials.base import Base
from trials.base.devices import DTYPES
from trials.data import Data
from trials.engines.packed.bank import Bank
from trials.engines.packed.later import Later, Span
from trials.engines.packed.layers import Flight, Pack
from trials.evaluate import Evaluation, computing, evaluation_batches, target_logits
from trials.training.batches import Batch, Limit
from trials.training.limits import evaluation_limit


@dataclass(frozen=True)
class Measured:
    """What a pass has found, still on the device."""

    losses: Later  # [n], fp64: summed over all targets
    right: Later  # [n]: examples whose every target is the model's first choice
    targets: int
    examples: int
    span: Span

    def evaluations(self) -> list[Evaluation]:
        """One for each slot; waits for the device."""
        pairs = zip(self.losses.numbers(), self.right.numbers(), strict=True)
        return [Evaluation(loss=loss / self.targets, accuracy=right / self.examples)
                for loss, right in pairs]


class PackedEvaluation:
    """The evaluation set, batched for as many slots as are measured together."""

    def __init__(self, base: Base, data: Data) -> None:
        self._base, self._data = base, data
        self._limit = evaluation_limit(base)
        self._batches: dict[int, list[Batch]] = {}

    def measure(self, pack: Pack, bank: Bank, slots: Sequence[int], scale: Tensor) -> Measured:
        """The slots' adapters as they now are; `scale` is `[len(slots), 1, 1]`."""
        n, span = len(slots), Span(self._base.device)
        flight = Flight(weights=bank.gathered(slots), scale=scale)
        device = self._base.device
        losses = torch.zeros(n, dtype=torch.float64, device=device)
        right = torch.zeros(n, dtype=torch.long, device=device)
        batches = self._for(n)
        with torch.no_grad(), computing(device, DTYPES[self._base.config.dtype]):
            for batch in batches:
                with pack.flying(flight):
                    logits = target_logits(self._base.model, _repeated(batch, n))
                losses += _losses(logits, batch, n)
                right += _right(logits, batch, n)
        targets = sum(len(batch.targets) for batch in batches)
        examples = sum(batch.examples for batch in batches)
        span.end()
        return Measured(Later(losses), Later(right), targets, examples, span)

    def shrink(self) -> bool:
        """After a pass that did not fit into memory: less at once. False: it was the least."""
        tokens = self._limit.tokens or 1
        self._limit = replace(self._limit, tokens=max(1, tokens // 2))
        self._batches.clear()
        return tokens > 1

    def _for(self, n: int) -> list[Batch]:
        if n not in self._batches:
            tokens, targets = self._limit.tokens or 1, self._limit.targets or 1
            self._batches[n] = evaluation_batches(
                self._data.eval,
                pad=int(self._base.tokenizer.pad_token_id),
                limit=Limit(tokens=tokens // n, targets=targets // n),
                device=self._base.device,
            )
        return self._batches[n]


def _repeated(batch: Batch, n: int) -> Batch:
    """The rows of `batch` once per slot."""
    starts = torch.arange(n, device=batch.index.device)[:, None] * batch.input_ids.numel()
    return replace(
        batch, input_ids=batch.input_ids.repeat(n, 1), index=(batch.index + starts).flatten()
    )


def _losses(logits: Tensor, batch: Batch, n: int) -> Tensor:
    losses = cross_entropy(logits.float(), batch.targets.repeat(n), reduction="none")
    return losses.view(n, -1).double().sum(1)


def _right(logits: Tensor, batch: Batch, n: int) -> Tensor:
    wrong = (logits.argmax(-1).view(n, -1) != batch.targets).long()
    misses = torch.zeros(n, batch.examples, dtype=torch.long, device=logits.device)
    return (misses.index_add_(1, batch.example, wrong) == 0).sum(1)
