"""Sweeps whose dashboard is looked at: through its HTTP API, as a browser asks it."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeping import prepare, run_inline

from sweep.config import SweepConfig
from sweep.dashboard.files import FOLDER
from sweep.dashboard.server import application, open_storage, serve
from sweep.driver import SweepDriver
from sweep.observers import Observer, Observers
from sweep.observers.dashboard import Dashboard
from sweep.observers.files import Files
from trials.contract import Outcome, Report, Sample, TrialConfig, TrialResult

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> ![i](http://evil.example/i.png) "
    "[l](javascript:alert(3)) | cell `code ``` \n```\n# head\n\x1b[31m\x00\u202eabc "
    "$x$ \U0001f600 \u0645\u0631\u062d\u0628\u0627 \ufffd https://evil.example " + "long" * 3000
)


def swept(config: SweepConfig, *more: Observer) -> list[str]:
    """Runs a sweep as a user would, and returns what its dashboard complained of."""
    notes: list[str] = []
    observers = [*more, Files(), Dashboard(notes.append)]
    run_inline(config, Observers(observers, note=notes.append))
    return notes


@dataclass
class Client:
    """Asks a running dashboard."""

    address: str

    def get(self, path: str) -> tuple[bytes, dict[str, str]]:
        """The body and the headers of an answer."""
        with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as answer:
            return answer.read(), dict(answer.headers)

    def study(self, name: str) -> dict[str, Any]:
        """All that the dashboard shows of a study."""
        summaries = json.loads(self.get("/api/studies")[0])["study_summaries"]
        [number] = [s["study_id"] for s in summaries if s["study_name"] == name]
        return {"id": number, **json.loads(self.get(f"/api/studies/{number}")[0])}

    def artifacts(self, study: dict[str, Any], number: int) -> dict[str, str]:
        """The addresses of a trial's artifacts by their names."""
        trial = study["trials"][number]
        return {a["filename"]: f"/artifacts/{study['id']}/{trial['trial_id']}/{a['artifact_id']}"
                for a in trial["artifacts"]}  # fmt: skip


@contextmanager
def dashboard(storage: str, folders: Sequence[Path]) -> Iterator[Client]:
    """A dashboard on a port that is free."""
    opened = open_storage(storage)
    with serve(application(opened, folders), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Client(server.address)
        finally:
            server.shutdown()
            thread.join()
            opened.remove_session()
            opened.engine.dispose()


def served(config: SweepConfig) -> Any:
    """The dashboard of a sweep's own database and artifacts."""
    return dashboard(config.storage, [config.results_dir / FOLDER])


def hostile_sweep(config: SweepConfig) -> list[str]:
    """Two trials, one complete and one failed, whose every text is hostile."""
    notes: list[str] = []
    observers = Observers([Files(), Dashboard(notes.append)], note=notes.append)
    driver = SweepDriver(config, observers)
    link = driver.connect("w0")
    found = prepare(config, link)
    texts = tuple(Sample(prompt=f"{k}{HOSTILE}", reference=HOSTILE, generated=HOSTILE)
                  for k in range(2))  # fmt: skip
    link.prepared(replace(found, baseline_samples=texts))
    for outcome in (Outcome.COMPLETE, Outcome.FAILED):
        trial = link.next_trial()
        assert isinstance(trial, TrialConfig)
        for tick in range(1, 1 + trial.budget.ticks):
            link.report(Report(trial=trial.number, attempt=0, tick=tick, eval_loss=1.0 / tick,
                               examples=240 * tick, tokens=tick, seconds=1.0))  # fmt: skip
        reason = HOSTILE if outcome is Outcome.FAILED else None
        link.finish(TrialResult(trial=trial.number, attempt=0, outcome=outcome, eval_loss=0.2,
                                ticks=5, reason=reason, samples=texts, worker=HOSTILE[:200]))
    driver.close()
    return notes
