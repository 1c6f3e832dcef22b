"""Numbers that were typed with a unit: `90m`, `1h30m`, `2:00:00`, `$20`; and what to type instead.

Values are plain numbers, their unit is in the key's own description; so a message can say it all.
"""

from __future__ import annotations

import math
import re

SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
UNITS = {"hours": SECONDS["h"], "minutes": SECONDS["m"]}
TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|m|s)[a-z]*\.?\s*")
CLOCK = re.compile(r"(\d+):(\d\d):(\d\d)")
MONEY = re.compile(r"[^\d.]{0,4}(\d+(?:\.\d+)?)[^\d.]{0,4}")


def in_unit(text: str, unit: str) -> float | None:
    """What a text such as 90m is in `unit` (hours, minutes, money); null if it cannot be read."""
    text = text.strip().lower()
    if unit == "money":
        found = MONEY.fullmatch(text)
        number = float(found[1]) if found else None
    else:
        seconds = _seconds(text)
        number = None if seconds is None else seconds / UNITS[unit]
    return number if number is not None and math.isfinite(number) else None


def _seconds(text: str) -> float | None:
    if clock := CLOCK.fullmatch(text):
        hours, minutes, seconds = map(float, clock.groups())
        return hours * 3600 + minutes * 60 + seconds
    parts = TIME.findall(text)
    if not parts or TIME.sub("", text):
        return None
    return sum(float(number) * SECONDS[letter] for number, letter in parts)
