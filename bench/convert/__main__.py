"""`python bench/convert`: sources of every kind converted and compared with their frameworks, and what it takes."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, load, machine, write_results
from convert import tables
from convert.rivals import tf2onnx_command
from convert.subjects import SUBJECTS, WITH_RIVAL, Subject
from hyps.errors import HypsError
from hyps_compiler.convert import convert

DOCS = Path(__file__).parents[2] / "docs" / "measurements.md"
_BEGIN, _END = "<!-- table of bench/convert -->", "<!-- end of the table of bench/convert -->"
_PACKAGES = ("keras", "tensorflow_cpu", "tf2onnx", "torch", "onnxscript", "scikit-learn", "skl2onnx")


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(SUBJECTS)), help="Only these; several may be given.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured already.")
@click.option("--show", is_flag=True, help="Only print the table of the results that there are.")
@click.option("--docs", is_flag=True, help="Put the table into docs/measurements.md as well.")
@click.option("--scratch", type=click.Path(path_type=Path, exists=True), help="Where sources and models are written.")
def main(only: tuple[str, ...], fresh: bool, show: bool, docs: bool, scratch: Path | None) -> None:
    """Convert every source that was not measured yet, and print the table.

    A source's results are written as soon as it is through, so that a run that is broken off goes on where it was.
    """
    for subject in (SUBJECTS[name] for name in only or SUBJECTS) if not show else ():
        missing = [name for name in subject.needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{subject.name}: skipped, {', '.join(missing)} is not installed", file=sys.stderr)
        elif subject.name in _read() and not fresh:
            print(f"{subject.name}: measured already", file=sys.stderr)
        else:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                found = measure(subject, Path(folder))
            print(f"{subject.name}: {json.dumps(found)[:200]}", file=sys.stderr)
            write_results("convert", {"machine": _machine(), "models": _read() | {subject.name: found}})
    known = {name: model for name, model in _read().items() if not only or name in only}
    ordered = {name: known[name] for name in SUBJECTS if name in known}
    print(tables.show(ordered))
    if docs:
        head, _, rest = DOCS.read_text().partition(_BEGIN)
        _, _, tail = rest.partition(_END)
        DOCS.write_text(f"{head}{_BEGIN}\n\n{tables.show(ordered)}\n\n{_END}{tail}")


def measure(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write a source, convert it, and have its rival convert it where there is one."""
    maker = Path(__file__).parent / "subjects.py"
    subprocess.run([sys.executable, str(maker), subject.name, str(folder)], check=True, capture_output=True)
    found: dict[str, Any] = {"load": load(), "hyps": _converted(subject, folder)}
    if subject.name in WITH_RIVAL:
        found["tf2onnx"] = tf2onnx_command(folder / "exported", folder / "rival.onnx")
    return found


def _converted(subject: Subject, folder: Path) -> dict[str, Any]:
    before_s = sum(os.times()[:4])  # of this process and of those it waited for
    try:
        conversion = convert(folder / subject.file, folder / "out.onnx", trust=True)
    except HypsError as error:
        return {"converts": False, "said": error.message}
    finally:
        cpu_s = sum(os.times()[:4]) - before_s
    told = msgspec.to_builtins(conversion)
    peak_bytes = told.pop("peak_nbytes")
    return {
        "converts": True,
        **told,
        "cpu_s": round(cpu_s, 2),
        "peak_bytes": peak_bytes,
        "difference": conversion.difference,
    }


def _machine() -> dict[str, Any]:
    described = machine()
    for package in _PACKAGES:
        try:
            described["packages"][package] = version(package)
        except PackageNotFoundError:
            described["packages"][package] = None
    return described


def _read() -> dict[str, Any]:
    path = RESULTS / "convert.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    models: dict[str, Any] = found.get("models", {})
    return models


if __name__ == "__main__":
    main()
