"""Where the dashboard keeps notes, artifacts and graphs: a study's system attributes in Optuna.

All of them belong to the study, those of trials too, so that they can be written, and an artifact
taken away, after the trial was told. The names are optuna-dashboard's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from sweep.store import servers
from sweep.store.database import engine_options, hurry

METRIC_NAMES = "study:metric_names"  # Optuna's own
OURS = "sweep:note_ver"  # the version of the study's note that is ours: a user's is higher
TABLE = sa.table("study_system_attributes", sa.column("study_id"), sa.column("key"),
                 sa.column("value_json"))  # fmt: skip


class Attributes:
    """One study's, read one by one: all of them at once are large."""

    def __init__(self, url: str, study: str) -> None:
        self.storage = RDBStorage(
            url, engine_kwargs=engine_options(url), skip_table_creation=True
        )
        hurry(self.storage.engine)
        servers.speak_of_locks(self.storage.engine)
        self.study_id = self.storage.get_study_id_from_name(study)

    def get(self, name: str) -> Any:
        """A value; None where there is none."""
        table = TABLE.c
        wanted = sa.select(table.value_json).where(
            table.study_id == self.study_id, table.key == name
        )
        with self.storage.engine.connect() as db:
            found = db.scalar(wanted)
        return None if found is None else json.loads(found)

    def set(self, name: str, value: Any) -> None:
        """Writes a value unless it stands there already."""
        if self.get(name) != value:
            self.storage.set_study_system_attr(self.study_id, name, value)

    def trial_id(self, number: int) -> int:
        """Optuna's id of a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def note(self, trial_id: int | None, body: str) -> None:
        """Writes the note of a trial, once, or of the study; one that a user has changed stays."""
        prefix = "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
        version = int(self.get(f"{prefix}note_ver") or 0)
        ours = int(self.get(OURS) or 0) if trial_id is None else 0
        if version > ours or (version and self.get(f"{prefix}note_str:0") == body):
            return
        if trial_id is None:
            self.set(OURS, version + 1)  # first: killed behind it, this is done again
        self.set(f"{prefix}note_str:0", body)
        self.set(f"{prefix}note_ver", version + 1)

    def artifact(self, trial_id: int, artifact_id: str, meta: Mapping[str, Any] | None) -> None:
        """Names a file of the artifact store as a trial's; None takes it away again."""
        name = f"dashboard:artifacts:{trial_id}:{artifact_id}"
        if meta is None and self.get(name) is None:
            return
        self.set(name, json.dumps(None if meta is None else dict(meta)))

    def close(self) -> None:
        """Gives the connections back."""
        self.storage.remove_session()
        self.storage.engine.dispose()
