"""Trials as CSV: one row each, parameters under their own names, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sweep.results.wording import clean
from sweep.store import TrialRecord

MEASURES = (
    "number", "outcome", "eval_loss", "eval_accuracy", "first_rung_loss", "ticks", "examples",
    "tokens", "seconds", "eval_seconds", "sample_seconds", "memory_bytes", "trainable_parameters",
    "utilisation", "attempt", "worker", "started_at", "finished_at", "adapter", "reason",
)  # fmt: skip
TIMES = ("started_at", "finished_at")
FORMULA = ("=", "+", "-", "@")  # a spreadsheet would run text that begins so


class TrialsCsv:
    """The table, with each row rendered once, so that writing 2,000 of them stays quick."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self._dimensions = tuple(dimensions)
        self._rows: dict[int, str] = {}
        self._head = _line([*MEASURES[:3], *dimensions, *MEASURES[3:]])

    def put(self, record: TrialRecord) -> None:
        """Adds a trial or renews it."""
        before = [_cell(record, name) for name in MEASURES[:3]]
        chosen = [_plain(record.params.get(name)) for name in self._dimensions]
        after = [_cell(record, name) for name in MEASURES[3:]]
        self._rows[record.number] = _line([*before, *chosen, *after])

    def text(self) -> str:
        """The whole table, by trial number."""
        return self._head + "".join(self._rows[number] for number in sorted(self._rows))


def _cell(record: TrialRecord, name: str) -> Any:
    item = getattr(record, name)
    if name in TIMES and item is not None:
        return datetime.fromtimestamp(item, UTC).isoformat(timespec="seconds")
    return _plain(item)


def _plain(item: Any) -> Any:
    if isinstance(item, (tuple, list)):
        item = json.dumps(item)
    if isinstance(item, str):
        item = clean(item)
        return f"'{item}" if item.startswith(FORMULA) else item
    return str(item).lower() if isinstance(item, bool) else item


def _line(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
