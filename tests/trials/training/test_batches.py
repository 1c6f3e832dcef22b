"""Examples to tensors: every target predicted once, from the right place, in any arrangement."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trials.data.examples import Example
from trials.training.batches import Limit, Placed, collate, pack, split


def example(length: int, targets: int) -> Example:
    """Tokens 10, 11, ... of which the last `targets` carry loss."""
    ids = tuple(range(10, 10 + length))
    return Example(ids, (False,) * (length - targets) + (True,) * targets, "", "")


shapes = st.lists(
    st.integers(2, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    min_size=1, max_size=12,
)


def placed(sizes: list[tuple[int, int]]) -> list[Placed]:
    """Examples at positions 100, 101, ..."""
    return [(100 + k, example(*size)) for k, size in enumerate(sizes)]


@given(shapes, st.booleans(), st.integers(1, 40))
def test_every_target_is_predicted_by_the_token_before_it(
    sizes: list[tuple[int, int]], packed: bool, width: int
) -> None:
    examples = placed(sizes)
    rows = pack(examples, width) if packed else [[item] for item in examples]
    batch = collate(rows, pad=0)
    flat = {name: getattr(batch, name).flatten() for name in ("input_ids", "order", "tokens")}
    seen = set()
    for at, target in zip(batch.index.tolist(), batch.targets.tolist(), strict=True):
        assert flat["input_ids"][at] + 1 == target  # ids count up within an example
        seen.add((int(flat["order"][at]), int(flat["tokens"][at])))
    wanted = {(position, t - 1) for position, e in examples
              for t, target in enumerate(e.loss_mask) if target}
    assert seen == wanted
    assert len(batch.targets) == len(wanted)
    assert batch.examples == len(sizes)
    assert batch.real_tokens == sum(length - 1 for length, _ in sizes)


def test_packing_fills_rows_and_restarts_positions() -> None:
    rows = pack(placed([(5, 1), (9, 1), (4, 1), (3, 1)]), width=9)
    assert [[position for position, _ in row] for row in rows] == [[101], [100, 102, 103]]
    batch = collate(rows, pad=0)
    assert batch.position_ids is not None
    assert batch.position_ids[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]


def test_rows_of_one_example_need_no_positions() -> None:
    assert collate([[item] for item in placed([(5, 1), (3, 1)])], pad=0).position_ids is None


@given(shapes, st.integers(1, 5), st.integers(1, 60), st.integers(1, 20))
def test_splitting_keeps_every_row_and_the_limit(
    sizes: list[tuple[int, int]], rows: int, tokens: int, targets: int
) -> None:
    limit = Limit(rows=rows, tokens=tokens, targets=targets)
    groups = list(split([[item] for item in placed(sizes)], limit))
    assert sorted(row[0][0] for group in groups for row in group) == [
        100 + k for k in range(len(sizes))
    ]
    for group in groups:
        batch = collate(group, pad=0)
        used = (len(group), batch.input_ids.numel(), len(batch.targets))
        allowed = (rows, tokens, targets)
        assert len(group) == 1 or all(u <= a for u, a in zip(used, allowed, strict=True))
