"""The first requests as characters and as a picture."""

import xml.etree.ElementTree as ElementTree

from hyps_compiler.gantt import svg_gantt, text_gantt
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_plan import Conditions, plan_system
from hyps_compiler.simulation_result import Simulated
from hyps_compiler.simulation_system import Closed, Down
from simulation_fixtures import cluster, plan

SVG = "{http://www.w3.org/2000/svg}"


def simulated(requests: int = 4, conditions: Conditions | None = None) -> Simulated:
    return simulate(plan_system(plan(), cluster(), conditions or Conditions()), Closed(2), requests, traced=requests)


def test_the_chart_shows_who_is_busy_with_which_request() -> None:
    assert text_gantt(simulated(), requests=2, width=70).splitlines() == [
        "                  0                                             109 ms",
        "camera            0000000001111111111",
        "server                         000000000000000000011111111111111111111",
        "camera to server           00        11",
        "server to camera                                  0                  1",
    ]


def test_no_line_is_wider_than_it_may_be() -> None:
    for width in (60, 80, 120):
        assert all(len(line) <= width for line in text_gantt(simulated(9), 9, width).splitlines())


def test_what_a_fault_broke_off_is_an_x() -> None:
    told = simulated(1, Conditions(downs={"server": (Down(0.05, 0.1),)}))
    server = next(line for line in text_gantt(told).splitlines() if line.startswith("server "))
    assert "x" in server
    assert server.index("x") < server.rindex("0")


def test_the_picture_has_a_bar_for_every_span_inside_its_frame() -> None:
    told = simulated()
    root = ElementTree.fromstring(svg_gantt(told))
    bars = root.findall(f".//{SVG}rect")
    assert len(bars) == len(told.spans)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for bar in bars:
        assert 0 <= float(bar.attrib["x"]) <= float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
        assert 0 <= float(bar.attrib["y"]) <= height
    assert not any("http" in value for element in root.iter() for value in element.attrib.values())


def test_the_picture_names_every_row_and_says_what_each_bar_is() -> None:
    text = svg_gantt(simulated())
    for name in ("camera", "server", "camera to server", "server to camera"):
        assert f">{name}</text>" in text
    assert "spare" not in text
    assert "request 1: p2, " in text


def test_equal_simulations_give_equal_pictures() -> None:
    assert svg_gantt(simulated()) == svg_gantt(simulated())


def test_without_traced_requests_there_is_nothing_to_draw() -> None:
    told = simulate(plan_system(plan(), cluster(), Conditions()), Closed(), 2)
    assert text_gantt(told) == ""
    assert not ElementTree.fromstring(svg_gantt(told)).findall(f".//{SVG}rect")
