"""The bases that engines train on in these tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import Tiny, made_in


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A base of this module's own, NF4 in fp32."""
    return made_in(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def dense(tiny: Tiny) -> Tiny:
    """The same base unquantised, where rounding is all that may differ."""
    return replace(tiny, quantisation="none")
