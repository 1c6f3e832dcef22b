"""The report in a real headless Chromium: drawn, silent, brushable, harmless, on a phone too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reported
from browsing import browser, complaints
from test_report_pages import hostile

from sweep.report.figures import FIGURES
from sweep.report.studies import write_reports

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usual")
    url = reported.write(folder, reported.plan(30))
    return write_reports(["study"], url, folder)[0]


@pytest.fixture(scope="module")
def desktop(chromium: Any, usual: Path) -> Iterator[Opened]:
    """The report as it is first seen; each test leaves it quiet."""
    with Opened(chromium, usual, color_scheme="light") as opened:
        yield opened


class Opened:
    """A page in a context of its own, with all that it complained of or asked for."""

    def __init__(self, chromium: Any, path: Path, **options: Any) -> None:
        self.context = chromium.new_context(**(DESKTOP | options))
        self.context.set_default_timeout(180_000)  # a busy machine draws slowly
        self.page = self.context.new_page()
        self.said = complaints(self.page)
        self.page.on("console", lambda message: self._warned(message))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.wait_for_function("document.documentElement.dataset.drawn === 'yes'")

    def _warned(self, message: Any) -> None:
        if message.type == "warning" and "GPU stall" not in message.text:
            self.said.append(f"warning: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.said.append(f"request: {url}")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def fits(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def _drawn(page: Any) -> list[str]:
    found = f"[...document.querySelectorAll('.figure[data-drawn=yes]')]{HAVING}.map(f => f.id)"
    return [name.removeprefix("figure-") for name in page.evaluate(found)]


HAVING = ".filter(f => f.querySelector('.main-svg, .parcoords'))"


def test_every_figure_is_drawn_without_a_word(desktop: Opened) -> None:
    assert sorted(_drawn(desktop.page)) == sorted(FIGURES)
    assert desktop.fits()
    assert desktop.said == []


def test_axes_can_be_brushed(desktop: Opened) -> None:
    page, figure = desktop.page, desktop.page.locator("#figure-parallel_coordinates")
    figure.scroll_into_view_if_needed()
    before = figure.screenshot()
    axis = figure.locator(".axis-brush .background").nth(1).bounding_box()
    middle = axis["x"] + axis["width"] / 2
    page.mouse.move(middle, axis["y"] + axis["height"] * 0.75)
    page.mouse.down()
    page.mouse.move(middle, axis["y"] + axis["height"] * 0.3, steps=8)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#figure-parallel_coordinates')"
                           ".data[0].dimensions[1].constraintrange")  # fmt: skip
    kept = figure.evaluate("element => element.data[0].dimensions[1].constraintrange")
    assert len(kept) == 2 and -5 < kept[0] < kept[1] < -2
    assert figure.screenshot() != before
    assert desktop.said == []


def test_tables_can_be_sorted(desktop: Opened) -> None:
    table = desktop.page.locator("#leaderboard table").first
    table.locator("th", has_text="trial").click()
    numbers = [int(text) for text in table.locator("tbody td:nth-child(2)").all_inner_texts()]
    assert numbers == sorted(numbers) and len(numbers) == 20
    assert desktop.said == []


def test_the_theme_is_followed(desktop: Opened) -> None:
    colour = "document.querySelector('#figure-cost').layout.template.layout.font.color"
    light = desktop.page.evaluate(colour)
    desktop.page.emulate_media(color_scheme="dark")
    desktop.page.wait_for_function(f"{colour} !== '{light}'")
    paper = desktop.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(18, 21, 27)"
    assert desktop.said == []


def test_on_a_phone_panels_stand_below_each_other(chromium: Any, usual: Path) -> None:
    domain = "document.querySelector('#figure-cost').layout.xaxis2.domain"
    with Opened(chromium, usual, color_scheme="dark", **PHONE) as phone:
        assert sorted(_drawn(phone.page)) == sorted(FIGURES)
        assert phone.page.evaluate(domain) == [0, 1]
        assert phone.fits()
        assert phone.said == []


def test_without_javascript_the_tables_are_there(chromium: Any, usual: Path) -> None:
    with Opened(chromium, usual, java_script_enabled=False) as opened:
        assert opened.page.locator("#leaderboard tbody tr").count() == 30
        assert opened.page.locator("#importance tbody tr").count() == 4
        assert opened.page.locator(".figure", has_text="needs JavaScript").count() == len(FIGURES)


def test_hostile_texts_do_no_harm(chromium: Any, tmp_path: Path) -> None:
    url = hostile(tmp_path)
    names = [frames.study.study for frames in reported.read_studies([], url)]
    one = write_reports(names[:1], url, tmp_path, tmp_path / "one.html")[0]
    both = write_reports(names, url, tmp_path, tmp_path / "both.html")[0]
    for path, device in ((one, DESKTOP), (both, PHONE)):
        with Opened(chromium, path, **device) as opened:
            assert opened.said == []
            assert "pwned" not in opened.page.title()
            assert opened.fits()
            assert opened.page.locator("article img, article a, td img, td b").count() == 0
            assert opened.page.locator(".figure a, .figure foreignObject").count() == 0
            assert opened.page.locator("section").first.is_visible()


@pytest.mark.slow
def test_two_thousand_trials_are_drawn(chromium: Any, tmp_path: Path) -> None:
    url = reported.write(tmp_path, reported.plan(2000))
    with Opened(chromium, write_reports(["study"], url, tmp_path)[0]) as opened:
        assert sorted(_drawn(opened.page)) == sorted(FIGURES)
        assert opened.said == []
