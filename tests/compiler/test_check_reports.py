"""Markdown, JUnit, SARIF and workflow commands: well-formed whatever names a stranger's model has."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from check_fixtures import checked, layer, outcome, partition, plan
from hyps.errors import printable
from hyps_compiler.checking import summary
from hyps_compiler.checking.annotations import annotations
from hyps_compiler.checking.facts import Outcome, Problem
from hyps_compiler.checking.figures import LIMITS
from hyps_compiler.checking.junit import to_junit
from hyps_compiler.checking.limits import Checked
from hyps_compiler.checking.markdown import to_markdown
from hyps_compiler.checking.reports import REPORTS, write_reports
from hyps_compiler.checking.rules import Rule
from hyps_compiler.checking.sarif import to_sarif

NASTY = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(
        [
            "a|b",
            "`x`",
            "``",
            "<script>alert(1)</script>",
            "</code>",
            "[click](http://evil)",
            "@someone #1",
            "::error::x",
            "a\n::set-output name=x::y",
            "%0A::stop",
            "]]>",
            "&amp;",
            "\x1b[31m",
            "\x00\x0b\ufffe\ud800",
            "../../x",
            "a:b,c",
            "*b* _i_ ~s~ # h",
            "\u202e",
            "http://a.b/c",
        ]
    ),
)

RULE = Rule(limits={"partition_bytes": 10, "border_bytes": 1, "difference": 1e-3}, growth={"partition_bytes": 0.0})


def check_of(model: str = "m.onnx", name: str = "fc1") -> Checked:
    found = plan(partition(0, layer(name, 10_000)), partition(1, layer("b", 4)), border_bytes=8)
    return checked(model, outcome(found), RULE, plan(partition(0, layer(name, 5_000))))


def broken(model: str = "broken.onnx", message: str = "it is no model", status: int = 1) -> Checked:
    problem = Problem(message=message, hint="export it again", code="E_NOT_ONNX", exit_status=status)
    return checked(model, Outcome(problem=problem), Rule())


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag if not attrs else f"{tag} with attributes")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


def cells(row: str) -> list[str]:
    assert row.startswith("| ")
    assert row.endswith(" |")
    return row[2:-2].split(" | ")


# Markdown


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY, NASTY)
def test_markdown_has_nothing_of_a_name_but_text(model: str, name: str) -> None:
    made = to_markdown([check_of(model, name), broken(model, name)], model)
    tags = _Tags()
    tags.feed(made)
    assert set(tags.tags) <= {"code", "/code"}
    assert tags.tags == ["code", "/code"] * (len(tags.tags) // 2)
    plain = to_markdown([check_of(), broken()], "budget.toml")
    assert [line.count("|") for line in made.splitlines() if line.startswith("|")] == [
        line.count("|") for line in plain.splitlines() if line.startswith("|")
    ], "a name makes no cell"
    bare = re.sub(r"&#\d+;", "", made)
    assert not set("@[]~$\\`") & set(bare.replace("~~", ""))
    assert "http:" not in bare


def test_markdown_shows_names_as_they_are() -> None:
    made = to_markdown([check_of("a|b_*.onnx", "fc`1")], "budget.toml")
    row = next(line for line in made.splitlines() if "onnx" in line and line.startswith("|"))
    assert html.unescape(cells(row)[1]) == "<code>a|b_*.onnx</code>"
    assert "❌" in row


def test_markdown_has_the_sentence_the_limits_and_the_changes() -> None:
    made = html.unescape(to_markdown([check_of()], "budget.toml"))
    assert "layer <code>fc1</code> (Gemm) grew from 5.00 kB to 10.0 kB of weights since the previous plan" in made
    assert "| ❌ | largest partition | 10.0 kB | 10 B | <code>fc1</code> |" in made
    assert "partition <code>p001</code> appeared" in made
    assert made.startswith("## ❌ hypsc check: 1 of 1 model not as they should be")


def test_markdown_of_green_is_green() -> None:
    made = to_markdown([checked("m", outcome(plan(partition(0, layer("a", 4)))), Rule())], "b")
    assert made.startswith("## ✅ hypsc check: 1 model within the budget")


# JUnit

_JUNIT = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "time"}, {"testcase", "system-out"}),
    "testcase": ({"name", "classname", "time"}, {"failure", "error"}),
    "failure": ({"message", "type"}, set()),
    "error": ({"message", "type"}, set()),
    "system-out": (set(), set()),
}
"""By element, its attributes, all of them needed, and what may stand in it."""


def _check_junit(element: ElementTree.Element) -> None:
    attributes, inside = _JUNIT[element.tag]
    assert set(element.attrib) == attributes
    assert {child.tag for child in element} <= inside
    for child in element:
        _check_junit(child)
    if "tests" in attributes:
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases)
        assert int(element.attrib["failures"]) == len(list(element.iter("failure")))
        assert int(element.attrib["errors"]) == len(list(element.iter("error")))
    if "time" in attributes:
        assert float(element.attrib["time"]) >= 0


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY, NASTY)
def test_junit_is_what_its_readers_know(model: str, name: str) -> None:
    root = ElementTree.fromstring(to_junit([check_of(model, name), broken(model, name)], model))
    _check_junit(root)
    suite = root[0]
    assert suite.attrib["name"] == printable(model, 500)
    failed = [case for case in suite if case.find("failure") is not None]
    assert printable(name) in failed[0][0].attrib["message"]


def test_junit_has_a_case_for_each_limit() -> None:
    root = ElementTree.fromstring(to_junit([check_of(), broken()], "budget.toml"))
    names = [case.attrib["name"].partition(":")[0] for case in root[0].iter("testcase")]
    assert names == ["compiles", "partition_bytes", "border_bytes", "difference", "growth.partition_bytes"]
    assert [case.attrib["name"] for case in root[1]] == ["compiles"]
    assert root[1][0][0].tag == "error"
    assert (root.attrib["failures"], root.attrib["errors"]) == ("3", "1")


# SARIF


def _check_sarif(document: dict[str, Any]) -> None:
    """Assert what sections 3.13 to 3.49 of SARIF 2.1.0 require of what is used here."""
    assert document["version"] == "2.1.0"
    assert set(document) == {"$schema", "version", "runs"}
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"]
    rules = driver["rules"]
    ids = [rule["id"] for rule in rules]
    assert len(set(ids)) == len(ids)
    for rule in rules:
        assert rule["shortDescription"]["text"].endswith(".")
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    bases = run["originalUriBaseIds"]
    for result in run["results"]:
        assert result["message"]["text"]
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        for location in result["locations"]:
            artifact = location["physicalLocation"]["artifactLocation"]
            assert re.fullmatch(r"[A-Za-z0-9._~/%:-]+", artifact["uri"]), "a URI reference, the rest is escaped"
            if "uriBaseId" in artifact:
                assert artifact["uriBaseId"] in bases
                assert not artifact["uri"].startswith("/")
                assert ":" not in artifact["uri"].partition("/")[0]
                assert ".." not in artifact["uri"].split("/")
            for logical in location.get("logicalLocations", ()):
                assert logical["fullyQualifiedName"].endswith(logical["name"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY.filter(lambda name: "\0" not in name and "\ud800" not in name), NASTY)
def test_sarif_has_what_the_standard_requires(model: str, name: str) -> None:
    made = to_sarif([check_of(model, name), broken(model, name)], Path("budget.toml"))
    document = json.loads(made)
    _check_sarif(document)
    assert printable(name) in document["runs"][0]["results"][0]["message"]["text"]


def test_sarif_names_file_partition_and_layer() -> None:
    document = json.loads(to_sarif([check_of("models/m.onnx"), check_of("zoo:digits")], Path("ci/budget.toml")))
    first, *_ = document["runs"][0]["results"]
    (location,) = first["locations"]
    assert first["ruleId"] == "partition_bytes"
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "models/m.onnx", "uriBaseId": "SRCROOT"}
    assert [(one["kind"], one["name"]) for one in location["logicalLocations"]] == [
        ("partition", "p000"),
        ("layer", "fc1"),
    ]
    of_zoo = document["runs"][0]["results"][-1]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert of_zoo["uri"] == "ci/budget.toml"


def test_sarif_has_a_rule_for_every_limit() -> None:
    rules = json.loads(to_sarif([], Path("b.toml")))["runs"][0]["tool"]["driver"]["rules"]
    growing = {f"growth.{name}" for name, limit in LIMITS.items() if limit.can_grow}
    assert {rule["id"] for rule in rules} == {"compiles", *LIMITS, *growing}


def test_a_file_elsewhere_has_its_whole_address() -> None:
    document = json.loads(to_sarif([check_of("../../m.onnx")], Path("b.toml")))
    _check_sarif(document)
    assert document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith(
        "file:///"
    )


# Workflow commands


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY, NASTY)
def test_a_workflow_command_is_one_line_and_stays_one_command(model: str, name: str) -> None:
    told = summary.as_json([check_of(model, name), broken(model, name)], "budget.toml")
    lines = list(annotations(json.loads(json.dumps(told))))
    assert len(lines) == sum(len(one.broken) for one in (check_of(model, name), broken(model, name)))
    for line in lines:
        assert "\n" not in line
        assert "\r" not in line
        match = re.fullmatch(r"::error file=([^:,]*),title=([^:,]*)::(.*)", line, re.DOTALL)
        assert match, line


def test_an_error_of_the_whole_check_is_one_command() -> None:
    told = {"error": {"code": "E_BUDGET", "message": "100 % wrong\nhere", "hint": ""}}
    assert list(annotations(told)) == ["::error title=hypsc check::100 %25 wrong%0Ahere"]


# All of them


def test_reports_replace_what_is_there(tmp_path: Path) -> None:
    for name in REPORTS:
        (tmp_path / name).write_text("old")
    write_reports([check_of()], Path("budget.toml"), {name: tmp_path / name for name in REPORTS})
    assert all((tmp_path / name).read_bytes().startswith((b"## ", b"<?xml", b"{")) for name in REPORTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(REPORTS)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY, NASTY)
def test_the_terminal_gets_no_control_characters(model: str, name: str) -> None:
    shown = summary.show([check_of(model, name), broken(model, name)])
    assert all(character.isprintable() for line in shown.split("\n") for character in line)


@pytest.mark.parametrize(("status", "word"), [(0, "ok"), (3, "limit passed"), (4, "differs"), (1, "broken")])
def test_each_status_has_its_word(status: int, word: str) -> None:
    green = checked("m", outcome(plan(partition(0, layer("a", 4)))), Rule())
    assert summary.state(broken(status=status) if status else green) == word


def test_at_a_terminal_names_keep_their_ends_and_sentences_are_wrapped() -> None:
    shown = summary.show([check_of("models/vision/large/resnet50.onnx")], 80).splitlines()
    assert max(map(len, shown)) <= 80
    assert re.match(r"models/.*…/resnet50\.onnx  ", shown[1])
    assert any(len(line) > 200 for line in summary.show([check_of()]).splitlines()), "logs are searched line by line"
