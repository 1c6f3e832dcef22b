"""One clock: a micro-batch of every slot through the base at once, and the steps that completes.

    shape -> samples -> forward, backward (layers.py adds gradients to the bank) -> optim.step

Nothing here waits for the device: what it finds out comes back as tensors, read when due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trials.base import Base
from trials.base.devices import DTYPES
from trials.contract import TrainConfig
from trials.dropout import row_keys, seed_key
from trials.engines.packed import optim
from trials.engines.packed.bank import Bank
from trials.engines.packed.corpus import Corpus, Samples
from trials.engines.packed.later import Later, sent
from trials.engines.packed.layers import Flight, Pack
from trials.engines.packed.seat import Seat
from trials.engines.packed.shapes import Grid, choose
from trials.evaluate import computing, target_logits
from trials.training.batches import Batch
from trials.training.limits import training_limit
from trials.training.plan import Step

ANY = TrainConfig(learning_rate=0.0)  # what fits into memory without checkpointing


@dataclass(frozen=True)
class Told:
    """The steps that a clock completed: by whom, and what the device says of them."""

    steps: tuple[tuple[int, Seat, Step], ...]  # the slot it was in, who, which
    losses: Later  # [n], by slot: the batch's token-weighted mean
    norms: Later  # [n], of the gradient before it was clipped


class Clock:
    """The device's side of a pack: the bank, and a vector over the slots for all that differs."""

    def __init__(self, base: Base, bank: Bank, pack: Pack, corpus: Corpus) -> None:
        self.base, self.bank, self.pack, self.corpus = base, bank, pack, corpus
        self.limit = training_limit(base, ANY)
        device, slots = base.device, bank.slots
        self.losses = torch.zeros(slots, dtype=bank.parameters.dtype, device=device)
        self.scales = torch.zeros(slots, 1, 1, dtype=bank.parameters.dtype, device=device)
        self.rates = torch.zeros(slots, 1, 1, dtype=torch.float64, device=device)
        self.starts = torch.zeros(slots, 1, 1, dtype=torch.int32, device=device)
        self._dtype = DTYPES[base.config.dtype]
        self._grid = Grid.of(device)
        self._checkpointing = False

    def seat(self, seat: Seat) -> None:
        """Sets a slot's own numbers; its rows of the bank are the caller's affair."""
        self.losses[seat.slot] = 0.0
        self.scales[seat.slot] = seat.scale
        self.rates[seat.slot] = seat.trial.lora.dropout
        self.starts[seat.slot] = seed_key(seat.trial.seed)

    def tick(self, seats: Sequence[Seat]) -> Told:
        """Trains every seat's next micro-batch; a seat whose batch is complete makes its step."""
        shape = self._shape = choose(seats, self.limit, self._grid, most=self.bank.slots)
        given: list[Seat | None] = [None] * shape.slots
        for seat in seats:
            given[seat.slot] = seat
        taken = [None if seat is None else seat.take(shape.rows) for seat in given]
        samples = self.corpus.samples([rows and rows[0] for rows in taken], shape)
        self._accumulate(samples, given)
        done = tuple((seat.slot, seat, rows[1]) for seat, rows in zip(given, taken, strict=True)
                     if seat is not None and rows is not None and rows[1] is not None)
        return self._step(done, shape.slots)

    def _accumulate(self, samples: Samples, given: Sequence[Seat | None]) -> None:
        device, n = self.base.device, len(given)
        samples = Samples(**{name: sent(value, device) for name, value in vars(samples).items()})
        shares = [0.0 if seat is None else 1.0 / seat.batch_targets for seat in given]
        weights = sent(torch.tensor(shares, dtype=self.losses.dtype), device)
        self.checkpoint(any(s and s.trial.train.gradient_checkpointing for s in given))
        with self.pack.flying(self._flight(samples, given)):
            with computing(device, self._dtype):
                losses = self._losses(samples) * weights
            # Each slot's loss by itself: in a sum, one that is not finite would reach them all.
            losses.backward(torch.ones_like(losses))  # type: ignore[no-untyped-call]
        self.losses[:n] += losses.detach()

    def _flight(self, samples: Samples, given: Sequence[Seat | None]) -> Flight:
        n = len(given)
        weights, gradients = self.bank.prefix(n)
        drops = any(seat is not None and seat.trial.lora.dropout for seat in given)
        rates = self.rates[:n]
        return Flight(
            weights=weights,
            gradients=gradients,
            scale=(self.scales[:n] / (1.0 - rates)).to(self.scales.dtype),
            keys=self._keys(samples) if drops else None,
            rates=rates if drops else None,
        )

    def _keys(self, samples: Samples) -> Tensor:
        """`trials.dropout.row_keys` for all slots at once: `[n, rows * width]`."""
        starts = self.starts[: len(samples.positions)]
        tokens = torch.arange(samples.input_ids.shape[1], device=starts.device)
        return row_keys(starts, samples.positions.unsqueeze(-1), tokens).flatten(1)

    def _losses(self, samples: Samples) -> Tensor:
        """Each slot's loss, summed over its targets."""
        logits = target_logits(self.base.model, _as_batch(samples))
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = cross_entropy(exact, samples.targets.flatten(), reduction="none")
        places = torch.arange(samples.targets.shape[1], device=losses.device)
        losses = losses.view(samples.targets.shape)
        return torch.where(places < samples.counts, losses, 0.0).sum(1)

    def _step(self, done: tuple[tuple[int, Seat, Step], ...], n: int) -> Told:
        if not done:
            return Told((), Later(self.losses[:0]), Later(self.losses[:0]))
        given = np.tile(optim.NOT_DUE, (n, 1))
        for slot, seat, _ in done:
            given[slot] = seat.coefficients[seat.at]
        coefficients = sent(torch.from_numpy(given), self.base.device)
        has_sgd = any(seat.trial.train.optimizer == "sgd" for _, seat, _ in done)
        losses = self.losses[:n].clone()
        norms = optim.step(self.bank, n, coefficients, losses, has_sgd=has_sgd)
        self.losses[:n].masked_fill_(coefficients[:, 0] > 0, 0.0)
        for _, seat, _ in done:
            seat.stepped()
        return Told(done, Later(losses), Later(norms))

    def restart(self, seats: Sequence[Seat]) -> None:
        """After a clock that failed half-way: every seat begins its current batch anew."""
        self.bank.gradients.zero_()
        self.losses.zero_()
        for seat in seats:
            seat.again()

    def shrink(self) -> bool:
        """After a clock that did not fit into memory: less at once. False: it was the least."""
        rows, tokens = self._shape.rows, self._shape.slots * self._shape.rows * self._shape.width
        self.limit = replace(self.limit, tokens=max(1, tokens // 2))
        return rows > 1

    def move(self, source: int, target: int) -> None:
        """Takes a slot's numbers along when its rows of the bank move."""
        for vector in (self.losses, self.scales, self.rates, self.starts):
            vector[target] = vector[source]
        self.losses[source] = 0.0

    def checkpoint(self, wanted: bool) -> None:
        """Recomputes the layers in the backward, or does not."""
        if wanted == self._checkpointing:
            return
        self._checkpointing = wanted
        model: Any = self.base.model
        model.train(wanted)  # the library checkpoints in training mode alone
        if wanted:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()


def _as_batch(samples: Samples) -> Batch:
    flat = samples.index.flatten()
    return Batch(
        input_ids=samples.input_ids, position_ids=None, order=samples.positions,
        tokens=samples.positions, index=flat, targets=samples.targets.flatten(), example=flat,
        examples=0, real_tokens=0,
    )
