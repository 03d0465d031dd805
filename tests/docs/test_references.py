"""What pages say of the code is true: names resolve, tests exist, error codes are explained, links lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest

from page_fixtures import ROOT

PAPERS = ROOT / "docs/explanation/papers.md"
ERRORS = ROOT / "docs/reference/errors.md"
_NAME = re.compile(r"`((?:hyps|hyps_passes|hyps_compiler|hyps_models)(?:\.\w+)+)`")
_CODE = re.compile(r"[\"'](E_[A-Z_]*[A-Z])[\"']")
_FILE = re.compile(r"`((?:tests|bench|docs|compiler|passes|runtime|models)/[\w./-]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")


def resolved(name: str) -> object:
    """Return the module or attribute that a dotted name means."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", ["explanation/papers.md", "explanation/architecture.md"])
def test_every_name_in_the_code_resolves(page: str) -> None:
    names = set(_NAME.findall((ROOT / "docs" / page).read_text()))
    assert names
    for name in sorted(names):
        assert resolved(name) is not None


def test_a_name_that_is_not_there_is_noticed() -> None:
    with pytest.raises(AttributeError):
        resolved("hyps_passes.searches.split_points.gone")


def test_every_algorithm_of_the_papers_has_a_row_with_code_and_test() -> None:
    text = PAPERS.read_text()
    for paper in ("## Thesis", "## Dynamic split computing", "## ScissionLite", "## Survey"):
        assert paper in text
    for what in (
        "Algorithm 1",
        "Algorithm 2",
        "Algorithm 3",
        *(f"equation{s} {n}" for s, n in (("s", "1"), ("", "6"), ("", "7"))),
    ):
        assert what in text
    for row in re.findall(r"^\| (?!there|---)(.+?) \| (.+?) \| (.*?) ?\|$", text, re.MULTILINE):
        told, code, test = row
        assert code.startswith("not here: ") or _NAME.search(code) or _FILE.search(code), told
        assert code.startswith("not here: ") or _FILE.search(test) or "measurements" in test, told


def test_every_file_that_pages_name_is_there() -> None:
    for page in (PAPERS, ROOT / "docs/explanation/architecture.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        missing = [name for name in _FILE.findall(page.read_text()) if not (ROOT / name).exists()]
        assert (page.name, missing) == (page.name, [])


def test_every_error_code_in_the_sources_is_explained_and_no_other() -> None:
    sources = [path for wing in ("compiler", "models", "passes", "runtime") for path in (ROOT / wing).rglob("*.py")]
    raised = {code for path in sources for code in _CODE.findall(path.read_text())}
    told = set(re.findall(r"`(E_[A-Z_]+)`", ERRORS.read_text()))
    assert (sorted(raised - told), sorted(told - raised)) == ([], []), "docs/reference/errors.md lists every code"


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        for target, anchor in _LINK.findall((ROOT / page).read_text()):
            path = ROOT / target
            assert path.exists(), f"{page}: {target}"
            if anchor and path.suffix == ".md":
                assert anchor[1:] in anchors(path), f"{page}: {target}{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as both GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | {re.sub(r"-+", "-", slug) for slug in slugs}
