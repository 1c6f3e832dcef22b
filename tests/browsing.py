"""A real browser for the tests that look at pages; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)  # fmt: skip


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield found
        finally:
            found.close()


def complaints(page: Any) -> list[str]:
    """Collects what goes wrong on a page: errors of the console and of scripts, failed requests."""
    said: list[str] = []

    def console(message: Any) -> None:
        if message.type == "error":
            said.append(f"console: {message.text}")

    def response(answer: Any) -> None:
        if answer.status >= 400:
            said.append(f"{answer.status}: {answer.url}")

    page.on("console", console)
    page.on("pageerror", lambda error: said.append(f"script: {error}"))
    page.on("response", response)
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    return said
