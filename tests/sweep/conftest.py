"""What the suites of `sweep` start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeping import sweep_config

from sweep.config import SweepConfig


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    """A small simulated sweep; suites that need another have their own."""
    return sweep_config(tmp_path)
