"""The packed engine: many trials at once on one frozen base."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import nn

from trials.base.devices import DTYPES
from trials.contract import Driver, TrainConfig
from trials.engines.packed.bank import Bank, shapes_of
from trials.engines.packed.clock import Clock
from trials.engines.packed.corpus import Corpus
from trials.engines.packed.evaluation import PackedEvaluation
from trials.engines.packed.forward import Forward
from trials.engines.packed.fused import fused
from trials.engines.packed.later import Idle
from trials.engines.packed.layers import grouped, packed_layers
from trials.engines.packed.replay import Replays
from trials.engines.packed.shapes import PaddedShapes, RaggedShapes, Shapes
from trials.engines.packed.shift import Shift
from trials.engines.packed.size import FIRST_R, Size, clock_tokens, free_bytes
from trials.engines.packed.skeleton import Skeleton
from trials.engines.packed.slots import Slots
from trials.engines.trl import TrlEngine
from trials.quiet import quiet
from trials.training.limits import evaluation_limit, training_limit

ANY = TrainConfig(learning_rate=0.0)  # what fits into memory without checkpointing


class PackedEngine:
    """A base, the data, and the layers that trials may adapt; see `trials.contract.Engine`."""

    def __init__(self, shared: TrlEngine, layers: Mapping[str, nn.Module], size: Size) -> None:
        self.shared, self.layers, self.size = shared, layers, size
        base, data = shared.base, shared.data
        pad = int(base.tokenizer.pad_token_id)
        self.corpus = Corpus(data.train, pad)
        self.forward = Forward(base, free_bytes(base, shared.assignment))
        self.idle = Idle(base.device)
        self._dtype = DTYPES[base.config.dtype]
        self._groups = grouped(base.model, layers)
        self._skeleton = Skeleton(base.model)
        self._examples = Corpus(data.eval, pad)  # of the evaluation

    @property
    def fixed_bytes(self) -> int:
        """What a dequantised copy of the base and parts of the logits take."""
        numbers = sum(d_in * d_out for d_in, d_out in shapes_of(self.layers).values())
        resident = numbers * self._dtype.itemsize if self.size.resident else 0
        return resident + 2 * self.forward.logit_bytes  # of clocks and of evaluations

    def run(self, driver: Driver) -> None:
        """Trains what the driver hands out until it has nothing more and all slots are free."""
        base, size = self.shared.base, self.size
        limit = evaluation_limit(base, self.shared.assignment.sharing)
        tokens = min(limit.tokens or 1, size.tokens)
        evaluation = PackedEvaluation(
            self._examples, base.device, tokens=tokens, ragged=size.ragged)
        with self.slots() as slots:
            self.idle.restart()
            Shift(slots, evaluation, driver, size, self.idle).work()
            if (share := self.idle.fraction) is not None:
                print(f"the device idled {share:.1%} of the time", file=sys.stderr, flush=True)

    @contextmanager
    def slots(self, size: Size | None = None) -> Iterator[Slots]:
        """Empty slots, with the base's layers computing for them."""
        size = size or self.size
        base = self.shared.base
        with ExitStack() as stack:
            stack.enter_context(quiet())
            pack = stack.enter_context(
                packed_layers(self._groups, dtype=self._dtype, resident=size.resident)
            )
            if size.compiled:
                stack.enter_context(fused(base.model))
            bank = Bank(shapes_of(self.layers), slots=size.slots, r=size.r, device=base.device,
                        compute=self._dtype)
            clock = Clock(base, bank, pack, self.corpus, self.forward, self._shapes(size),
                          Replays(base.device, records=size.compiled),
                          drops=self.shared.assignment.dropout)
            stack.callback(clock.checkpoint, False)
            slots = Slots(self.shared, clock, pack, self._skeleton)
            stack.callback(slots.writer.close)
            yield slots

    def compile(self, tokens: int) -> None:
        """Makes the kernels of tokens laid end to end, as clocks of many tokens would have them."""
        with self._small() as clock:
            clock.compile(tokens, self.shared.assignment.gradient_checkpointing)

    def rehearse(self, tokens: int) -> tuple[int, int]:
        """The tokens of a clock of about so many, and the bytes it takes beside its bank."""
        with self._small() as clock:
            return clock.rehearse(tokens, self.shared.assignment.gradient_checkpointing)

    @contextmanager
    def _small(self) -> Iterator[Clock]:
        cuda = self.shared.base.device.type == "cuda"  # elsewhere nothing is measured
        r = self.size.r if cuda else min(self.size.r, FIRST_R)
        with self.slots(replace(self.size, slots=2, r=r, resident=False)) as slots:
            yield slots.clock

    def _shapes(self, size: Size) -> Shapes:
        if size.ragged:
            return RaggedShapes(size.slots, size.tokens, self.corpus.longest)
        limit = training_limit(self.shared.base, ANY, self.shared.assignment.sharing)
        tokens = clock_tokens(size.tokens, self.corpus.longest)
        return PaddedShapes(replace(limit, tokens=min(limit.tokens or tokens, tokens)))
