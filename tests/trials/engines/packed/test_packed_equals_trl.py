"""Real trials, of the demo and with dropout, end where they end under the TRL engine."""

from __future__ import annotations

import pytest

from tests.benchmarks import engines_agree
from tests.benchmarks.engines_agree import (
    CORRELATION,
    PACKED,
    TRIALS,
    TRL,
    Compared,
    compare,
    rank_correlation,
    show,
    trained,
)

FEW = (2, 8, 9, 15)  # weight decay, grouping by length, packing, SGD
WIDE = TRIALS[13] | {"r": 128}


def check(found: list[Compared]) -> None:
    """Every trial within its own noise, and their ranks."""
    show(found)
    assert [row.trial for row in found if not row.agrees] == []
    assert rank_correlation(found) >= CORRELATION


def test_a_few_trials_end_where_trl_ends() -> None:
    check(compare(FEW, TRL[:3], examples=64))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_trials_end_where_trl_ends() -> None:
    check(compare(range(len(TRIALS))))


def test_gradient_norms_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_agree, "TRIALS", (WIDE,))
    packed, other = ([point.grad_norm for report in trained(way, (0,), examples=24).reports
                      for point in report.history] for way in (PACKED, TRL[0]))
    assert packed == pytest.approx(other, rel=3e-6)  # in fp32, over 2.4 million numbers
