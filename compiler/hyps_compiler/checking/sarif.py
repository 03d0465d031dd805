"""SARIF 2.1.0: each passed limit as a result, at the model's file and the layer that did it."""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from hyps.errors import printable
from hyps_compiler.checking.figures import LIMITS
from hyps_compiler.checking.limits import COMPILES, Checked, Verdict
from hyps_compiler.checking.targets import ZOO

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_HELP = "See hypsc check --help."
_ROOT = "SRCROOT"


def to_sarif(checked: Sequence[Checked], budget: Path) -> bytes:
    """Return the document: a rule for everything that is checked, a result for everything that is not as it should be.

    A model of the zoo has no file; what is found of it stands at the budget.
    """
    rules = _rules()
    index = {rule["id"]: place for place, rule in enumerate(rules)}
    driver = {
        "name": "hypsc",
        "semanticVersion": version("hyps"),
        "rules": rules,
    }
    run = {
        "tool": {"driver": driver},
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The folder in which hypsc was started."}}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(one, verdict, index, budget) for one in checked for verdict in one.broken],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1).encode() + b"\n"


def _rules() -> list[dict[str, Any]]:
    told = [(COMPILES, "The model compiles within its limits and the plan computes what it computes.")]
    told += [(name, f"The budget's limit on the {limit.title} is kept.") for name, limit in LIMITS.items()]
    told += [
        (f"growth.{name}", f"The budget's limit on the growth of the {limit.title} is kept.")
        for name, limit in LIMITS.items()
        if limit.can_grow
    ]
    return [
        {
            "id": name,
            "name": "".join(word.capitalize() for word in name.replace(".", "_").split("_")),
            "shortDescription": {"text": text},
            "help": {"text": f"{text} {_HELP}"},
            "defaultConfiguration": {"level": "error"},
        }
        for name, text in told
    ]


def _result(one: Checked, verdict: Verdict, index: dict[str, int], budget: Path) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": _artifact(one.model, budget)}}
    logical = _logical(one.model, verdict)
    if logical:
        location["logicalLocations"] = logical
    return {
        "ruleId": verdict.check,
        "ruleIndex": index[verdict.check],
        "level": "error",
        "message": {"text": f"{printable(one.model)}: {printable(verdict.message, 2000)}"},
        "locations": [location],
        "partialFingerprints": {"hypscCheck/v1": _fingerprint(one.model, verdict)},
    }


def _artifact(model: str, budget: Path) -> dict[str, str]:
    """Return where a file is: relative to the working directory, or its whole address where it lies elsewhere."""
    path = budget if model.startswith(ZOO) else Path(model)
    relative = PurePosixPath(os.path.relpath(path))
    if ".." in relative.parts:
        return {"uri": path.absolute().as_uri()}
    return {"uri": quote(relative.as_posix(), safe="/"), "uriBaseId": _ROOT}


def _logical(model: str, verdict: Verdict) -> list[dict[str, str]]:
    named = [("partition", verdict.partition), ("layer", verdict.layer)]
    return [
        {"name": printable(name), "fullyQualifiedName": f"{printable(model)}::{printable(name)}", "kind": kind}
        for kind, name in named
        if name
    ]


def _fingerprint(model: str, verdict: Verdict) -> str:
    """Return what stays the same while a finding does, so that it is followed from one run to the next."""
    return "::".join((printable(model), verdict.check, printable(verdict.layer)))
