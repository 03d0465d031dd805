"""The site in a real browser: nothing is fetched from elsewhere, nothing is wider than the screen, no script fails."""

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from page_fixtures import ROOT

CHROMIUM = Path("/usr/bin/chromium-headless-shell")
PAGES = ("index", "tutorial/keras", "reference/hypsc", "reference/plan", "reference/api", "explanation/papers", "cli")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(
        not CHROMIUM.exists() or find_spec("playwright") is None, reason=f"needs playwright, {CHROMIUM}"
    ),
    pytest.mark.skipif(find_spec("mkdocs") is None, reason='needs pip install "hyps[docs]"'),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(20)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_pages_fit_the_screen_and_stay_at_home(address: str, width: int, scheme: Any) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM))
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: failed.append(str(error)))
        for name in PAGES:
            page.goto(f"{address}/{name}.html", wait_until="networkidle")
            too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert (name, too_wide) == (name, 0)
            shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (name, shown == "rgb(255, 255, 255)") == (name, scheme == "light")
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert failed == []
        browser.close()


def test_the_search_finds_a_word(address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM))
        page = browser.new_page()
        page.goto(f"{address}/index.html", wait_until="networkidle")
        page.focus("input.md-search__input")
        page.keyboard.type("compressive bottleneck")
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        assert "bottleneck" in page.inner_text(".md-search-result__list")
        browser.close()
