"""What a pack cannot do and one trial at a time can, said before anything is trained."""

from __future__ import annotations

from trials.base import Base
from trials.contract import InputError


class Refused(InputError):
    """What packs cannot do: `why`, a sentence, and what to type, engine=trl among it."""

    def __init__(self, why: str, instead: str = "Type engine=trl.") -> None:
        super().__init__(f"{why} {instead}")
        self.why = why


class NoRoom(Refused):
    """Not even one trial fits beside the base."""


def check_base(base: Base) -> None:
    """Raises Refused where a trial would depend on its pack-mates."""
    if base.config.quantisation == "int8":
        raise Refused(
            "model.quantisation=int8: it treats a column by the largest value of the whole batch, "
            "so trials of a pack would see each other.",
            "Type engine=trl, or model.quantisation=nf4.",
        )
