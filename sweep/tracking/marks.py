"""What a tracker has been given whole: a file beside its own, one JSON line for each thing.

Without it nothing breaks: a run is then written again from our tables, under the same id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path


class Marks:
    """Things of one study by name ("7" for trial 7), each with the place it was given to."""

    def __init__(self, file: Path, study_uuid: str) -> None:
        self._file, self._uuid = file, study_uuid
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        self._given = dict(_lines(text, study_uuid))
        self._unfinished = bool(text) and not text.endswith("\n")  # its writer was killed

    def __bool__(self) -> bool:
        return bool(self._given)

    def given(self, thing: str, places: Collection[str]) -> bool:
        """Whether it is in one of these places."""
        return self._given.get(thing) in places

    def place(self, thing: str) -> str | None:
        """Where it was last given to."""
        return self._given.get(thing)

    def add(self, thing: str, place: str) -> None:
        """It is there now. Raises OSError where the file cannot be written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps([self._uuid, thing, place]) + "\n"
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}" if self._unfinished else line)
        self._unfinished = False
        self._given[thing] = place


def _lines(text: str, study_uuid: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        try:
            uuid, thing, place = json.loads(line)
        except (ValueError, TypeError):
            continue
        if uuid == study_uuid:  # a study of the same name may have been deleted
            yield str(thing), str(place)
