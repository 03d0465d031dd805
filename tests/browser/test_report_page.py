"""Reports in a real browser: drawn, searched, dragged, zoomed, read by keyboard, on a phone, without the network."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from hyps.formats.quantities import format_count, format_nbytes, format_seconds
from hyps_compiler.cli_report import report as command
from hyps_compiler.report.gather import gather
from hyps_compiler.report.page import page_of
from hyps_compiler.report.sources import Sources
from report_fixtures import HOSTILE, chain, small_model, write_cluster, write_profile

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.browser

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
SECTIONS = ("summary", "partitions", "layers", "splits", "memory", "schedule", "load_map")
CONTRAST = Path(__file__).with_name("contrast.js")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Reader:
    """A page, and what it asked for or complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.route("**/*", self._only_the_file)
        self.address = path.as_uri()
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)

    def _only_the_file(self, route: Any) -> None:
        if route.request.url.split("#")[0] == self.address:
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def box(self, selector: str) -> dict[str, float]:
        """Return where the first such element is."""
        self.settle()
        found: dict[str, float] = self.page.evaluate(
            "(selector) => { const b = document.querySelector(selector).getBoundingClientRect();"
            " return { x: b.x, y: b.y, width: b.width, height: b.height }; }",
            selector,
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no Chromium is on the path: {', '.join(NAMES)}")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, made by the commands that users give."""
    import hyps_compiler

    folder = tmp_path_factory.mktemp("full")
    model = small_model(folder / "small.onnx")
    cluster, profile = write_cluster(folder / "cluster.toml"), write_profile(folder / "profile.json", model)
    hyps_compiler.compile(model, folder / "plan", cluster=cluster, profile=profile, verify=False)
    words = [str(folder / "plan"), "-o", str(folder / "report.html"), "--model", str(model), "--profile", str(profile)]
    result = CliRunner().invoke(command, [*words, "--cluster", str(cluster)], standalone_mode=False)
    assert result.exception is None
    return folder / "report.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a thousand partitions, one of them with a hostile name."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    plan = chain(1000, shards=12, memory_bytes=54_200_000, hostile=HOSTILE)
    path.write_bytes(page_of(gather(Sources(plan), lambda _: None)))
    return path


@pytest.fixture(scope="module")
def reader(browser: Any, full: Path) -> Iterator[Reader]:
    found = Reader(browser, full, viewport=WIDE, color_scheme="light")
    yield found
    found.context.close()


@pytest.fixture(scope="module")
def crowd(browser: Any, large: Path) -> Iterator[Reader]:
    found = Reader(browser, large, viewport={"width": 1280, "height": 1500}, color_scheme="light")
    yield found
    found.context.close()


def test_every_section_is_there_and_drawn(reader: Reader) -> None:
    picture = Image.open(io.BytesIO(reader.page.screenshot(full_page=True))).convert("RGB")
    for name in SECTIONS:
        section = reader.page.locator(f"#{name}")
        assert section.is_visible()
        assert section.locator(".missing").count() == 0
        box = reader.box(f"#{name}")
        part = picture.crop((int(box["x"]), int(box["y"]), int(box["x"] + box["width"]), int(box["y"] + box["height"])))
        colours = part.getcolors(2**24)
        assert colours is not None
        assert len(colours) > 20, name
    assert reader.page.locator("figure svg").count() >= 4
    assert reader.page.locator("#load_map td").count() == 48


def test_it_asks_for_nothing_and_complains_of_nothing(reader: Reader, crowd: Reader) -> None:
    assert reader.asked == crowd.asked == []
    assert reader.said == crowd.said == []


def test_hostile_names_are_text(crowd: Reader) -> None:
    assert crowd.page.evaluate("window.pwned === undefined && document.images.length === 0")
    assert HOSTILE in crowd.page.locator("h1").inner_text()


def test_figures_are_written_as_on_the_command_line(reader: Reader, full: Path) -> None:
    script = full.read_text().partition("'use strict';")[2].partition("// Elements.")[0]
    values = [0, 1, 64, 999, 999.6, 1000, 12345, 99_949, 99_951, 553_430_000, 25_700_000, 9_995_000_000, 3.2e12, 4e15]
    times = [1e-7, 3.21e-6, 0.00099951, 0.001, 0.01234, 0.5, 0.99951, 1.0, 12.345, 75.2, 99.96, 1234.6]
    told = reader.page.evaluate(
        f"([values, times]) => {{ {script}; return [values.map(bytes), values.map(count), times.map(seconds)]; }}",
        [values, times],
    )
    assert told[0] == [format_nbytes(value) for value in values]
    assert told[1] == [format_count(value) for value in values]
    assert told[2] == [format_seconds(value) for value in times]


def test_searching_marks_hits_and_centres_the_first(crowd: Reader) -> None:
    crowd.page.fill("#find", "blocks.777.conv")
    canvas, node = crowd.box(".canvas"), crowd.box(".node.chosen")
    assert crowd.page.locator(".node.hit").count() == 1
    assert "p777" in crowd.page.locator(".found").inner_text()
    assert abs(node["x"] + node["width"] / 2 - canvas["x"] - canvas["width"] / 2) < 8
    assert abs(node["y"] + node["height"] / 2 - canvas["y"] - canvas["height"] / 2) < 8
    assert crowd.page.locator(".panel h3").inner_text() == "p777"
    crowd.page.fill("#find", "wide[")
    assert "1 of 12 hits" in crowd.page.locator(".found").inner_text()
    crowd.page.press("#find", "Enter")
    assert "2 of 12 hits" in crowd.page.locator(".found").inner_text()
    crowd.page.fill("#find", "no such layer")
    assert crowd.page.locator(".found").inner_text() == "nothing is called so"
    crowd.page.fill("#find", "")


def test_dragging_moves_the_picture(crowd: Reader) -> None:
    crowd.page.fill("#find", "p500")
    before, canvas = crowd.box(".node.chosen"), crowd.box(".canvas")
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2 + 60
    crowd.page.mouse.move(x, y)
    crowd.page.mouse.down()
    crowd.page.mouse.move(x + 90, y + 40, steps=4)
    crowd.page.mouse.up()
    after = crowd.box(".node.chosen")
    assert after["x"] - before["x"] == pytest.approx(90, abs=4)
    assert after["y"] - before["y"] == pytest.approx(40, abs=4)


def test_wheel_buttons_and_keys_zoom_and_only_what_is_seen_is_drawn(crowd: Reader) -> None:
    crowd.page.get_by_role("button", name="Show all").click()
    small = crowd.box(".node.chosen")["width"]
    crowd.page.fill("#find", "p600")
    near = crowd.box(".node.chosen")["width"]
    assert near > 3 * small
    assert crowd.page.locator(".node").count() < 120
    crowd.page.get_by_role("button", name="Zoom in").click()
    assert crowd.box(".node.chosen")["width"] > near * 1.3
    crowd.page.locator(".canvas").focus()
    crowd.page.keyboard.press("-")
    crowd.page.keyboard.press("-")
    assert crowd.box(".node.chosen")["width"] < near
    canvas = crowd.box(".canvas")
    crowd.page.mouse.move(canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2)
    before = crowd.box(".node.chosen")["width"]
    crowd.page.mouse.wheel(0, -120)
    crowd.page.wait_for_function(
        "(width) => document.querySelector('.node.chosen').getBoundingClientRect().width > width * 1.1", arg=before
    )
    crowd.page.locator(".canvas").focus()
    crowd.page.keyboard.press("0")
    assert crowd.box(".node.chosen")["width"] == pytest.approx(small, rel=0.05)
    assert crowd.page.locator(".node").count() == 1013 + 1


def test_keys_go_from_partition_to_partition(crowd: Reader) -> None:
    crowd.page.fill("#find", "p010")
    crowd.settle()
    crowd.page.locator(".node.chosen").focus()
    crowd.page.keyboard.press("ArrowDown")
    crowd.settle()
    assert crowd.page.locator(".panel h3").inner_text() == "p011"
    assert crowd.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("partition p011")
    crowd.page.keyboard.press("End")
    crowd.settle()
    assert crowd.page.locator(".panel h3").inner_text() == "Answer"


def test_clicking_shows_details_and_leads_on(crowd: Reader) -> None:
    crowd.page.fill("#find", "p100")
    node = crowd.box(".node.chosen")
    crowd.page.fill("#find", "")
    crowd.page.mouse.click(node["x"] + node["width"] / 2, node["y"] + node["height"] / 2)
    panel = crowd.page.locator(".panel")
    assert panel.locator("h3").inner_text() == "p100"
    assert "float32 1 x 64, 256 B" in panel.inner_text()
    panel.get_by_role("button", name="Go to p099").click()
    assert panel.locator("h3").inner_text() == "p099"


def test_charts_are_read_by_keyboard_and_have_tables(reader: Reader) -> None:
    for name in ("layers", "splits", "memory", "schedule"):
        section = reader.page.locator(f"#{name}")
        section.locator(".frame").first.focus()
        reader.page.keyboard.press("ArrowRight")
        first = section.locator(".readout").first.inner_text()
        reader.page.keyboard.press("End")
        assert "·" in first
        drop = section.locator("details").last
        drop.locator("summary").click()
        drop.locator("tbody tr").first.wait_for()
        drop.locator("summary").click()


def test_the_scale_and_the_other_device_can_be_chosen(reader: Reader) -> None:
    before = reader.page.locator("#layers svg.chart").inner_html()
    reader.page.get_by_role("button", name="Linear").click()
    assert reader.page.locator("#layers svg.chart").inner_html() != before
    before = reader.page.locator("#splits .lead").inner_text()
    reader.page.locator("#splits .choice button").nth(1).click()
    assert reader.page.locator("#splits .lead").inner_text() != before
    reader.page.get_by_role("button", name="Throughput").click()
    assert "/s" in reader.page.locator("#load_map td").first.inner_text()
    reader.page.get_by_role("button", name="Latency").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_large_and_stands_out(reader: Reader, scheme: str) -> None:
    reader.page.emulate_media(color_scheme=scheme)
    found = reader.page.evaluate(CONTRAST.read_text())
    assert len(found) > 100
    assert [text for ratio, _, text in found if ratio < 4.5] == []
    assert [text for _, pixels, text in found if pixels < 14] == []
    reader.page.emulate_media(color_scheme="light")


def test_the_button_changes_the_colours(reader: Reader) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = reader.page.evaluate(ground)
    reader.page.click("#theme")
    assert reader.page.evaluate(ground) != light
    assert reader.page.locator("#theme").get_attribute("aria-pressed") == "true"
    reader.page.click("#theme")
    assert reader.page.evaluate(ground) == light


def test_a_phone_shows_all_without_scrolling_sideways(browser: Any, full: Path) -> None:
    found = Reader(browser, full, viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
    page = found.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("innerWidth") == 390
    low = page.evaluate(
        "[...document.querySelectorAll('button, input, summary, nav a')].filter((n) => n.getClientRects().length)"
        ".map((n) => [n.getBoundingClientRect().height, n.textContent]).filter(([height]) => height < 40)"
    )
    assert low == []
    page.locator(".canvas").scroll_into_view_if_needed()
    before, canvas = found.box(".node.chosen"), found.box(".canvas")
    touch(found, [(canvas["x"] + 60, canvas["y"] + 300)], [(canvas["x"] + 100, canvas["y"] + 330)])
    moved = found.box(".node.chosen")
    assert moved["x"] - before["x"] == pytest.approx(40, abs=6)
    x, y = canvas["x"] + 150, canvas["y"] + 200
    touch(found, [(x - 30, y), (x + 30, y)], [(x - 60, y), (x + 60, y)])
    assert found.box(".node.chosen")["width"] == pytest.approx(2 * moved["width"], rel=0.2)
    assert (found.asked, found.said) == ([], [])
    found.context.close()


def touch(found: Reader, start: list[tuple[float, float]], end: list[tuple[float, float]]) -> None:
    """Put fingers down, move each to its end in some steps, and lift them."""
    session = found.context.new_cdp_session(found.page)

    def send(kind: str, share: float) -> None:
        points = [
            {"x": x + (to_x - x) * share, "y": y + (to_y - y) * share, "id": index}
            for index, ((x, y), (to_x, to_y)) in enumerate(zip(start, end, strict=True))
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if kind == "touchEnd" else points})

    send("touchStart", 0.0)
    for step in range(1, 6):
        send("touchMove", step / 5)
    send("touchEnd", 1.0)


def test_the_policy_holds_in_the_browser(browser: Any, full: Path) -> None:
    found = Reader(browser, full, viewport=PHONE)
    outcome = found.page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    found.page.evaluate(
        "() => { const own = document.createElement('script'); own.textContent = 'window.pwned = 1';"
        " document.body.append(own); }"
    )
    assert outcome == "refused"
    assert found.page.evaluate("window.pwned === undefined")
    assert found.asked == []
    assert json.dumps(found.said).count("Content Security Policy") >= 2
    found.context.close()
