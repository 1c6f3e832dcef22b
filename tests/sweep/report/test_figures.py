"""Every figure of every kind of study: it is drawn, or says in a sentence why not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import reported
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from reported import HOSTILE, Planned

from sweep.report import importance
from sweep.report.figures import FIGURES, Missing
from sweep.report.figures.cost import pareto
from sweep.report.figures.timeline import lanes
from sweep.report.frames import StudyFrames
from sweep.report.page import report


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer shuffles: that figures cope does not hang on how sure they are."""
    monkeypatch.setattr(importance, "WORK", 0)


LR = {"train.learning_rate": 1e-3, "lora.r": 8, "train.scheduler": "constant"}


def _all(outcome: str, ticks: int, n: int = 12) -> list[Planned]:
    return [
        Planned(outcome=outcome, params=p, losses=reported.curve(p)[:ticks], reason="why")
        for p in reported.proposals(n)
    ]


STUDIES: dict[str, Sequence[Planned]] = {
    "usual": reported.plan(24),
    "none": [],
    "one": [Planned(params=LR, losses=[1.0, 0.9, 0.8, 0.7, 0.6])],
    "two": [Planned(params=LR, losses=[1.0, 0.9]), Planned(params=LR, losses=[1.0, 0.8])],
    "alike": [Planned(params=LR, losses=[1.0] * 5)] * 12,
    "all pruned": _all("pruned", 2),
    "all failed": _all("failed", 0),
    "all diverged": [Planned(outcome="diverged", params=LR, losses=[math.nan])] * 12,
    "all running": _all("running", 1),
    "all stopped": _all("stopped", 3),
    "ran away": [*_all("complete", 5), Planned(params=LR, losses=[1e30] * 5)],
    "unknown outcome": [Planned(outcome="abducted", params=LR, losses=[1.0, 1.0])],
    "without parameters": [Planned(losses=[1.0, 0.9])] * 9,
}


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StudyFrames:
    return reported.frames(tmp_path_factory.mktemp("study"), STUDIES[request.param])


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_each_figure_copes_or_says_why_not(
    study: StudyFrames, draw: Callable[[StudyFrames], object]
) -> None:
    try:
        text = draw(study).to_json()  # type: ignore[attr-defined]
    except Missing as missing:
        assert str(missing).endswith(".")
    else:
        assert json.loads(text)["data"]
        assert "bdata" not in text  # older viewers cannot read packed arrays
        assert "NaN" not in text and "Infinity" not in text


def test_each_page_is_whole(study: StudyFrames) -> None:
    page = report(study)
    assert page.count("<section") == page.count("</section>") == 10
    assert page.count('class="figure"') == page.count('type="application/json"')


def test_the_usual_study_has_every_figure(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(24))
    for draw in FIGURES.values():
        draw(frames)


SPACES = {
    "one dimension": {"lora.r": CategoricalDistribution([4, 8])},
    "one choice": {"lora.r": CategoricalDistribution([4])},
    "integers": {"lora.r": IntDistribution(1, 64, log=True), "n": IntDistribution(2, 6, step=2)},
    "a point": {"x": FloatDistribution(0.5, 0.5), "y": FloatDistribution(0, 1, step=0.25)},
    "mixed choices": {"x": CategoricalDistribution([None, True, 2, "two", 0.5])},
    "hostile choices": {"x": CategoricalDistribution([*HOSTILE[:5], "y"])},
    "no dimension": {},
}
VALUES = {
    "one dimension": [{"lora.r": 4}, {"lora.r": 8}],
    "one choice": [{"lora.r": 4}],
    "integers": [{"lora.r": 3, "n": 2}, {"lora.r": 50, "n": 6}, {"lora.r": 9, "n": 4}],
    "a point": [{"x": 0.5, "y": 0.25}, {"x": 0.5, "y": 1.0}],
    "mixed choices": [{"x": None}, {"x": True}, {"x": 2}, {"x": "two"}],
    "hostile choices": [{"x": HOSTILE[0]}, {"x": HOSTILE[3]}, {"x": "y"}],
    "no dimension": [{}],
}


@pytest.mark.parametrize("kind", SPACES)
def test_every_kind_of_dimension(tmp_path: Path, kind: str) -> None:
    values = VALUES[kind] * 6
    trials = [Planned(params=p, losses=[1 + 0.01 * k] * 5) for k, p in enumerate(values)]
    page = report(reported.frames(tmp_path, trials, space=SPACES[kind]))
    assert page.count("<section") == 10
    assert "<script>document" not in page


def test_an_unknown_baseline_is_left_out(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(24), baseline=math.nan)
    for draw in FIGURES.values():
        assert "NaN" not in draw(frames).to_json()
    assert ">nan" not in report(frames).partition("<script")[0].lower()


def test_a_study_whose_half_in_optuna_is_gone(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(12))
    alone = dataclasses.replace(frames, facts={}, attributes={}, setup=None)
    assert "Not known" in report(alone)


def test_pruned_trials_are_dimmed_and_the_best_is_drawn_last(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(24))
    trace = FIGURES["parallel_coordinates"](frames).data[0]
    colours = list(trace.line.color)
    assert colours.count(0.0) == sum(r.outcome == "pruned" for r in frames.records)
    assert colours[-1] == 1.0
    assert frames.best and trace.dimensions[-1]["values"][-1] == pytest.approx(
        frames.best.eval_loss, rel=1e-5)  # fmt: skip


def test_learning_curves_say_where_and_why_trials_were_pruned(tmp_path: Path) -> None:
    fig = FIGURES["learning_curves"](reported.frames(tmp_path, reported.plan(24)))
    ends = next(trace for trace in fig.data if "why" in trace.name)
    assert all("not in the best half" in text.replace("<br>", " ") for text in ends.hovertext)
    assert any("✂" in annotation.text for annotation in fig.layout.annotations)


def test_the_front_holds_what_is_neither_cheaper_nor_better(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(24))
    front = pareto(frames.own, lambda r: r.seconds)
    complete = [r for r in frames.own if r.outcome == "complete"]
    for record in front:
        assert not any(
            other.seconds <= record.seconds and (other.eval_loss or 0) < (record.eval_loss or 0)
            for other in complete
        )
    assert frames.best in front


def test_trials_that_overlap_get_rows_of_their_own(tmp_path: Path) -> None:
    frames = reported.frames(tmp_path, reported.plan(12))  # ticks take longer than the next start
    rows = lanes(frames.attempts)
    for one in frames.attempts:
        for other in frames.attempts:
            if one is not other and rows[one.trial, 0] == rows[other.trial, 0]:
                assert one.ended_at <= other.started_at or other.ended_at <= one.started_at
    assert "w0 · slot 1" in rows.values()
