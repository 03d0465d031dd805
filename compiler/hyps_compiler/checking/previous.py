"""The plans to compare with: a plan folder, a folder of plans as `-o` makes it, or what `--json` printed."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from hyps.adapters.plan_files import PLAN_FILE
from hyps.errors import PlanError, UsageError, printable
from hyps_compiler.checking.facts import PlanFacts
from hyps_compiler.checking.kept import read_record
from hyps_compiler.checking.rules import CompileOptions
from hyps_compiler.checking.targets import Target

_HINT = "give a plan folder, a folder of plans that `hypsc check -o` wrote, or what `hypsc check --json` printed"
_MOST_NBYTES = 256 * 2**20
_TYPED = "as typed: "


class _Plan(Struct):
    plan: PlanFacts | None = None


class _Model(Struct):
    model: str
    name: str = ""
    options: CompileOptions | None = None
    facts: _Plan | None = None


class _Report(Struct):
    """What of the document that `--json` prints is read again."""

    format: str
    models: tuple[_Model, ...]


@dataclass(frozen=True, slots=True)
class Previous:
    """Where the plans of an earlier check are."""

    path: Path | None = None
    told: dict[str, PlanFacts] = field(default_factory=dict)
    """By the model's name, from a report; of one that has no names, by the model's path as it was typed."""
    is_report: bool = False

    def plan(self, target: Target) -> PlanFacts | None:
        """Return what a report tells of a model; None where it tells nothing."""
        return self.told.get(target.name) or self.told.get(_TYPED + os.path.normpath(target.model))

    def folder(self, target: Target) -> Path | None:
        """Return the folder of a model's previous plan; None where there is none."""
        if self.path is None or self.is_report:
            return None
        if (self.path / PLAN_FILE).exists():
            return self.path
        folder, typed = self.path / target.place, self.path / target.place_here
        if (folder / PLAN_FILE).exists():
            return folder
        is_older = (typed / PLAN_FILE).exists() and read_record(typed) is None
        return typed if is_older else None

    def names(self) -> list[str]:
        """Return what there are plans of, sorted."""
        if self.path is None or self.is_report:
            return sorted(name.removeprefix(_TYPED) for name in self.told)
        return sorted(file.parent.relative_to(self.path).as_posix() for file in self.path.rglob(PLAN_FILE))


def open_previous(path: Path | None, targets: tuple[Target, ...]) -> Previous:
    """Return where the previous plans are.

    Raises:
        PlanError: there is nothing at the path, or a file that is no report.
        UsageError: it is the plan of one model, and there are several.
    """
    if path is None:
        return Previous()
    shown = printable(str(path))
    if path.is_file():
        return Previous(path, _read_report(path, shown), is_report=True)
    if not path.is_dir():
        raise PlanError(f"there are no previous plans at `{shown}`", _HINT, "E_NO_PLAN")
    if (path / PLAN_FILE).exists() and len(targets) > 1:
        raise UsageError(f"`{shown}` is one plan and there are {len(targets)} models", _HINT)
    return Previous(path)


def _read_report(path: Path, shown: str) -> dict[str, PlanFacts]:
    try:
        with path.open("rb") as file:
            report = msgspec.json.decode(file.read(_MOST_NBYTES), type=_Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"`{shown}` is no report of a check: {printable(str(error), 200)}", _HINT) from error
    if report.format != "hyps-check":
        raise PlanError(f"`{shown}` is no report of a check", _HINT)
    return {
        one.name or _TYPED + os.path.normpath(one.model): msgspec.structs.replace(one.facts.plan, options=one.options)
        for one in report.models
        if one.facts and one.facts.plan
    }
