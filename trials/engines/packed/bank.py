"""The bank: the adapters of all slots with their gradients and moments, one flat row per slot.

A row is the A `[r, d_in]` and B^T `[r, d_out]` of every module, end to end; `r` is the bank's
width. A smaller rank fills the first rows of each, and a module that the trial does not target is
0: AdamW with weight decay keeps such entries exactly 0, so nothing needs a mask. What works on
whole adapters (clipping, optimizers, emptying) works on rows and knows no modules, but for
`blocks`, by which kernels pass over what lies beyond a slot's rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from trials.dropout import module_key
from trials.engines.packed.later import sent

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)  # widths; wider ones are multiples of the last
BLOCK = 4096  # numbers of a row that one program of the optimizer's kernels takes
Shapes = Mapping[str, tuple[int, int]]  # module path -> d_in, d_out
Drawn = Mapping[str, Tensor]  # module path -> A [r, d_in] of an adapter whose every B is 0
Factors = Mapping[str, tuple[Tensor, Tensor]]  # module path -> A [r, d_in], B [d_out, r]


@dataclass(frozen=True)
class Views:
    """A flat `[n, P]` tensor as modules see it: `a[m]` `[n, r, d_in]`, `b[m]` `[n, d_out, r]`."""

    flat: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    index: Tensor  # int64 [modules, 2]: where each a begins in a row, the key of its dropout
    ranks: Tensor  # int32 [n]: how many of its ranks each slot fills; an empty one's mean nothing


class Bank:
    """Rows of parameters, gradients and two moments for `slots` adapters of rank up to `r`."""

    def __init__(
        self, shapes: Shapes, *, slots: int, r: int, device: torch.device,
        compute: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shapes, self.slots, self.r = dict(shapes), slots, width(r)
        sizes = [self.r * (d_in + d_out) for d_in, d_out in shapes.values()]
        self.numel = sum(sizes)
        index = zip(accumulate(sizes, initial=0), map(module_key, shapes), strict=False)
        self._index = torch.tensor(list(index), device=device)
        self.ranks = torch.full((slots,), self.r, dtype=torch.int32, device=device)
        self.parameters, self.gradients, self.first, self.second = (
            torch.zeros(slots, self.numel, dtype=dtype, device=device) for _ in range(4)
        )
        # What the layers multiply with: the parameters themselves, or their rounded copy.
        same = compute == dtype
        self.compute = self.parameters if same else self.parameters.to(compute)
        self._prefixes: dict[int, tuple[Views, Views]] = {}
        self.blocks = _blocks(self.shapes, self.r).to(device)

    @property
    def by_kernels(self) -> bool:
        """Whether Triton kernels work on it."""
        return self.compute.is_cuda and self.compute.dtype in (torch.bfloat16, torch.float16)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """All that belongs to a slot, each `[slots, P]`."""
        return self.parameters, self.gradients, self.first, self.second

    def prefix(self, n: int) -> tuple[Views, Views]:
        """The weights and gradients of the first `n` slots, in place."""
        if n not in self._prefixes:
            self._prefixes[n] = (self._views(self.compute[:n], self.ranks[:n]),
                                 self._views(self.gradients[:n], self.ranks[:n]))
        return self._prefixes[n]

    def gathered(self, slots: Sequence[int]) -> Views:
        """A copy of the weights of any slots."""
        index = sent(torch.tensor(slots), self.compute.device)
        return self._views(self.compute.index_select(0, index), self.ranks.index_select(0, index))

    def round(self, n: int) -> None:
        """Makes the first `n` rows' new parameters visible to the layers."""
        if self.compute is not self.parameters:
            self.compute[:n].copy_(self.parameters[:n])

    def place(self, slot: int, drawn: Drawn) -> None:
        """Starts a slot from an adapter that is as it was drawn, with no gradient and no moments.

        From pinned memory this waits for nothing.
        """
        self.empty(slot)
        self.ranks[slot].fill_(max((a.shape[0] for a in drawn.values()), default=self.r))
        for name, a in zip(self.shapes, self._row(self.parameters, slot).a, strict=True):
            if name in drawn:
                a[0, : drawn[name].shape[0]].copy_(drawn[name], non_blocking=True)
        self._round_row(slot)

    def factors(self, slot: int, r: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A slot's adapter of rank `r`: views of the bank."""
        row = self._row(self.parameters, slot)
        return {name: (a[0, :r], b[0, :, :r])
                for name, a, b in zip(self.shapes, row.a, row.b, strict=True)}

    def empty(self, slot: int) -> None:
        """Zeroes a slot's rows: what was not finite is gone too."""
        for tensor in self.rows:
            tensor[slot].zero_()
        self.ranks[slot].fill_(self.r)
        self._round_row(slot)

    def move(self, source: int, target: int) -> None:
        """Puts a slot's rows in the place of another one's."""
        for tensor in (*self.rows, self.ranks):
            tensor[target].copy_(tensor[source])
        self._round_row(target)
        self.empty(source)

    def saved(self, slot: int, r: int, targets: Collection[str]) -> dict[str, Tensor]:
        """A copy of a slot's adapter of rank `r` and of its moments, each end to end.

        The bank's width is not part of it; `restore` takes it back.
        """
        return {kind: torch.cat([piece.flatten() for piece in self._pieces(row, slot, r, targets)])
                for kind, row in self._kept().items()}

    def restore(
        self, slot: int, r: int, targets: Collection[str], state: Mapping[str, Tensor]
    ) -> None:
        """Takes back what `saved` gave, bit for bit."""
        self.empty(slot)
        self.ranks[slot].fill_(r)
        for kind, row in self._kept().items():
            pieces = self._pieces(row, slot, r, targets)
            sizes = [piece.numel() for piece in pieces]
            given = torch.split(state[kind].to(row.device), sizes)
            for piece, numbers in zip(pieces, given, strict=True):
                piece.copy_(numbers.view(piece.shape))
        self._round_row(slot)

    def _pieces(
        self, rows: Tensor, slot: int, r: int, targets: Collection[str]
    ) -> list[Tensor]:
        """What rank `r` fills of the factors of these modules, in place."""
        row = self._row(rows, slot)
        named = zip(self.shapes, row.a, row.b, strict=True)
        return [piece for name, a, b in named if name in targets
                for piece in (a[0, :r], b[0, :, :r])]

    def _kept(self) -> dict[str, Tensor]:
        return {"parameter": self.parameters, "first": self.first, "second": self.second}

    def widened(self, r: int) -> Bank:
        """A bank for ranks up to `r` with the same adapters in the same slots."""
        wider = Bank(self.shapes, slots=self.slots, r=r, device=self.parameters.device,
                     compute=self.compute.dtype, dtype=self.parameters.dtype)
        for old, new in zip(self.rows, wider.rows, strict=True):
            narrow, wide = self._views(old, self.ranks), wider._views(new, wider.ranks)
            for k in range(len(self.shapes)):
                wide.a[k][:, : self.r].copy_(narrow.a[k])
                wide.b[k][:, :, : self.r].copy_(narrow.b[k])
        wider.ranks.copy_(self.ranks)  # an empty slot's is set when it is filled
        wider.round(self.slots)
        return wider

    def _round_row(self, slot: int) -> None:
        if self.compute is not self.parameters:
            self.compute[slot].copy_(self.parameters[slot])

    def _row(self, rows: Tensor, slot: int) -> Views:
        return self._views(rows[slot : slot + 1], self.ranks[slot : slot + 1])

    def _views(self, flat: Tensor, ranks: Tensor) -> Views:
        a, b, start = [], [], 0
        for d_in, d_out in self.shapes.values():
            middle, end = start + self.r * d_in, start + self.r * (d_in + d_out)
            a.append(flat[:, start:middle].view(-1, self.r, d_in))
            b.append(flat[:, middle:end].view(-1, self.r, d_out).mT)
            start = end
        return Views(flat, tuple(a), tuple(b), self._index, ranks)


def _blocks(shapes: Shapes, r: int) -> Tensor:
    """A row in blocks of at most `BLOCK` numbers, none over two factors: int64 `[blocks, 3]`,
    where each begins, how many they are, and the first rank that any of them belongs to."""
    widths = np.array(list(shapes.values()), dtype=np.int64).ravel()
    counts = -(-widths * r // BLOCK)
    width = np.repeat(widths, counts)
    place = BLOCK * (np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts))
    start = np.repeat((widths * r).cumsum() - widths * r, counts) + place
    table = np.stack([start, np.minimum(BLOCK, width * r - place), place // width], axis=1)
    return torch.from_numpy(table)


def shapes_of(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """The layers' inputs and outputs, by path."""
    return {name: (int(m.in_features), int(m.out_features))  # type: ignore[arg-type]
            for name, m in layers.items()}


def width(r: int) -> int:
    """The bank's width for ranks up to `r`: few widths, so that few shapes are ever computed."""
    return next((rank for rank in RANKS if rank >= r), -(-r // RANKS[-1]) * RANKS[-1])
