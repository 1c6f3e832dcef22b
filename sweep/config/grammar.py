"""Hydra's own sweep grammar, by Hydra's own parser -> Optuna distributions, checked.

`choice(4, 8)`, `4,8`, `range(0, 0.3, 0.1)`, `interval(0, 1)`, `int(interval(4, 64))` and
`tag(log, ...)` mean the same in a search file and on the command line.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from sweep.config.leaves import Leaf, show
from sweep.secrets import is_secret
from trials.contract import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SHAPES = "choice(4, 8, 16), range(4, 65, 4), interval(0, 0.1), tag(log, interval(1e-5, 1e-3))"
MOST_POINTS = 1_000_000  # of one range; beyond it an interval is meant
PLAIN = re.compile(r"""[^"'\\()\[\]{},=$]+""")  # what can be nothing but a text, if no number
_ERRORS = (HydraException, ArithmeticError, ValueError, RecursionError)
_parser = OverridesParser.create()


def parse_override(text: str) -> Override:
    """One `key=value` of the command line. Raises InputError where Hydra's parser gives up.

    A text with characters that Hydra knows in quotes only, such as é or ~, is taken as it is.
    """
    try:
        return _parse(text)
    except _ERRORS as error:
        key, _, value = text.partition("=")
        with suppress(*_ERRORS):
            if PLAIN.fullmatch(value) and value.isprintable():
                return _parse(f'{key}="{value.strip()}"')
        raise InputError(_unreadable(text, error)) from None


def _parse(text: str) -> Override:
    return _parser.parse_rule(text, "override")  # type: ignore[no-any-return]


def parse_value(name: str, text: str) -> Any:
    """The right-hand side of `name=`: a Sweep, or a plain value. Raises InputError."""
    parsed = parse_override(f"{name}={text}")
    if isinstance(parsed.value(), Sweep) or not parsed.is_sweep_override():
        return parsed.value()
    raise InputError(f"{name}={text}: glob() is for files. Write one of {SHAPES}.")


def distribution(name: str, leaf: Leaf, sweep: Sweep, text: str) -> BaseDistribution:
    """What Optuna draws from. Raises InputError with the bad value, the rule and what to type."""
    said = f"{name}={text}"
    if unknown := sorted(sweep.tags - {"log", "int"}):
        raise InputError(f"{said}: tag {unknown[0]!r} is unknown. Known tags: log, int.")
    if getattr(sweep, "shuffle", False):
        raise InputError(f"{said}: drop shuffle(), the sampler chooses the order.")
    if isinstance(sweep, ChoiceSweep):
        return _choice(name, leaf, sweep, said)
    if leaf.kind not in ("int", "float"):
        what = f"choice({_example(leaf)})"
        raise InputError(f"{said}: {name} has no order, so only a choice fits. Type {name}={what}.")
    if isinstance(sweep, IntervalSweep):
        return _interval(name, leaf, sweep, said)
    assert isinstance(sweep, RangeSweep)
    return _range(name, leaf, sweep, said)


