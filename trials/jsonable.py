"""Frozen dataclasses to JSON and back, exactly; stdlib only.

Non-finite floats become the strings NaN, Infinity and -Infinity, enums their values, tuples lists.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(item: Any, *, indent: int | None = None) -> str:
    """A value as JSON."""
    return json.dumps(_plain(item), indent=indent, allow_nan=False)


def from_json(kind: type[T], text: str) -> T:
    """The inverse of `to_json`. Raises ValueError with the field's name on anything unexpected."""
    return typing.cast(T, _typed(kind, json.loads(text), kind.__name__))


def _plain(item: Any) -> Any:
    if dataclasses.is_dataclass(item):
        return {f.name: _plain(getattr(item, f.name)) for f in dataclasses.fields(item)}
    if isinstance(item, enum.Enum):
        return item.value
    if isinstance(item, dict):
        return {key: _plain(entry) for key, entry in item.items()}
    if isinstance(item, (tuple, list)):
        return [_plain(entry) for entry in item]
    if isinstance(item, float) and not math.isfinite(item):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(item, "NaN")
    return item


def _typed(kind: Any, item: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return item
    if origin in (types.UnionType, typing.Union):
        return _one_of(typing.get_args(kind), item, where)
    if dataclasses.is_dataclass(kind):
        return _instance(kind, item, where)
    if origin is tuple:
        return _tuple(typing.get_args(kind), item, where)
    if origin is dict:
        _expect(isinstance(item, dict), kind, item, where)
        inner = typing.get_args(kind)[1]
        return {key: _typed(inner, entry, f"{where}.{key}") for key, entry in item.items()}
    return _scalar(kind, item, where)


def _instance(kind: Any, item: Any, where: str) -> Any:
    _expect(isinstance(item, dict), kind, item, where)
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(item) - known):
        names = ", ".join(sorted(known))
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known: {names}")
    try:
        return kind(**{name: _typed(hints[name], entry, f"{where}.{name}")
                       for name, entry in item.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _tuple(inner: tuple[Any, ...], item: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(item, list), tuple, item, where)
    if inner[-1] is Ellipsis:
        return tuple(_typed(inner[0], entry, f"{where}[{i}]") for i, entry in enumerate(item))
    _expect(len(item) == len(inner), tuple, item, where)
    return tuple(_typed(kind, entry, where) for kind, entry in zip(inner, item, strict=True))


def _one_of(kinds: tuple[Any, ...], item: Any, where: str) -> Any:
    if item is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        try:
            return _typed(kind, item, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[0])


def _scalar(kind: Any, item: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(item)
    if kind is float:
        if item in ("NaN", "Infinity", "-Infinity"):
            return float(item)
        _expect(isinstance(item, (int, float)) and not isinstance(item, bool), kind, item, where)
        return float(item)
    _expect(type(item) is kind, kind, item, where)
    return item


def _expect(condition: bool, kind: Any, item: Any, where: str) -> None:
    if not condition:
        raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {item!r}")
