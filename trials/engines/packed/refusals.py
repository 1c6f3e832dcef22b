"""What a pack cannot do, said before anything is trained, each time naming what can."""

from __future__ import annotations

from trials.base import Base
from trials.contract import EngineConfig, InputError

OPTIONS = {"capacity": "trials at once", "max_r": "the largest rank to make room for at first"}


def check_options(engine: EngineConfig) -> None:
    """Raises InputError for an unknown option or one that is not a positive whole number."""
    for name, value in engine.options.items():
        if name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise InputError(f"engine.{name}: the engine packed has no such option: {known}.")
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"engine.{name}={value!r}: {OPTIONS[name]}, a whole number from 1.")


def check_base(base: Base) -> None:
    """Raises InputError where a trial would depend on its pack-mates, or could not be computed."""
    if base.config.dtype == "fp16":
        raise InputError("model.dtype=fp16: packs compute in bf16 or fp32. Type engine=trl.")
    if base.config.quantisation == "int8":
        raise InputError(
            "model.quantisation=int8: it treats a column by the largest value of the whole batch, "
            "so trials of a pack would see each other. Type engine=trl, or model.quantisation=nf4."
        )