def _choice(name: str, leaf: Leaf, sweep: ChoiceSweep, said: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    if sweep.tags:
        raise InputError(f"{said}: a choice takes no tag. Type {name}='choice(...)'.")
    choices: list[Any] = []
    for entry in sweep.list:
        value = leaf.convert(name, _scalar(name, entry, said), said)
        if value in choices:
            raise InputError(f"{said}: {show(value)} is there twice. Name each value once.")
        choices.append(value)
    return CategoricalDistribution(choices)


def _scalar(name: str, entry: Any, said: str) -> Any:
    """A choice's value without its quotes; lists have a form of their own."""
    if isinstance(entry, QuotedString):
        return entry.text
    if isinstance(entry, list):
        joined = "+".join(str(getattr(item, "text", item)) for item in entry) or "q_proj+v_proj"
        raise InputError(f"{said}: a choice is between single values, not lists. Write {joined}.")
    if isinstance(entry, (dict, Sweep)) or entry is None:
        what = "other sweeps" if isinstance(entry, Sweep) else show(entry)
        raise InputError(f"{said}: a choice is between single values, not {what}.")
    return entry


def _interval(name: str, leaf: Leaf, sweep: IntervalSweep, said: str) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = sweep.start, sweep.end
    whole = isinstance(low, int) and isinstance(high, int)
    if _is_number(low) and _is_number(high):
        form = _whole_form(leaf, sweep, said)
        if leaf.kind == "int" and not whole or "int" in sweep.tags:
            raise InputError(
                f"{said}: interval() is of fractions, also under tag(int, ...). "
                f"Type {name}='{form}'."
            )
        if whole and (end := _cut(said)):
            raise InputError(
                f"{said}: int() would cut off what {end} has after the point. "
                f"Type {name}='{form}' if that is meant."
            )
    log = _bounds(name, leaf, sweep, low, high, said)
    if whole:
        return IntDistribution(int(low or 0), int(high or 0), log=log)
    return FloatDistribution(float(low or 0), float(high or 0), log=log)


def _whole_form(leaf: Leaf, sweep: IntervalSweep, said: str) -> str:
    """The interval as int() reads it, its ends in order and within the rule."""
    log = "log" in sweep.tags
    least = 0 if leaf.holds(0) and not log else 1
    low, high = sorted(max(int(end), least) for end in (sweep.start or 0, sweep.end or 0))
    form = f"int(interval({low}, {high}))" if leaf.holds(1) else f"interval({_ends(said)})"
    return f"tag(log, {form})" if log else form


def _cut(said: str) -> str | None:
    """An end that is not whole: int(interval(4.5, 8)) comes from Hydra as 4 to 8."""
    ends = re.findall(r"[-+]?[\d._]+(?:[eE][-+]?\d+)?", _ends(said))
    return next((end for end in ends if not float(end).is_integer()), None)


def _ends(said: str) -> str:
    found = re.search(r"interval\(([^()]*)\)", said)
    return found[1] if found else ""


def _range(name: str, leaf: Leaf, sweep: RangeSweep, said: str) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high, step, count = _points(name, leaf, sweep, said)
    whole = all(isinstance(number, int) for number in (low, high, step))
    if leaf.kind == "int" and not whole:
        raise InputError(f"{said}: {name} is {leaf.wanted}, so start, stop and step are too.")
    log = _bounds(name, leaf, sweep, low, high, said)
    if log and (not whole or step != 1):
        form = f"interval({show(low)}, {show(high)})"
        form = f"int({form})" if whole else form
        typed = f"{name}='tag(log, {form})'"
        raise InputError(f"{said}: a logarithmic range has no step. Type {typed}.")
    if whole:
        return IntDistribution(low, high, log=log, step=step if count > 1 else 1)
    return FloatDistribution(low, high, step=step if count > 1 else None)


def _points(name: str, leaf: Leaf, sweep: RangeSweep, said: str) -> tuple[Any, Any, Any, int]:
    """Lowest, highest, step and number of the points; like Python's, the stop is not one."""
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if leaf.kind == "int":
        start, stop, step = _short(start), _short(stop), _short(step)
    if not all(_is_number(number) for number in (start, stop, step)) or step == 0:
        raise InputError(f"{said}: a range is of numbers, its step not 0: range(4, 65, 4).")
    exact = [Decimal(str(number)) for number in (start, stop, step)]
    count = max(0, math.ceil((exact[1] - exact[0]) / exact[2]))
    if count == 0:
        raise InputError(
            f"{said}: no value lies from {show(start)} up to, not including, {show(stop)} "
            f"in steps of {show(step)}. Type {name}='range(low, high, step)' with low < high."
        )
    if count > MOST_POINTS:
        raise InputError(f"{said}: {count} points. Type {name}='interval(low, high)' instead.")
    last = exact[0] + exact[2] * (count - 1)
    kind = int if all(isinstance(number, int) for number in (start, stop, step)) else float
    low, high = sorted((kind(exact[0]), kind(last)))
    return low, high, kind(abs(exact[2])), count


def _bounds(name: str, leaf: Leaf, sweep: Sweep, low: Any, high: Any, said: str) -> bool:
    """Checks both ends; says whether the scale is logarithmic."""
    if not (_is_number(low) and _is_number(high)):
        raise InputError(f"{said}: both ends are finite numbers: interval(0, 0.1).")
    ends = [show(_short(low)), show(_short(high))]
    if low > high:
        raise InputError(
            f"{said}: low {ends[0]} is above high {ends[1]}. Type the smaller number first."
        )
    if "log" in sweep.tags and low <= 0:
        raise InputError(
            f"{said}: a logarithmic scale starts above 0, not at {ends[0]}. "
            "Raise the low end, or drop tag(log, ...)."
        )
    for end, shown in zip((low, high), ends, strict=True):
        if not leaf.holds(end):
            raise InputError(f"{said}: {shown} breaks the rule: {name} is {leaf.wanted}.")
    return "log" in sweep.tags


def _is_number(number: Any) -> bool:
    return (
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and abs(number) < 1e300  # so that high - low is finite too
    )


def _short(number: Any) -> Any:
    """4.0 as 4: interval() turns what was typed into a float."""
    whole = isinstance(number, float) and abs(number) < 1e15 and number.is_integer()
    return int(number) if whole else number


def _example(leaf: Leaf) -> str:
    if leaf.kind == "bool":
        return "true, false"
    return ", ".join(leaf.known[:3]) or "qv, all-linear"


def _unreadable(text: str, error: Exception) -> str:
    key, equals, value = text.partition("=")
    if is_secret(key):
        return f"{key}=*** cannot be read."
    if not equals:
        return f"{text!r} is not of the form key=value. Type for example lora.r=16."
    if "empty choice" in str(error) or value.replace(" ", "") in ("choice()", "tag(log,choice())"):
        return f"{text}: the choice is empty. Type {key}='choice(a, b)' with at least one value."
    why = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{text}: {value!r} cannot be read ({why}). A search is written as {SHAPES}; a text with "
        f"brackets, commas, quotes, \\ or = needs quotes of its own: "
        f"""{key}='"..."'."""
    )
