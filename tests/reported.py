"""Studies for the report's tests: a simulated sweep, and databases filled by hand in one go."""

from __future__ import annotations

import html.parser
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import optuna
import staged
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)

from sweep.report.frames import StudyFrames
from sweep.report.studies import read_studies
from sweep.store import Store, StudyRecord, schema
from sweep.study import ATTRIBUTE
from trials.contract import Sample, to_json

TICKS = 5
BASELINE = 2.0
BEGAN = 1_700_000_000.0
SPACE: Mapping[str, BaseDistribution] = {
    "lora.r": CategoricalDistribution([4, 8, 16, 32]),
    "train.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "train.scheduler": CategoricalDistribution(["constant", "linear"]),
    "train.warmup": FloatDistribution(0.0, 0.2),  # with a linear schedule only
}
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "</script><img src=x onerror=\"document.title='pwned'\">",
    "<b>bold</b> <a href='http://evil.example'>link</a> & &amp; %{x} ${1+1} {{7*7}}",
    "\u202egnp.exe \u2066\u202e\u2069 עברית والعربية",
    "👩‍🚀🏳️‍🌈 " * 5,
    "long" * 2500,
    "\x1b[31mred\x1b[0m\x00\x07\ufffe",
    "]]> --> <!-- <style>*{display:none}</style>",
)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One trial; its losses are those of ticks 1, 2, ..."""

    outcome: str = "complete"
    losses: Sequence[float] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    worker: str = "w0"
    samples: Sequence[Sample] = ()


def curve(params: Mapping[str, Any], noise: float = 0.0) -> list[float]:
    """Losses that only the learning rate decides, best at 1e-3."""
    away = math.log10(params["train.learning_rate"]) + 3
    return [BASELINE - 0.25 * tick + 0.15 * tick * abs(away) / 2 + noise for tick in range(1, 6)]


def proposals(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random points of `SPACE`, warm-up only where it is searched."""
    random = Random(seed)
    found = []
    for _ in range(n):
        params = {
            "lora.r": random.choice([4, 8, 16, 32]),
            "train.learning_rate": 10 ** random.uniform(-5, -2),
            "train.scheduler": random.choice(["constant", "linear"]),
        }
        if params["train.scheduler"] == "linear":
            params["train.warmup"] = random.uniform(0, 0.2)
        found.append(params)
    return found


def plan(n: int, seed: int = 0) -> list[Planned]:
    """A sweep in which about half of the trials are pruned at tick 2."""
    random, trials = Random(seed), []
    for k, params in enumerate(proposals(n, seed)):
        losses = curve(params, random.gauss(0, 0.01))
        pruned = losses[1] > 1.6
        why = f"pruned at tick 2 of 5: loss {losses[1]:.4g} is not in the best half of {k} trials"
        trials.append(
            Planned(
                outcome="pruned" if pruned else "complete",
                losses=losses[:2] if pruned else losses,
                params=params,
                reason=why if pruned else None,
                worker=f"w{k % 2}",
            )
        )
    return trials


def write(
    folder: Path,
    trials: Sequence[Planned],
    *,
    name: str = "study",
    space: Mapping[str, BaseDistribution] = SPACE,
    baseline: float = BASELINE,
    base_samples: Sequence[Sample] = (),
    text: str = "demo",
) -> str:
    """A database with one more study, ours and Optuna's tables; its URL. `text` names things."""
    url = f"sqlite:///{folder / 'sweep.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sweep.db").exists():
        (folder / "sweep.db").write_bytes(_empty())
    config = staged.config(folder)
    store = Store(url, create=True)
    uuid = f"uuid-{name}"[:36]
    setup = staged.setup(config, baseline_samples=tuple(base_samples))
    store.open_study(_record(name, uuid, trials, space, baseline, text, folder), setup)
    rows = _rows(uuid, trials)
    with store.engine.begin() as db:
        for table, many in rows.items():
            if many:
                db.execute(getattr(schema, table).insert(), many)
    store.close()
    _in_optuna(url, name, uuid, space, text)
    return url


