"""A headless Chromium for tests of pages: Debian's, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
DEADLINE_MS = 120_000  # on a busy machine a browser may take long, to start above all
# As root there is no sandbox; the others keep it from calling home.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def opened(url: str, width: int = 1200, height: int = 800) -> Iterator[Page]:
    """A page that shows `url`. In the end it must have asked no other server, and have logged no error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=DEADLINE_MS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(DEADLINE_MS)
        expect.set_options(timeout=DEADLINE_MS)
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        try:
            page.goto(url)
            yield page
            elsewhere = [each for each in asked if not each.startswith((url.split("?")[0], "data:", "blob:"))]
            assert not problems and not elsewhere
        finally:
            browser.close()
