"""Configuration, versions, device and data of a study, and the commands to go on with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from sweep.report.frames import StudyFrames
from sweep.report.markup import Html, el, foreign
from sweep.results import summary, wording
from sweep.results.wording import plural


def surroundings(frames: StudyFrames) -> Iterator[str]:
    searched = {axis.name: axis.expression for axis in frames.axes}
    yield el("h3", "Searched")
    yield _pairs(searched.items())
    yield el("h3", "Fixed")
    fixed = {name: said for name, said in frames.facts.items() if name not in searched}
    yield _grouped(fixed) if fixed else el("p", "Not known: Optuna's tables are gone.")
    yield el("h3", "Device, versions and data")
    yield _pairs(_found(frames))
    commands = list(summary.commands(
        frames.study.study, Path(frames.study.results_dir), frames.storage, frames.best
    )) if frames.storage else []  # fmt: skip
    if commands:
        yield el("h3", "Go on with")
        yield el("ul", *(el("li", el("code", c), el("span", meaning)) for c, meaning in commands),
                 class_="commands")  # fmt: skip


def _found(frames: StudyFrames) -> Iterator[tuple[str, str]]:
    study, setup = frames.study, frames.setup
    began = datetime.fromtimestamp(study.started_at)
    yield "begun", f"{began:%Y-%m-%d %H:%M}"
    if command := frames.attributes.get("command"):
        yield "command", str(command)
    for name in ("sampler", "pruner"):
        if name in frames.attributes:
            yield name, str(frames.attributes[name])
    yield "device", study.device
    if setup:
        engine = setup.engine.name if setup.engine else frames.facts.get("engine", "")
        yield "engine", f"{engine}, {plural(setup.capacity, 'trial')} at once"
        facts, model = setup.data_facts, setup.model_facts
        if setup.device.memory_bytes:
            yield "memory of the device", wording.size(setup.device.memory_bytes)
        yield "compute dtype", setup.device.dtype
        size = wording.count(model.parameters)
        yield "base", f"{model.name}, {model.architecture}, {size} parameters"
        if model.loaded_bytes:
            yield "size when loaded", wording.size(model.loaded_bytes)
        yield "data", study.data
        yield "training examples", f"{facts.train_examples:,}"
        yield "evaluation examples", f"{facts.eval_examples:,}"
        yield "length", f"{facts.mean_length:.0f} tokens on average, {facts.max_length} at most"
        for warning in facts.warnings:
            yield "warning", warning
    for name, version in study.versions.items():
        yield name, version


def _grouped(facts: Mapping[str, str]) -> Html:
    """A small table for each group of the configuration."""
    groups: dict[str, dict[str, str]] = {}
    for name, said in facts.items():
        group, _, leaf = name.rpartition(".")
        if said != "null":
            groups.setdefault(group or "sweep", {})[leaf or name] = said
    return el("div", *(el("div", el("h4", group), _pairs(pairs.items()))
                       for group, pairs in groups.items()), class_="groups")  # fmt: skip


def _pairs(pairs: Iterable[tuple[str, str]]) -> Html:
    rows = [[el("th", name, scope="row"), el("td", foreign(said))] for name, said in pairs]
    body = el("tbody", *(el("tr", *row) for row in rows))
    return el("div", el("table", body, class_="pairs"), class_="scroll")
