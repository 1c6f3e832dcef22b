"""The collector of garbage, kept from a worker's libraries and base, which stay to its end.

They are a million objects, and a full pass through them takes 0.3 to 0.5 s: several while they are
imported, and one each time that memory is given back.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Within, nothing is collected; what is imported there is passed over from then on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def settle() -> None:
    """What is there now stays to the process's end: it is passed over from then on."""
    gc.collect()
    gc.freeze()
