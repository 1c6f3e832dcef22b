"""Which training example comes at which position: a function of the seed alone."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

EPOCHS_KEPT = 4  # permutations in memory; trials of one study walk through the same ones


def order(seed: int, n: int, start: int, count: int) -> list[int]:
    """The example's index at positions `start` to `start + count - 1`, of `n` examples.

    Each epoch of `n` positions is a fresh permutation keyed by (seed, epoch) alone, so any position
    can be asked for at any time.
    """
    indices: list[int] = []
    while count > len(indices):
        epoch, offset = divmod(start + len(indices), n)
        indices += _epoch(seed, epoch, n)[offset : offset + count - len(indices)].tolist()
    return indices


@functools.lru_cache(maxsize=EPOCHS_KEPT)
def _epoch(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    # Sorting raw Philox words: numpy promises the words for good, but not how it permutes.
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable")
