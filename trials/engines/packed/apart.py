"""Whether rows laid end to end compute what they compute as rows of a batch: tried on the base.

What mixes tokens past the attention interface (convolutions, state spaces, attention of a model's
own) learns nowhere where rows end, and attention may have parts that the interface is not told of.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trials.base import Base
from trials.data.examples import Example, Examples
from trials.engines.packed.corpus import Corpus, Padded, Ragged, Rows, Samples
from trials.engines.packed.forward import Forward

LENGTHS = (40, 56, 32)  # tokens of the rows that are tried
CHANGED = slice(40 + 28, 40 + 56)  # the second half of the second one
# Which tokens the changed ones are must not matter to those before them and to other rows. Shapes
# and kernels being the same, not even rounding may differ: a leak can be smaller than bf16 rounds.
# Only experts get other numbers of tokens then, which may be computed in other blocks. Batch rows,
# which cannot see each other, show how much that is; this often as much is still no leak.
ROUNDING = 4
# Other shapes and kernels round otherwise: half of the tokens' bf16 states differ by less than 0.01
# to 0.04 of their norm, the more the deeper the base (where rounding sends a token to another
# expert, that token differs by more). Without attention sinks it is 0.2 and more.
SAME = 0.1


def check_apart(base: Base, forward: Forward, longest: int) -> None:
    """Raises ValueError where rows laid end to end see each other, or compute something else.

    Attention chooses its kernels by how `longest` the rows to come are.
    """
    if not forward.ends_known:
        raise ValueError(f"{base.facts.architecture} makes its logits in a way of its own")
    tokens, rows = sum(LENGTHS), len(LENGTHS)
    batch = Padded(slots=1, rows=rows, width=max(LENGTHS))
    ragged = Ragged(slots=1, tokens=tokens, rows=rows, targets=tokens,
                    longest=max(longest, *LENGTHS))
    alone, rounding = _tried(base, forward, batch)
    together, seen = _tried(base, forward, ragged)
    where = f"in {base.facts.architecture} rows laid end to end"
    if not seen <= ROUNDING * rounding:  # NaN is no proof either
        raise ValueError(f"{where} would see tokens that they must not see")
    if not _change(alone, together).median() <= SAME:
        raise ValueError(f"{where} would compute something else than alone")


def _tried(base: Base, forward: Forward, shape: Padded | Ragged) -> tuple[Tensor, Tensor]:
    """The states `[T, d]`, and the largest relative change of one that must not change."""
    size = int(base.model.config.get_text_config().vocab_size)
    one, other = (
        _states(base, forward, shape, _corpus(size, shift)) for shift in (0, size // 2)
    )
    moved = _change(one, other)
    return one, torch.cat([moved[: CHANGED.start], moved[CHANGED.stop :]]).max()


def _change(before: Tensor, after: Tensor) -> Tensor:
    """Relative, of each token's state."""
    change: Tensor = (after - before).norm(dim=-1) / before.norm(dim=-1)
    return change


def _corpus(size: int, shift: int) -> Corpus:
    """Rows of any tokens of a vocabulary; those that change are shifted in it."""
    ids = np.arange(1, sum(LENGTHS) + 1) * 7919
    ids[CHANGED] += shift
    rows = np.split(ids % size, np.cumsum(LENGTHS)[:-1])
    return Corpus(Examples.of(  # an example's last token is no input
        Example((*row.tolist(), 0), (False, *[True] * len(row)), "", "") for row in rows
    ), pad=0)


@torch.no_grad()
def _states(base: Base, forward: Forward, shape: Padded | Ragged, corpus: Corpus) -> Tensor:
    """Every token's, row by row."""
    every = np.arange(len(LENGTHS))
    samples = corpus.samples([Rows(every, every)], shape)
    there = Samples(**{name: value.to(base.device) for name, value in samples.tensors.items()})
    with forward.computing(), forward.rows_of(shape):
        return forward.hidden(there, shape).float()
