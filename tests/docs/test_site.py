"""The documentation site builds without a warning, needs nothing from elsewhere, and shows all that it is made from."""

import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from hyps.cli import worker
from hyps.cli_manager import manager
from hyps_compiler.cli import main
from page_fixtures import ROOT

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason='needs pip install "hyps[docs]"')

MOST_BUILD_S = 60.0
"""On a busy machine; 4 to 9 s otherwise."""


class Sources(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_link = tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "alternate")
        self.found += [given["src"] or ""] if "src" in given else []
        self.found += [given["href"] or ""] if is_link and "href" in given else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    begun_s = time.monotonic()
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MOST_BUILD_S,
        env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (made.returncode, made.stderr) == (0, "")
    print(f"the site was built in {time.monotonic() - begun_s:.1f} s")  # noqa: T201  # shown with -rP
    return folder


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 30, "an empty site has nothing wrong with it"
    return found


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        sources = Sources()
        sources.feed(page.read_text())
        outside = [source for source in sources.found if re.match(r"(https?:)?//", source)]
        assert (page.name, outside) == (page.name, [])
        assert "mermaid" not in page.read_text(), f"{page.name}: the theme would fetch a script to draw it"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_every_command_and_option_has_its_place_in_the_reference(site: Path) -> None:
    commands = {"hypsc": main, "hyps-worker": worker, "hyps-manager": manager}
    for name, command in commands.items():
        text = (site / f"reference/{name}.html").read_text()
        below = command.commands if isinstance(command, click.Group) else {"": command}
        for title, one in below.items():
            assert f"{name} {title}".strip() in text
            own = [param.opts[-1] for param in one.params if isinstance(param, click.Option)]
            standard = ("--verbose", "--quiet", "--debug", "--version")
            missing = [option for option in own if option not in standard and option not in text]
            assert (title, missing) == (title, [])
        assert "\b" not in text


@pytest.mark.parametrize(("page", "words"), [
    ("plan", ["StreamedWeight", "peak_memory_bytes", "Partition id to device name."]),
    ("plan", ["map of name to", "list of integer, or string, or null, or null"]),
    ("profile", ["LayerProfile", "BorderProfile", "TimeModel"]),
    ("status", ["NodeStatus", "PartitionStatus", "Report"]),
    ("api", ["InferenceSession", "run_many", "AsyncSession", "hyps_compiler.compile", "BusyError", "was_accepted"]),
    ("errors", ["E_INFEASIBLE", "E_TAMPERED"]),
])  # fmt: skip
def test_reference_pages_hold_what_they_are_made_from(site: Path, page: str, words: list[str]) -> None:
    text = (site / f"reference/{page}.html").read_text()
    assert [word for word in words if word not in text] == []
    assert "<!-- fields" not in text


def test_the_navigation_leads_to_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    led_to = re.findall(r"[\w/-]+\.md$", navigation, re.MULTILINE)
    there = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(led_to) == sorted(there)


def test_state_diagrams_are_tables(site: Path) -> None:
    text = (site / "lifecycles.html").read_text()
    assert "<td>begins</td>" in text
    assert text.count("<table>") == (ROOT / "docs/lifecycles.md").read_text().count("```mermaid")


def test_the_diagram_and_the_search_index_are_there(site: Path) -> None:
    assert "prefers-color-scheme: dark" in (site / "assets/architecture.svg").read_text()
    assert "natural bottleneck" in (site / "search/search_index.json").read_text()
