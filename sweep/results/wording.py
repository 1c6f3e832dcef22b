"""How names, numbers, times and texts are written for people, the same on every page.

All text that comes from users, models or data goes through `clean` before it reaches a terminal.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_CELLS = 12  # at most, the latest
NOTHING = "–"
SHORT = {
    "alpha_ratio": "alpha/r",
    "batch_size": "batch",
    "learning_rate": "lr",
    "max_grad_norm": "clip",
    "scheduler": "schedule",
    "target_modules": "targets",
    "weight_decay": "decay",
}
TINY = SHORT | {
    "alpha_ratio": "a/r",
    "batch_size": "bs",
    "dropout": "drop",
    "scheduler": "sched",
    "warmup": "warm",
}


def clean(text: object, *, limit: int | None = None, lines: bool = False) -> str:
    """Text without anything a terminal would obey: controls and reordering marks become visible.

    With `lines` line ends and tabs stay; `limit` is in characters, the middle goes.
    """
    shown = str(text)
    if not (shown.isascii() and shown.isprintable()):
        raw = shown.encode("utf-8", "replace").decode()
        kept = "\n" if lines else ""
        shown = "".join(c if c in kept else _visible(c) for c in raw)
    if limit is None or len(shown) <= limit:
        return shown
    half = max(1, (limit - 1) // 2)
    return f"{shown[:half]}…{shown[len(shown) - (limit - 1 - half) :]}"


def short_names(names: Sequence[str], known: Mapping[str, str] = SHORT) -> dict[str, str]:
    """Searched leaves by their last name, abbreviated; in full where two collide."""
    last = {name: name.rpartition(".")[2] for name in names}
    short = {name: known.get(last[name], last[name]) for name in names}
    taken = list(short.values())
    return {name: clean(name if taken.count(s) > 1 else s) for name, s in short.items()}


def value(item: Any) -> str:
    """A hyperparameter's value in few characters."""
    if item is None:
        return NOTHING
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, float):
        return _float(item)
    if isinstance(item, (tuple, list)):
        return "+".join(value(entry) for entry in item)
    return clean(item, limit=40)


def params(values: Mapping[str, Any]) -> str:
    """Searched values in one line: "r 16, lr 2e-4"."""
    short = short_names(list(values))
    return ", ".join(f"{short[name]} {value(item)}" for name, item in values.items())


def loss(number: float | None) -> str:
    """A loss with four significant figures or three decimals, whichever is shorter to read."""
    if number is None:
        return NOTHING
    if not math.isfinite(number):
        return "nan" if math.isnan(number) else "inf"
    return f"{number:.4f}" if abs(number) < 10 else f"{number:.4g}"


def share(number: float | None) -> str:
    """A share of one as percent."""
    if number is None or not math.isfinite(number):
        return NOTHING
    percent = number * 100
    return f"{percent:.1f} %" if 0 < abs(percent) < 9.95 else f"{percent:.0f} %"


def amount(number: float) -> str:
    """An amount of money, or of hours, in as many digits as one looks at: 12.30, 0.012."""
    return f"{number:.2f}" if number >= 0.1 or number == 0 else f"{number:.2g}"


def below(baseline: float, number: float | None) -> str:
    """How far a loss lies from the untouched base's: "41 % below", "3.2 % above"."""
    if number is None or not math.isfinite(number) or not baseline or not math.isfinite(baseline):
        return NOTHING
    gain = 1 - number / baseline
    return f"{share(abs(gain))} {'below' if gain >= 0 else 'above'}"


def duration(seconds: float | None) -> str:
    """A time as a clock shows it: 0:07, 12:03, 1:02:03."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """A whole number with thousands set apart; millions and up in short."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.1f}{letter}".replace(".0", "")
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in the largest unit that leaves a number to read."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"


def ending(number: int, outcome: str, reason: str | None) -> str:
    """How a trial ended: "trial 7 pruned: why"; a reason may begin with the outcome."""
    why = clean(reason or "")
    if why.startswith(outcome):
        return f"trial {number} {why}"
    return f"trial {number} {outcome}: {why}" if why else f"trial {number} {outcome}"


def plural(number: int, noun: str) -> str:
    """A number with its noun: "1 trial", "2 trials"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def curve(losses: Sequence[float], low: float, high: float) -> str:
    """Losses as block characters between `low` and `high`, both shared by all curves of a table."""
    return "".join(_block(number, low, high) for number in losses[-CURVE_CELLS:])


def here(path: Path) -> str:
    """A path as one would type it from the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _visible(character: str) -> str:
    point = ord(character)
    if point < 0x20:
        return chr(0x2400 + point)  # Unicode's own pictures of control characters
    if point == 0x7F:
        return "\u2421"
    reorders = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and point != 0x200D
    return "\ufffd" if reorders else character


def _float(number: float) -> str:
    if number == 0 or 0.001 <= abs(number) < 10_000:
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if exponent else mantissa


def _block(number: float, low: float, high: float) -> str:
    if not math.isfinite(number):
        return "!"
    if high <= low:
        return BLOCKS[0]
    place = (number - low) / (high - low) * (len(BLOCKS) - 1)
    return BLOCKS[min(len(BLOCKS) - 1, max(0, round(place)))]
