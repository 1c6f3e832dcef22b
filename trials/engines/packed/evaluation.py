"""The evaluation of several slots at once: the whole fixed set, once for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trials.engines.packed.bank import Bank
from trials.engines.packed.corpus import TILE, Corpus, Padded, Ragged, Rows, Samples
from trials.engines.packed.forward import Forward
from trials.engines.packed.later import Later, Span, sent
from trials.engines.packed.layers import Flight, Pack
from trials.engines.packed.products import PaddedProducts, Products
from trials.engines.packed.seat import Seat
from trials.evaluate import Evaluation


@dataclass(frozen=True)
class Measured:
    """What a pass has found, on its way to the host."""

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
    """The evaluation set; `tokens` are what one forward may hold."""

    def __init__(self, corpus: Corpus, device: torch.device, *, tokens: int, ragged: bool) -> None:
        self._corpus, self._device, self._ragged = corpus, device, ragged
        self._tokens = self._fitted = tokens
        self._sorted = np.argsort(-corpus.lengths, kind="stable")

    def measure(
        self, forward: Forward, pack: Pack, bank: Bank, seats: Sequence[Seat]
    ) -> Measured:
        """The seats' adapters as they now are, without dropout."""
        n, device, span = len(seats), self._device, Span(self._device)
        every = bank.slots if self._ragged else n
        losses = torch.zeros(every + 1, dtype=torch.float64, device=device)
        misses = torch.zeros(n * len(self._sorted), dtype=torch.long, device=device)
        slots = [seat.slot for seat in seats]
        weights = bank.prefix(every)[0] if self._ragged else bank.gathered(slots)
        with torch.no_grad(), forward.computing():
            for rows in self._groups(n):
                samples, shape, example = self._samples(rows, seats, bank.slots)
                samples = Samples(**{k: sent(v, device) for k, v in samples.tensors.items()})
                flight = Flight(weights, self._products(samples, seats, bank))
                with pack.flying(flight), forward.rows_of(shape):
                    hidden = forward.hidden(samples, shape)
                found, hits = forward.measured(hidden, samples.targets)
                losses += torch.segment_reduce(
                    found.double(), "sum", lengths=samples.counts, unsafe=True
                )
                misses.index_add_(0, sent(example, device), (~hits).long())
                seats[0].course.sign_of_life()
        span.end()
        mine = losses[sent(torch.tensor(slots), device)] if self._ragged else losses[:n]
        right = (misses.view(n, -1) == 0).sum(1)
        targets = int(self._corpus.targets.sum())
        return Measured(Later(mine), Later(right), targets, len(self._sorted), span)

    def shrink(self, n: int) -> bool:
        """After a pass of n slots that did not fit into memory: less at once. False: it was the
        least."""
        before, self._tokens = self._tokens, max(1, self._tokens // 2)
        return before > n * int(self._corpus.lengths.min())

    def restore(self) -> None:
        """As much as at first, when the trial that did not fit is gone."""
        self._tokens = self._fitted

    def _groups(self, n: int) -> Iterator[Rows]:
        """Examples that n slots evaluate at once, alike in length."""
        start = 0
        while start < len(self._sorted):
            width = int(self._corpus.lengths[self._sorted[start]])
            rows = max(1, self._tokens // (n * width))
            examples = self._sorted[start : start + rows]
            yield Rows(examples, np.zeros_like(examples))
            start += rows

    def _samples(
        self, rows: Rows, seats: Sequence[Seat], slots: int
    ) -> tuple[Samples, Padded | Ragged, Tensor]:
        n, lengths = len(seats), self._corpus.lengths[rows.examples]
        targets = self._corpus.targets[rows.examples]
        example = np.repeat(rows.examples, targets)
        each = (np.arange(n)[:, None] * len(self._sorted) + example).ravel()
        if not self._ragged:
            padded = Padded(n, len(lengths), int(lengths.max()))
            return self._corpus.samples([rows] * n, padded), padded, torch.from_numpy(each)
        given: list[Rows | None] = [None] * slots
        for seat in seats:
            given[seat.slot] = rows
        tokens, longest = n * int(lengths.sum()), self._corpus.longest
        size = -(-tokens // TILE) * TILE
        shape = Ragged(slots=slots, tokens=size, targets=len(each), longest=longest,
                       rows=n * len(lengths) + Ragged.rest(size - tokens, longest))
        order = np.argsort([seat.slot for seat in seats], kind="stable")
        by_slot = each.reshape(n, -1)[order].ravel()
        return self._corpus.samples(given, shape), shape, torch.from_numpy(by_slot)

    def _products(self, samples: Samples, seats: Sequence[Seat], bank: Bank) -> Products:
        dtype = bank.parameters.dtype
        if not self._ragged:
            scales = torch.tensor([seat.scale for seat in seats], dtype=dtype)
            return PaddedProducts(scale=sent(scales[:, None, None], self._device))
        from trials.engines.packed.cuda.ragged import RaggedProducts

        every = torch.zeros(bank.slots, dtype=dtype)
        for seat in seats:
            every[seat.slot] = seat.scale
        assert samples.tiles is not None and samples.starts is not None
        tokens = samples.input_ids.numel()
        return RaggedProducts(tokens, samples.tiles, samples.starts, sent(every, self._device))
