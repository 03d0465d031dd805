"""Writes what was found as files, each whole or not at all."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hyps.errors import OutputError
from hyps_compiler.checking.junit import to_junit
from hyps_compiler.checking.limits import Checked
from hyps_compiler.checking.markdown import to_markdown
from hyps_compiler.checking.sarif import to_sarif
from hyps_compiler.output import check_output_file, output_file

REPORTS: dict[str, Callable[[Sequence[Checked], Path], bytes]] = {
    "markdown": lambda checked, budget: to_markdown(checked, str(budget)).encode(),
    "junit": lambda checked, budget: to_junit(checked, str(budget)),
    "sarif": to_sarif,
}
"""Every form of report, by the option that asks for it; takes what was checked, and where the budget lies."""


def write_reports(checked: Sequence[Checked], budget: Path, wanted: Mapping[str, Path | None]) -> None:
    """Write the reports that are wanted, in place of what is there.

    Raises:
        OutputError: one cannot be written.
    """
    for name, path in wanted.items():
        if path is not None:
            with _named(name), output_file(path) as beside:
                beside.write_bytes(REPORTS[name](checked, budget))


def check_reports(wanted: Mapping[str, Path | None]) -> None:
    """Refuse reports that cannot be written where they are wanted, before any model is checked.

    Raises:
        OutputError: one cannot.
    """
    for name, path in wanted.items():
        if path is not None:
            with _named(name):
                check_output_file(path, force=True)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Have a refusal name the option that asked for the report."""
    try:
        yield
    except OutputError as error:
        raise OutputError(error.message, error.hint.replace("`-o`", f"`--{name}`"), error.code) from error
