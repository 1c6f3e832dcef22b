"""One clock: a micro-batch of every slot through the base at once, and the steps it completes.

    shape -> samples -> forward, backward (layers.py adds gradients to the bank) -> optimizer

A clock waits for nothing: what the device finds out comes back as tensors, read when due. What it
does is two functions of tensors that stay in their place, so that CUDA can replay them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trials.base import Base
from trials.dropout import row_keys, seed_key
from trials.engines.packed.bank import Bank
from trials.engines.packed.corpus import Corpus, Padded, Ragged, Samples
from trials.engines.packed.forward import Forward
from trials.engines.packed.later import Later, sent
from trials.engines.packed.layers import Flight, Pack
from trials.engines.packed.optim import Optimizer
from trials.engines.packed.products import PaddedProducts, Products
from trials.engines.packed.replay import Replays
from trials.engines.packed.seat import Seat
from trials.engines.packed.shapes import Shapes
from trials.training.limits import free_memory
from trials.training.plan import Step


@dataclass(frozen=True)
class Told:
    """The steps that a clock completed: by whom, and what the device says of them."""

    steps: tuple[tuple[int, Seat, Step], ...]  # the slot it was in, who, which
    numbers: Later  # [4, n], by slot: see `Optimizer.step`


class Clock:
    """The device's side of a pack: the bank, and a vector over the slots for all that differs."""

    def __init__(
        self, base: Base, bank: Bank, pack: Pack, corpus: Corpus, forward: Forward, shapes: Shapes,
        replays: Replays, *, drops: bool,
    ) -> None:
        self.bank, self.pack, self.corpus, self.shapes = bank, pack, corpus, shapes
        self._model: Any = base.model
        self.forward, self._replays = forward, replays
        device, slots, dtype = base.device, bank.slots, bank.parameters.dtype
        self.losses = torch.zeros(slots, dtype=dtype, device=device)  # of batches under way
        self.scales = torch.zeros(slots, dtype=dtype, device=device)  # alpha / r over 1 - p
        self.rates = torch.zeros(slots, dtype=torch.float64, device=device)  # of dropout
        self.seeds = torch.zeros(slots, dtype=torch.int32, device=device)  # of dropout
        self.optimizer = Optimizer(slots, device, scaled=bank.compute.dtype == torch.float16)
        self._drops, self._checkpointing = drops, False

    def seat(self, seat: Seat) -> None:
        """Sets a slot's own numbers; its rows of the bank are the caller's affair."""
        rate = seat.trial.lora.dropout
        self._drops = self._drops or rate > 0
        # Not by assignment, which waits for the device where one number is assigned.
        self.losses[seat.slot].fill_(0.0)
        self.scales[seat.slot].fill_(seat.scale / (1.0 - rate))
        self.rates[seat.slot].fill_(rate)
        self.seeds[seat.slot].fill_(seed_key(seat.trial.seed))
        self.optimizer.seat(seat.slot, seat.coefficients)

    def tick(self, seats: Sequence[Seat]) -> Told:
        """Trains the next micro-batches of as many seats as fit; who completes a batch, steps."""
        shape, rows = self.shapes.choose(seats)
        by_slot: list[Seat | None] = [None] * shape.slots
        for seat in seats:
            by_slot[seat.slot] = seat
        taken = [seat.take(rows[seat.slot]) if seat and rows[seat.slot] else None
                 for seat in by_slot]
        samples = self.corpus.samples([own and own[0] for own in taken], shape)
        self._accumulate(samples, shape, by_slot)
        return self._step(tuple(
            (seat.slot, seat, own[1]) for seat, own in zip(by_slot, taken, strict=True)
            if seat is not None and own is not None and own[1] is not None
        ), shape.slots)

    def rehearse(self, tokens: int, checkpointing: bool) -> tuple[int, int]:
        """Does a clock of about so many tokens twice, in empty slots.

        Returns the tokens that it had, padding counted, and the bytes that it took.
        """
        shares, samples, shape = self._rehearsed(tokens)
        device = self.losses.device
        self.checkpoint(checkpointing)
        for _ in range(2):  # what is tuned at first is not part of it
            before = _peak(device)
            self._work(shares, samples, shape)
        self.restart([])
        return shape.tokens, _peak(device, before)

    def compile(self, tokens: int, checkpointing: bool) -> None:
        """Makes whatever a clock, a step and an evaluation launch end to end; launches nothing.

        The slots are empty, and are to be left: what they hold afterwards means nothing.
        """
        from trials.engines.packed.cuda.launch import compiling

        shares, samples, shape = self._rehearsed(tokens)
        n = shape.slots
        self.checkpoint(checkpointing)
        with compiling(self.losses.device):
            self._work(shares, samples, shape)
            self.optimizer.step(self.bank, shares[:n].float(), self.losses[:n])
            flight = Flight(self.bank.prefix(n)[0], self._products(samples, shape, drops=False))
            with torch.no_grad(), self.forward.computing():
                with self.pack.flying(flight), self.forward.rows_of(shape):
                    hidden = self.forward.hidden(samples, shape)
                self.forward.measured(hidden, samples.targets)

    def _rehearsed(self, tokens: int) -> tuple[Tensor, Samples, Padded | Ragged]:
        shape, rows = self.shapes.rehearsed(tokens, self.corpus)
        samples = _few_targets(self.corpus.samples(rows, shape))
        device = self.losses.device
        tensors = {name: sent(value, device) for name, value in samples.tensors.items()}
        shares = torch.zeros(shape.slots + 1, dtype=torch.float64, device=device)
        return shares, Samples(**tensors), shape

    def _accumulate(
        self, samples: Samples, shape: Padded | Ragged, by_slot: Sequence[Seat | None]
    ) -> None:
        self.checkpoint(any(s and s.trial.train.gradient_checkpointing for s in by_slot))
        shares = [0.0 if seat is None else 1.0 / seat.batch_targets for seat in by_slot]
        inputs = samples.tensors | {"shares": torch.tensor([*shares, 0.0], dtype=torch.float64)}

        def work(tensors: dict[str, Tensor]) -> None:
            own = dict(tensors)
            self._work(own.pop("shares"), Samples(**own), shape)

        key = ("accumulate", shape, self._drops, self._checkpointing)
        self._replays.run(key, inputs, work)

    def _work(self, shares: Tensor, samples: Samples, shape: Padded | Ragged) -> None:
        n = shape.slots
        weights, gradients = self.bank.prefix(n)
        products = self._products(samples, shape, drops=self._drops)
        flight = Flight(weights, products, gradients)
        share = shares[samples.slot].to(self.losses.dtype)
        scale = torch.nn.functional.pad(self.optimizer.scale[:n], (0, 1), value=1.0)
        with self.pack.flying(flight), self.forward.rows_of(shape):
            with self.forward.computing():
                hidden = self.forward.hidden(samples, shape)
                losses, gradient = self.forward.losses(
                    hidden, samples.targets, share * scale[samples.slot]
                )
            hidden.backward(gradient)  # type: ignore[no-untyped-call]
        self.losses[:n] += torch.segment_reduce(
            losses.to(share.dtype) * share, "sum", lengths=samples.counts, unsafe=True
        )[:n]

    def _products(self, samples: Samples, shape: Padded | Ragged, *, drops: bool) -> Products:
        keys = None
        if drops:
            keys = row_keys(self.seeds[samples.owner], samples.order, samples.tokens)
        if isinstance(shape, Padded):
            n = shape.slots
            return PaddedProducts(
                scale=self.scales[:n, None, None], keys=None if keys is None else keys.view(n, -1),
                rates=self.rates[:n, None, None],
            )
        from trials.engines.packed.cuda.ragged import RaggedProducts

        assert samples.tiles is not None and samples.starts is not None
        return RaggedProducts(
            tokens=shape.tokens, tiles=samples.tiles, starts=samples.starts, scales=self.scales,
            keys=keys, thresholds=torch.round(self.rates * 65536).to(torch.int32),
        )

    def _step(self, done: tuple[tuple[int, Seat, Step], ...], n: int) -> Told:
        if not done:
            return Told((), Later(self.losses[:0]))
        due = torch.zeros(n)
        for slot, _, _ in done:
            due[slot] = 1.0

        def work(tensors: dict[str, Tensor]) -> Tensor:
            losses = self.losses[:n]
            told = self.optimizer.step(self.bank, tensors["due"], losses)
            losses.masked_fill_(tensors["due"] > 0, 0.0)
            return told

        key = ("step", n, self.optimizer.table.shape[1])  # it is another table when it has grown
        told = Told(done, Later(self._replays.run(key, {"due": due}, work)))
        for _, seat, _ in done:  # not before: a step that failed is made again
            seat.stepped()
        return told

    def widen(self, r: int) -> None:
        """Makes room for a larger rank: a new bank with the same adapters in the same slots."""
        self._replays.forget()
        self.bank = self.bank.widened(r)

    def restart(self, seats: Sequence[Seat]) -> None:
        """After a clock that failed half-way: every seat begins its current batch anew."""
        self._replays.forget()
        free_memory(self.losses.device)
        self.bank.gradients.zero_()
        self.losses.zero_()
        for seat in seats:
            seat.again()

    def move(self, source: int, target: int) -> None:
        """Takes a slot's numbers along when its rows of the bank move."""
        for vector in (self.losses, self.scales, self.rates, self.seeds):
            vector[target] = vector[source]
        self.optimizer.move(source, target)
        self.losses[source].fill_(0.0)

    def checkpoint(self, wanted: bool) -> None:
        """Recomputes the layers in the backward, or does not."""
        if wanted == self._checkpointing:
            return
        self._checkpointing = wanted
        self._model.train(wanted)  # the library checkpoints in training mode alone
        if wanted:
            # Nothing draws from torch's own generators, whose state CUDA graphs could not keep.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            self._model.gradient_checkpointing_enable(options)
        else:
            self._model.gradient_checkpointing_disable()


def _few_targets(samples: Samples) -> Samples:
    """Without most logits, whose memory does not grow with the tokens."""
    few = min(64, len(samples.index))
    counts = torch.zeros_like(samples.counts)
    counts[-1] = few
    slot = torch.full((few,), len(counts) - 1)
    return replace(samples, index=samples.index[:few], targets=samples.targets[:few], slot=slot,
                   counts=counts)


def _peak(device: torch.device, before: int = 0) -> int:
    """The most bytes on CUDA since the last call, beyond `before`; without it, those there now."""
    if device.type != "cuda":
        return 0
    found = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.reset_peak_memory_stats(device)
    return found if before else torch.cuda.memory_allocated(device)
