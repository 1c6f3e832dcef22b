"""Keyed dropout: the masks are fair coins, and nothing but their key decides them."""

from __future__ import annotations

import itertools
import zlib

import pytest
import torch

from trials.dropout import KeyedDropout, RowKeys, keep_mask, module_key, row_keys

P = 0.1
TOKENS, COLUMNS = 64, 256


def mask(
    *, seed: int = 7, start: int = 0, examples: int = 8, module: str = "layers.0.q_proj",
    columns: int = COLUMNS, p: float = P,
) -> torch.Tensor:
    """Survivors `[examples, tokens, columns]` of examples from position `start` on."""
    positions = torch.arange(start, start + examples)[:, None]
    rows = row_keys(seed, positions, torch.arange(TOKENS)[None])
    return keep_mask(rows, module_key(module), columns, p)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's, in standard deviations from 0 for independent coins."""
    a, b = a.flatten().double(), b.flatten().double()
    both = torch.corrcoef(torch.stack([a, b]))[0, 1]
    return float(both) * len(a) ** 0.5


@pytest.mark.parametrize("p", [0.001, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_p(p: float) -> None:
    dropped = ~mask(examples=32, p=p)
    standard_error = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(dropped.double().mean() - p) < 4 * standard_error


@pytest.mark.parametrize(("dimension", "what"), [(0, "example"), (1, "token"), (2, "column")])
def test_every_example_token_and_column_has_the_rate(dimension: int, what: str) -> None:
    dropped = ~mask(examples=64)
    others = [d for d in range(3) if d != dimension]
    counts = dropped.sum(others).double()
    n = dropped.numel() // dropped.shape[dimension]
    chi_square = ((counts - n * P) ** 2 / (n * P * (1 - P))).sum()
    freedom = len(counts)
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5, what


def test_neighbours_are_independent() -> None:
    kept = mask(examples=16)
    for shift in (1, 2, 3, 8, 16, 128):
        assert abs(correlation(kept[..., :-shift], kept[..., shift:])) < 4.5
    for shift in (1, 2, 16):
        assert abs(correlation(kept[:, :-shift], kept[:, shift:])) < 4.5
    for shift in (1, 2, 8):
        assert abs(correlation(kept[:-shift], kept[shift:])) < 4.5


def test_pairs_of_columns_are_uniform() -> None:
    kept = mask(examples=32, p=0.5)
    for first, second in ((0, 1), (0, 2), (1, 2), (100, 101), (0, 255)):
        cells = (kept[..., first].long() * 2 + kept[..., second].long()).flatten()
        counts = torch.bincount(cells, minlength=4).double()
        expected = len(cells) / 4
        assert ((counts - expected) ** 2 / expected).sum() < 21.1  # 3 degrees: 1 in 10,000


def test_seeds_and_modules_are_independent() -> None:
    masks = [
        mask(seed=seed, module=f"layers.{layer}.q_proj")
        for seed, layer in itertools.product((0, 1, 2, 2**32, 2**40 + 1), (0, 1, 10))
    ]
    worst = max(abs(correlation(a, b)) for a, b in itertools.combinations(masks, 2))
    assert worst < 5  # of 105 pairs


def test_a_mask_follows_from_its_key_alone() -> None:
    whole = mask(examples=8)
    assert torch.equal(mask(start=3, examples=2), whole[3:5])
    packed = row_keys(7, torch.tensor([[5] * 4 + [2] * 3]), torch.tensor([[0, 1, 2, 3, 0, 1, 2]]))
    kept = keep_mask(packed, module_key("layers.0.q_proj"), COLUMNS, P)[0]
    assert torch.equal(kept, torch.cat([whole[5, :4], whole[2, :3]]))


def test_columns_do_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(mask(columns=37), mask(columns=COLUMNS)[..., :37])


def test_slots_may_have_rates_of_their_own() -> None:
    rows = row_keys(1, torch.arange(3)[:, None], torch.arange(TOKENS)[None])
    rates = torch.tensor([0.0, 0.25, 0.5])
    together = keep_mask(rows, 5, COLUMNS, rates[:, None, None])
    for slot, rate in enumerate(rates.tolist()):
        assert torch.equal(together[slot], keep_mask(rows[slot], 5, COLUMNS, rate))
    assert together[0].all()


def test_the_module_scales_what_it_keeps_and_passes_gradients_there_alone() -> None:
    keys = RowKeys(row_keys(1, torch.arange(4)[:, None], torch.arange(TOKENS)[None]))
    dropout = KeyedDropout(0.25, "q_proj", keys)
    x = torch.ones(4, TOKENS, COLUMNS, requires_grad=True)
    out = dropout(x)
    out.sum().backward()
    assert sorted(set(out.detach().unique().tolist())) == pytest.approx([0.0, 4 / 3])
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())
    assert torch.equal(dropout(x), out)  # drawn again, as checkpointing does


def test_it_is_the_identity_without_a_rate_or_without_training() -> None:
    x = torch.randn(2, 3, 4)
    assert KeyedDropout(0.0, "q_proj", RowKeys())(x) is x
    assert KeyedDropout(0.5, "q_proj", RowKeys()).eval()(x) is x


def test_missing_keys_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no row keys for an input of shape"):
        KeyedDropout(0.5, "q_proj", RowKeys())(torch.randn(2, 3, 4))


def test_the_bits_are_pinned() -> None:
    """A change here changes every trial with dropout, and breaks replaying the old ones."""
    bits = bytes(mask(p=0.5).flatten().to(torch.uint8).tolist())
    assert zlib.crc32(bits) == PINNED


PINNED = 0x1BD6A7D1


@pytest.mark.gpu
def test_the_bits_are_the_same_on_cuda() -> None:
    positions, tokens = torch.arange(8)[:, None], torch.arange(TOKENS)[None]
    rows = row_keys(7, positions.cuda(), tokens.cuda())
    kept = keep_mask(rows, module_key("layers.0.q_proj"), COLUMNS, P)
    assert torch.equal(kept.cpu(), mask())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [64, 33, 300])
def test_on_cuda_one_pass_does_what_many_do(columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keys = RowKeys(row_keys(5, torch.arange(3)[:, None], torch.arange(TOKENS)[None]))
    x, upstream = (torch.randn(3, TOKENS, columns).to(dtype) for _ in range(2))
    found = []
    for device in ("cpu", "cuda"):
        assert keys.rows is not None
        keys.rows = keys.rows.to(device)
        given = x.detach().to(device).requires_grad_()
        y = KeyedDropout(P, "layers.0.q_proj", keys)(given)
        y.backward(upstream.to(device))
        assert given.grad is not None
        found.append((y.detach().cpu(), given.grad.cpu()))
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)
