"""The dashboard in a real browser: everything is drawn, nothing is complained of, no text runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, complaints
from dashing import Client, hostile_sweep, served, swept
from sweeping import sweep_config

from sweep.config import SweepConfig
from sweep.report.figures import FIGURES

SIZE = {"width": 1280, "height": 2400}  # pixels; its pages scroll inside themselves


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    found = sweep_config(tmp_path_factory.mktemp("seen"), "n_trials=10")
    assert swept(found) == []
    return found


@pytest.fixture(scope="module")
def client(config: SweepConfig) -> Iterator[Client]:
    with served(config) as found:
        yield found


def opened(chromium: Any, client: Client, path: str) -> tuple[Any, list[str]]:
    """A page of the dashboard once it has settled, and what goes wrong on it."""
    page = chromium.new_page(viewport=SIZE)
    page.set_default_timeout(60_000)
    said = complaints(page)
    page.goto(f"{client.address}/dashboard{path}", wait_until="networkidle")
    return page, said


def test_the_list_leads_to_a_study_with_its_graphs(chromium: Any, client: Client) -> None:
    best = client.study("test")["best_trials"][0]["number"]
    page, said = opened(chromium, client, "")
    page.get_by_text("test", exact=False).first.click()
    page.get_by_text(f"Best Trial (number={best})").wait_for()
    for name in FIGURES:
        graph = page.locator(f"[id='user-defined-plot:sweep_{name}'] .main-svg").first
        graph.wait_for(state="attached")
    assert said == []
    page.close()


def test_a_studys_note(chromium: Any, client: Client) -> None:
    page, said = opened(chromium, client, "/studies/1/note")
    page.get_by_text("What is searched").wait_for()
    assert page.get_by_role("table").count() == 3
    assert "untouched base" in page.inner_text("body")
    assert said == []
    page.close()


def test_a_trial_with_its_note_and_artifacts(chromium: Any, client: Client) -> None:
    best = client.study("test")["best_trials"][0]["number"]
    page, said = opened(chromium, client, f"/studies/1/trials?numbers={best}")
    page.get_by_text("Replay it alone").wait_for()
    page.get_by_text("learning_curve.svg").wait_for()
    picture = page.locator("img[src^='/artifacts/']").first
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 100
    page.get_by_label("show artifact table").click()
    page.get_by_text("this trial").first.wait_for()
    assert said == []
    page.close()


def test_hostile_texts_do_nothing(chromium: Any, tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "n_trials=2")
    assert hostile_sweep(config) == []
    with served(config) as client:
        for path, there in (
            ("note", ["What is searched"]),
            ("trials?numbers=0,1", ["Replay it alone", "Replay it alone"]),
        ):
            page, said = opened(chromium, client, f"/studies/1/{path}")
            for place, text in enumerate(there):
                page.get_by_text(text).nth(place).wait_for()
            assert said == []
            strange = "img[src*='evil'], img[src='x'], a[href*='evil'], a[href^='javascript']"
            assert page.locator(strange).count() == 0
            page.close()
