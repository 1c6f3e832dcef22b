"""The page: one file that holds everything, opens from disk, and can reach no network.

plotly.js is in it once. The content security policy lets only the page's own two scripts run, by
their hashes, and forbids every connection; 'unsafe-eval' is what WebGL traces need to compile
their drawing code.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from sweep.report.frames import StudyFrames
from sweep.report.lead import lead
from sweep.report.markup import Html, el, join, text
from sweep.report.sections import Section, sections
from sweep.results import leaderboard, wording
from sweep.results.recipe import replace

LONGEST = 100  # characters of a name at the top; its middle goes


def write_report(frames: StudyFrames, target: Path) -> Path:
    """Writes a study's report in place of an earlier one."""
    return write_page(report(frames), target)


def write_page(page: Html, target: Path) -> Path:
    """Writes a page aside, then renames it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, page)
    return target


def report(frames: StudyFrames) -> Html:
    """A study's whole page."""
    study = frames.study
    head = el(
        "header",
        el("p", "Sweep report", class_="eyebrow"),
        el("h1", wording.clean(study.study, limit=LONGEST), dir="auto"),
        el("p", _status(frames), class_="sub"),
        lead(frames),
        class_="top",
    )
    return page(wording.clean(study.study, limit=LONGEST), head, sections(frames))


def page(title: str, head: Html, parts: Sequence[Section]) -> Html:
    """A whole document of a head and sections."""
    links = [el("li", el("a", part.link, href=f"#{part.key}")) for part in parts]
    body = [
        el("section", el("h2", part.title), part.body, id=part.key, data_section=part.key)
        for part in parts
    ]
    specs = {key: spec for part in parts for key, spec in part.specs.items()}
    scripts = [_plotly(), _asset("page.js")] if specs else []
    whole = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="referrer", content="no-referrer"),
            el("title", f"{title} · sweep"),
            el("style", Html(_asset("page.css"))),
        ),
        el(
            "body",
            head,
            el("nav", el("ul", *links), aria_label="Sections"),
            el("main", *body),
            el("footer", f"Written {datetime.now():%Y-%m-%d %H:%M} by sweep. "
                         "Everything is in this file."),
            *(el("script", _data(spec), type="application/json", id=f"spec-{key}")
              for key, spec in specs.items()),
            *(el("script", Html(script)) for script in scripts),
        ),
        lang="en",
    )  # fmt: skip
    return join([Html("<!doctype html>\n"), whole])


def _status(frames: StudyFrames) -> Html:
    """What was trained on what, and whether it still is."""
    study = frames.study
    done = sum(leaderboard.counts_towards_total(r) for r in frames.records)
    running = sum(r.outcome == "running" for r in frames.records)
    model, data, device = (
        wording.clean(name, limit=LONGEST) for name in (study.model, study.data, study.device)
    )
    about = f"{model} on {data}, {device}"
    if frames.alive:
        state = f"running: {done} of {study.n_trials} trials done, {running} under way"
        return join([el("span", class_="live"), f"{about} · {state}, at {_clock(frames.at)}"])
    left = "" if done >= study.n_trials else f", of {study.n_trials}"
    return text(f"{about} · {wording.plural(done, 'trial')}{left} · {_clock(study.started_at)}")


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def _policy(scripts: Sequence[str]) -> str:
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    ]
    rules = {
        "default-src": "'none'",
        "script-src": " ".join([*hashes, "'unsafe-eval'"]) if scripts else "'none'",
        "style-src": "'unsafe-inline'",  # plotly sets styles
        "img-src": "data: blob:",  # a figure saved as a picture
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _data(spec: str) -> Html:
    """JSON within a script element: nothing in it can end the element."""
    json.loads(spec)
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        spec = spec.replace(character, code)
    return Html(spec)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _asset(name: str) -> str:
    return files("sweep.report").joinpath(name).read_text(encoding="utf-8")
