"""JUnit XML: a test suite for each model, a test case for each thing that is checked of it."""

from collections.abc import Sequence
from xml.etree import ElementTree

from hyps.errors import printable
from hyps_compiler.checking.limits import Checked, Verdict
from hyps_compiler.checking.summary import change_lines


def to_junit(checked: Sequence[Checked], budget: str) -> bytes:
    """Return the document; a passed limit is a failure, a model of which nothing is known an error."""
    suites = ElementTree.Element("testsuites", _counts(checked) | {"name": printable(f"hypsc check {budget}")})
    for one in checked:
        suites.append(_suite(one))
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _suite(one: Checked) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", {"name": printable(one.model, 500), **_counts([one]), "skipped": "0"})
    for index, verdict in enumerate(one.verdicts):
        suite.append(_case(one, verdict, one.seconds if index == 0 else 0.0))
    said = [*(f"note: {printable(note, 500)}" for note in one.notes), *change_lines(one)]
    if said:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(said)
    return suite


def _case(one: Checked, verdict: Verdict, seconds: float) -> ElementTree.Element:
    name = verdict.check if not verdict.most else f"{verdict.check}: {verdict.value} of {verdict.most}"
    case = ElementTree.Element(
        "testcase", {"name": printable(name, 500), "classname": printable(one.model, 500), "time": f"{seconds:.3f}"}
    )
    if not verdict.is_kept:
        told = printable(verdict.message, 2000)
        kind = "error" if _is_error(verdict) else "failure"
        ElementTree.SubElement(case, kind, {"message": told, "type": verdict.check}).text = told
    return case


def _counts(checked: Sequence[Checked]) -> dict[str, str]:
    verdicts = [verdict for one in checked for verdict in one.verdicts]
    return {
        "tests": str(len(verdicts)),
        "failures": str(sum(not verdict.is_kept and not _is_error(verdict) for verdict in verdicts)),
        "errors": str(sum(_is_error(verdict) for verdict in verdicts)),
        "time": f"{sum(one.seconds for one in checked):.3f}",
    }


def _is_error(verdict: Verdict) -> bool:
    return not verdict.is_kept and verdict.exit_status not in (3, 4)
