"""Kill anything while the study is on a server; see `servers` for how to name one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from audit import faults, outcomes
from rounds import Plan, Tally, live, overrides, play
from servers import KINDS, own_database

N_TRIALS, KILLS = 20, 8


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind: str, tmp_path: Path) -> None:
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    with own_database(kind) as url:
        typed = overrides(killed, N_TRIALS, 0, f"storage='{url}'")
        tally, _ = play(typed, killed, random.Random(0), KILLS)
        assert tally.killed > 0 and faults(killed, N_TRIALS, url=url) == []
        code, said = live(overrides(calm, N_TRIALS, 0), calm, Plan(), Tally())
        assert code == 0, said
        assert set(map(str, outcomes(killed, url))) == set(map(str, outcomes(calm)))
