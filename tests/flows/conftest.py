"""Chromium, for whoever walks through the pages.

CAIR_SCREENSHOTS names a folder to keep the pictures in; else they are gone with the test.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import CHROMIUM
from tests.flows.visit import STATUS, Visit


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking", "--no-proxy-server"]
        )
        yield browser
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("CAIR_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(chromium: Browser, pictures: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    visit = Visit(chromium, pictures, **getattr(request, "param", {}))
    yield visit
    visit.context.close()
    assert [line for line in visit.complaints if not STATUS.match(line)] == []
