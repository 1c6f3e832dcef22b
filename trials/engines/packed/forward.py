"""The base's forward for a pack: hidden states where there are targets, then the losses there.

The output head is the widest product of all, so it sees a part of the targets at a time, forward
and backward at once: no more than one part's logits are ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trials.base import Base
from trials.base.devices import DTYPES
from trials.engines.packed.attention import end_to_end, row_ends
from trials.engines.packed.corpus import Padded, Ragged, Samples
from trials.evaluate import computing, target_logits
from trials.training.batches import Batch

LOGITS = 2**28  # at once, at most: beyond it nothing is gained
LOGIT_BYTES = 12  # of each: two half-precision copies, two full ones for a moment
SHARE = 0.05  # of the free memory, at most

Tail = Callable[[Tensor], Tensor]


class Forward:
    """A base's forward; its layers compute for whatever flight the pack is in."""

    def __init__(self, base: Base, free_bytes: float) -> None:
        self._model: Any = base.model
        self._device, self._dtype = base.device, DTYPES[base.config.dtype]
        self._by_kernels = base.device.type == "cuda" and self._dtype != torch.float32
        self._tail = _tail(base)
        size = int(base.model.config.get_text_config().vocab_size)
        logits = min(LOGITS, int(SHARE * free_bytes / LOGIT_BYTES))
        self._part = max(1, logits // size)
        self.logit_bytes = self._part * size * LOGIT_BYTES

    @property
    def ends_known(self) -> bool:
        """Whether rows may lie end to end: logits are known to follow from hidden states."""
        return self._tail is not None

    def computing(self) -> AbstractContextManager[Any]:
        """Mixed precision, as everywhere."""
        return computing(self._device, self._dtype)

    def rows_of(self, shape: Padded | Ragged) -> AbstractContextManager[Any]:
        """Attention as this shape's rows lie; the backward needs it too, where it recomputes."""
        return nullcontext() if isinstance(shape, Padded) else end_to_end(self._model)

    def hidden(self, samples: Samples, shape: Padded | Ragged) -> Tensor:
        """What the head is given where there are targets: `[N, d]`. Within `rows_of`."""
        if self._tail is None:  # the model's own logits are all that is known of it
            return target_logits(self._model, _as_batch(samples))
        if isinstance(shape, Padded):
            states = self._model.base_model(input_ids=samples.input_ids, use_cache=False)
        else:
            assert samples.ends is not None
            states = self._model.base_model(
                input_ids=samples.input_ids, position_ids=samples.tokens[None],
                use_cache=False, **row_ends(samples.ends, shape.longest),
            )
        hidden: Tensor = states.last_hidden_state.flatten(0, 1)
        return hidden.index_select(0, samples.index)

    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Each target's loss `[N]`, and the gradient for `hidden` of their weighted sum."""
        found = []
        for part, rows in self._parts(hidden):
            part.requires_grad_()
            with torch.enable_grad():
                logits = self._logits(part)
                if self._by_kernels:
                    losses, upstream = _losses_in_place(logits, targets[rows], weights[rows])
                    (gradient,) = torch.autograd.grad(logits, part, upstream)
                else:
                    losses = _losses(logits, targets[rows])
                    (gradient,) = torch.autograd.grad(losses, part, weights[rows].to(losses.dtype))
            found.append((losses.detach(), gradient))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def measured(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each target's loss `[N]`, and whether it is the first choice."""
        found = []
        for part, rows in self._parts(hidden):
            logits = self._logits(part)
            found.append((_losses(logits, targets[rows]), logits.argmax(-1) == targets[rows]))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def _parts(self, hidden: Tensor) -> Iterator[tuple[Tensor, slice]]:
        for start in range(0, len(hidden), self._part):
            rows = slice(start, start + self._part)
            yield hidden.detach()[rows], rows

    def _logits(self, hidden: Tensor) -> Tensor:
        tail = self._tail
        return hidden if tail is None else tail(hidden)


def _losses_in_place(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of their weighted sum, which takes the logits' place."""
    from trials.engines.packed.cuda.rows import losses

    place = logits.detach()
    return losses(place, targets, weights.float()), place


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(exact, targets, reduction="none")


def _tail(base: Base) -> Tail | None:
    """From hidden states to logits, where that is the output head and a known cap; else None."""
    model: Any = base.model
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return None
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def tail(hidden: Tensor) -> Tensor:
        logits: Tensor = head(hidden)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return tail if _agrees(base, tail) else None


@torch.no_grad()
def _agrees(base: Base, tail: Tail) -> bool:
    model: Any = base.model
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(1, 17, device=base.device) * 7919 % size)[None]
    with _evaluating(model), computing(base.device, DTYPES[base.config.dtype]):
        logits = model(input_ids=ids, use_cache=False).logits
        states = model.base_model(input_ids=ids, use_cache=False)
        ours = tail(states.last_hidden_state)
    return ours.shape == logits.shape and torch.allclose(ours, logits, rtol=1e-2, atol=1e-2)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _as_batch(samples: Samples) -> Batch:
    return Batch(
        input_ids=samples.input_ids, position_ids=None, order=samples.order,
        tokens=samples.tokens, index=samples.index, targets=samples.targets,
        example=samples.index, examples=0, real_tokens=0,
    )
