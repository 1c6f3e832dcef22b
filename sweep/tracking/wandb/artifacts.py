"""Artifacts at W&B: what the trials were trained on, and the adapters that came out.

Of the data only a description goes there, unless `tracking.upload_data=true`; its content hash is
part of it, so that other data is another version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sweep.secrets import masked
from sweep.store import TrialRecord
from sweep.tracking.facts import Study, Trial
from sweep.tracking.wandb.runs import LiveRun
from trials.worker import ARTIFACT

ALIAS = 12  # characters of the content hash in a version's alias
NAME_LIMIT = 120  # the service's limit is 128
DESCRIPTION = "description.yaml"  # JSON is YAML; a reader of rows takes it for none


class DataSet:
    """The data of a study: an Artifact that its baseline logs and its trials use."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._path = study.setup.data.path or ""

    def log(self, live: LiveRun) -> None:
        """Logs it, as a version by content hash; data from W&B is there, and used instead."""
        if self._path.startswith(ARTIFACT):
            self.use(live)
            return
        digest = self._study.setup.data_facts.content_hash
        live.run.log_artifact(self._described(), aliases=["latest", digest[:ALIAS]])

    def use(self, live: LiveRun) -> None:
        """Says that a run trains on it."""
        if not self._path.startswith(ARTIFACT):
            # What `use_artifact` does with a new Artifact, without waiting for the upload, and
            # offline too: the server joins equal ones.
            live.run._log_artifact(self._described(), is_user_created=True, use_after_commit=True)
        elif not live.run.offline:  # offline the client cannot
            live.run.use_artifact(self._path.removeprefix(ARTIFACT))

    def _described(self) -> Any:
        import wandb

        facts = data_facts(self._study)
        name = _name(Path(self._path).name or self._study.setup.data.format)
        artifact = wandb.Artifact(name, type="dataset", metadata=facts)
        with artifact.new_file(DESCRIPTION) as file:
            file.write(json.dumps(facts, indent=2, sort_keys=True))
        if self._study.options.get("upload_data"):
            _add_files(artifact, Path(self._path))
        return artifact


def data_facts(study: Study) -> dict[str, Any]:
    """What identifies the data, without a row of it, and without where it lies on this machine."""
    data, found = study.setup.data, study.setup.data_facts
    path = data.path and (Path(data.path).name if Path(data.path).is_absolute() else data.path)
    return {
        "content_hash": found.content_hash,
        "format": data.format,
        "path": path and masked(path),
        "name": data.name,
        "revision": data.revision,
        "split": data.split,
        "columns": found.columns,
        "train_examples": found.train_examples,
        "eval_examples": found.eval_examples,
    }


def kept(study: Study, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials whose adapters are on disk, in the study's own folder: no other is uploaded."""
    own = (study.folder / "adapters").resolve()
    folders = ((record, Path(record.adapter)) for record in records if record.adapter)
    return [r for r, path in folders if path.is_dir() and path.resolve().parent == own]


def log_adapter(study: Study, live: LiveRun, trial: Trial, best: bool) -> None:
    """Logs a trial's adapter as a version of the study's model."""
    import wandb

    model = study.setup.model
    metadata = {
        "trial": trial.number,
        "base": model.name,
        "base_revision": model.revision,
        "quantisation": model.quantisation,
        "eval_loss": trial.record.eval_loss,
        "baseline_loss": trial.baseline_loss,
        **trial.params(),
    }
    artifact = wandb.Artifact(_name(f"{study.record.study}-adapter"), "model", metadata=metadata)
    artifact.add_dir(str(trial.record.adapter), policy="immutable")  # not copied
    aliases = [f"trial-{trial.number}", *(["best"] if best else [])]
    live.run.log_artifact(artifact, aliases=aliases)


def _add_files(artifact: Any, path: Path) -> None:
    if path.is_dir():
        artifact.add_dir(str(path), policy="immutable")
    elif path.is_file():
        artifact.add_file(str(path), policy="immutable")


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:NAME_LIMIT]