@cache
def _empty() -> bytes:
    """A database with Optuna's tables and ours: making them takes most of the time of a test."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/empty.db"
        Store(url, create=True).close()
        storage = optuna.storages.RDBStorage(url)
        storage.remove_session()
        storage.engine.dispose()
        return Path(folder, "empty.db").read_bytes()


def frames(folder: Path, trials: Sequence[Planned], **options: Any) -> StudyFrames:
    """What the report reads of such a study."""
    url = write(folder, trials, **options)
    return read_studies([options.get("name", "study")], url)[0]


def _record(
    name: str, uuid: str, trials: Sequence[Planned], space: Mapping[str, Any], baseline: float,
    text: str, folder: Path,
) -> StudyRecord:  # fmt: skip
    return StudyRecord(
        study=name, uuid=uuid, n_trials=len(trials), ticks=TICKS, first_rung=2,
        baseline_loss=baseline, baseline_accuracy=0.1, model=text, data=text, device=text,
        dimensions=tuple(space), results_dir=str(folder), started_at=BEGAN, seconds=75.0,
        versions={"python": "3.11"},
    )  # fmt: skip


def _rows(uuid: str, trials: Sequence[Planned]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"trials": [], "ticks": [], "samples": []}
    for number, planned in enumerate(trials):
        key = {"study_uuid": uuid, "number": number, "attempt": 0}
        started = BEGAN + 10 * number
        ended = None if planned.outcome == "running" else started + 10 * len(planned.losses) + 1
        shared = {"tokens": 100, "eval_seconds": 0.1, "sample_seconds": 0.0,
                  "memory_bytes": 2**20 * (number % 7 + 1), "utilisation": 0.5,
                  "worker": planned.worker, "eval_accuracy": 0.5}  # fmt: skip
        losses = [loss if math.isfinite(loss) else None for loss in planned.losses]
        rows["trials"].append({
            **key, **shared, "outcome": planned.outcome, "reason": planned.reason,
            "params": json.dumps(dict(planned.params)), "eval_loss": losses[-1] if losses else None,
            "first_rung_loss": losses[1] if len(losses) > 1 else None, "ticks": len(losses),
            "examples": 40 * len(losses), "seconds": 2.0 * len(losses) + number % 5,
            "trainable_parameters": 1000 * (number % 4 + 1), "adapter": None,
            "started_at": started, "finished_at": ended, "device": "cpu", "versions": "{}",
            "config": "{}",
        })  # fmt: skip
        rows["ticks"] += [
            {**key, **shared, "tick": tick, "eval_loss": loss, "examples": 40 * tick,
             "seconds": 2.0 * tick, "slot": 0, "reported_at": started + 10 * tick}
            for tick, loss in enumerate(losses, 1)
        ]  # fmt: skip
        if planned.samples:
            written = to_json(tuple(planned.samples))
            rows["samples"].append({**key, "tick": len(losses), "samples": written})
    return rows


def _in_optuna(
    url: str, name: str, uuid: str, space: Mapping[str, BaseDistribution], text: str
) -> None:
    facts: dict[str, Any] = {
        dimension: [{"distribution": json.loads(distribution_to_json(found))}, f"'{dimension}'"]
        for dimension, found in space.items()
    }
    facts |= {"budget.examples": [200, "200"], "model.name": [text, text]}
    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(study_name=name, storage=storage)
    known = {"uuid": uuid, "facts": facts}
    storage.set_study_system_attr(study._study_id, ATTRIBUTE, known)
    study.set_user_attr("pruner", "asha")
    study.set_user_attr("command", f"python -m sweep +search={name}")
    storage.remove_session()
    storage.engine.dispose()


class Cells(html.parser.HTMLParser):
    """The rows of the leaderboards: each cell's exact value, or its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._table = self._cell = False
        self.feed(page.partition("<script")[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "table":
            self._table = "leaders" in (found.get("class") or "")
        if self._table and tag == "tr":
            self.rows.append([])
        if self._table and tag == "td":
            self._cell, exact = True, found.get("data-value")
            self.rows[-1].append(exact or "")
            self._cell = exact is None

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def spec(page: str, key: str) -> dict[str, Any]:
    """A figure of a page, as the page's own script reads it."""
    found = re.search(f'<script[^>]*id="spec-{key}"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))
