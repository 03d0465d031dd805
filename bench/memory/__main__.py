"""`python bench/memory`: the smallest limits, and seconds per inference under each, of onnxruntime and of HyPS."""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, machine, write_results
from hyps.errors import HypsError
from memory import contenders, tables
from memory.measuring import (
    Effort,
    deadline_for,
    measure_base,
    measure_limit,
    measure_size,
    measure_slow_disks,
    smallest_limits,
)
from memory.processes import cannot_slow_down
from memory.subjects import SUBJECTS, Subject

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "measurements.md"
_BEGIN, _END = "<!-- tables of bench/memory -->", "<!-- end of tables -->"


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice(list(SUBJECTS)), help="Only these models; several may be given."
)
@click.option("--rounds", default=3, show_default=True, help="Processes per contender and limit, at most.")
@click.option("--seconds", default=12.0, show_default=True, help="No further round of a limit begins after that.")
@click.option("--quick", is_flag=True, help="One round, no search for the smallest limits, no slow disk.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured with this very code.")
@click.option("--show", is_flag=True, help="Only print the tables of the results that there are.")
@click.option("--docs", is_flag=True, help="Put the tables into docs/measurements.md as well.")
@click.option("--scratch", type=click.Path(path_type=Path, exists=True), help="Where models and plans are written.")
def main(
    only: tuple[str, ...],
    rounds: int,
    seconds: float,
    quick: bool,
    fresh: bool,
    show: bool,
    docs: bool,
    scratch: Path | None,
) -> None:
    """Measure every model that was not measured with this code yet, as root, and print the tables.

    A model's results are written as soon as it is through, so that a run that is broken off goes on where it was.
    """
    models = _read()
    if not show:
        made_by = _digest()
        for subject in (SUBJECTS[name] for name in only or SUBJECTS):
            if not fresh and models.get(subject.name, {}).get("made_by") == f"{made_by}{'-quick' * quick}":
                print(f"{subject.name}: measured already", file=sys.stderr)
            elif subject.missing:
                print(f"{subject.name}: skipped, {subject.missing}", file=sys.stderr)
            else:
                effort = Effort(1 if quick else rounds, 0.0 if quick else seconds)
                try:
                    model = measure(subject, effort, scratch, quick=quick)
                except (HypsError, subprocess.CalledProcessError) as error:
                    print(f"{subject.name}: not measured, {error}", file=sys.stderr)
                    continue
                models = _read() | {subject.name: {"made_by": f"{made_by}{'-quick' * quick}", **model}}
                write_results("memory", {"machine": machine(), "models": models})
    known = {name: models[name] for name in SUBJECTS if name in models}
    print(tables.show({name: model for name, model in known.items() if name in only or not only}))
    if docs:
        _put_into_docs(tables.show(known))


def measure(subject: Subject, effort: Effort, scratch: Path | None, *, quick: bool) -> dict[str, Any]:
    """Return all about one model."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        for part in ("model", "nothing"):
            (folder / part).mkdir()
        files = contenders.write_files(subject, folder / "model")
        size = measure_size(files, measure_base(folder / "nothing"))
        limits: dict[str, Any] = {}
        deadline_s = 600.0
        for word, limit_bytes in size.limits(subject.further_limits).items():
            limits[word] = measure_limit(files, limit_bytes, effort, deadline_s)
            if word == "none":
                deadline_s = deadline_for(limits[word], size)
            print(f"{subject.name}, {word}:", json.dumps(_brief(limits[word])), file=sys.stderr)
        model: dict[str, Any] = {"size": asdict(size), "limits": limits, "smallest": {}, "slow": {}}
        if not quick:
            model["smallest"] = smallest_limits(files, list(limits.values()), deadline_s)
            model["slow"] = _slow(files, limits, size, folder)
        return model


def _slow(files: contenders.Files, limits: dict[str, Any], size: Any, folder: Path) -> dict[str, Any]:
    reason = cannot_slow_down(folder)
    if reason:
        return {"skipped": reason}
    return measure_slow_disks(files, limits, size)


def _brief(limit: dict[str, Any]) -> dict[str, Any]:
    return {
        label: [round(s, 4) for run in runs for s in run["samples_s"].get("cold", [])]
        or [run["failure"] for run in runs]
        for label, runs in limit["runs"].items()
    }


def _put_into_docs(text: str) -> None:
    """Replace what stands between the two marks of the page."""
    head, _, rest = DOCS.read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    DOCS.write_text(f"{head}{_BEGIN}\n\n{text}\n\n{_END}{tail}")


def _read() -> dict[str, Any]:
    path = RESULTS / "memory.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    models: dict[str, Any] = found.get("models", {})
    return models


def _digest() -> str:
    """Return what tells this code from any other: results of other code are measured again."""
    digest = sha256()
    for part in ("runtime", "passes", "compiler", "models", "bench/memory"):
        for path in sorted((ROOT / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
