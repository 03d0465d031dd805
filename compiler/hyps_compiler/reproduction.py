"""A reduced difference as a folder that anyone with onnxruntime and numpy can run."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model

from hyps.containment import die_with_writer
from hyps.formats.plan import Plan
from hyps_compiler import reproduce
from hyps_compiler.arrays import write_npz
from hyps_compiler.narrow import Place
from hyps_compiler.reduce import Reduced
from hyps_compiler.subgraphs import Model, Piece, can_be_given, value_info

MARKER = "reproduction.json"
"""The file by which a folder is known to be a reproduction, which `--force` may replace."""

_INLINE_UP_TO_BYTES = 2**30
_CHECK_S = 120.0
_PLAIN_KEY = re.compile(r"[\w./:\[\]-]{1,200}", re.ASCII)


def write_reproduction(folder: Path, reduced: Reduced, plan: Plan, place: Place | None) -> bool | None:
    """Write the reproduction and return whether it differs in a process of its own too; None where that took too long.

    The folder gets `model.onnx` (what is right), `partition.onnx` (what is wrong; several where the border between them
    matters), `inputs.npz`, `expected.npz`, `actual.npz`, `reproduction.json`, and `reproduce.py`, which runs it.
    Where that takes too long, `still_differs` in `reproduction.json` is null.

    Args:
        folder: an empty folder.
        reduced: the difference.
        plan: the plan in which it was found.
        place: where in the plan, as far as that is known.
    """
    trial, target = reduced.trial, reduced.target
    values = {**trial.given, **trial.made}
    _write_model(folder / "model.onnx", *trial.whole, {**values, target: trial.expected})
    names = _file_names(len(trial.parts))
    for name, (model, piece) in zip(names, trial.parts, strict=True):
        _write_model(folder / name, model, piece, values)
    keys = _keys(trial.given)
    write_npz(folder / "inputs.npz", {key: trial.given[name] for key, name in keys.items()})
    write_npz(folder / "expected.npz", dict(_flat(target, trial.expected)))
    write_npz(folder / "actual.npz", dict(_flat(target, trial.actual)))
    shutil.copyfile(reproduce.__file__, folder / "reproduce.py")
    about = {**_about(reduced, plan, place), "partitions": names, "inputs": keys}
    (folder / MARKER).write_text(json.dumps(about, indent=1) + "\n")
    still_differs = _still_differs(folder)
    (folder / MARKER).write_text(json.dumps({**about, "still_differs": still_differs}, indent=1) + "\n")
    return still_differs


def _file_names(count: int) -> list[str]:
    return ["partition.onnx"] if count == 1 else [f"partition{index}.onnx" for index in range(1, count + 1)]


def _write_model(path: Path, model: Model, piece: Piece, values: Mapping[str, Any]) -> None:
    """Write a piece with its own weights and nothing else."""
    proto = model.build(piece, values)
    for output in proto.graph.output:
        if can_be_given(values.get(output.name)):
            output.CopyFrom(value_info(output.name, values[output.name]))
    load_external_data_for_model(proto, str(model.folder))
    large = proto.ByteSize() > _INLINE_UP_TO_BYTES
    onnx.save_model(proto, str(path), save_as_external_data=large, location=f"{path.name}.data")


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Return under which key of an .npz file each tensor lies: its name, unless one is too odd for a file in a zip."""
    ordered = sorted(names)
    are_plain = all(_PLAIN_KEY.fullmatch(name) and not name.endswith(".npy") for name in ordered)
    return {name if are_plain else str(index): name for index, name in enumerate(ordered)}


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Yield the arrays that a value consists of, each with a key for an .npz file."""
    (key,) = _keys([name])
    if isinstance(value, np.ndarray):
        yield key, value
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from ((f"{key}.{index}{inner.removeprefix(key)}", array) for inner, array in _flat(name, part))
    elif isinstance(value, dict):
        yield f"{key}.keys", np.array(list(value))
        yield f"{key}.values", np.array(list(value.values()))


def _about(reduced: Reduced, plan: Plan, place: Place | None) -> dict[str, Any]:
    trial, difference = reduced.trial, reduced.trial.difference
    exact = not reduced.suspect.is_right(difference) and difference.is_within_tolerance
    numbers = {"largest": difference.largest, "relative": difference.relative}
    return {
        "format": "hyps-reproduction",
        "version": 1,
        "tensor": reduced.target,
        "partition": None if place is None else place.partition,
        "layers": [] if place is None else [layer.name for layer in place.layers],
        "dtype": difference.dtype,
        "shape": difference.shape,
        **{key: value if value < float("inf") else None for key, value in numbers.items()},
        "different": difference.different,
        "elements": difference.elements,
        "problem": difference.problem,
        "failure": trial.failure,
        "tolerance": None if exact or not difference.tolerance else difference.tolerance,
        "optimized": reduced.suspect.level == "default",
        "nodes": reduced.nodes,
        "nodes_before": reduced.nodes_before,
        "trials": reduced.trials,
        "is_minimal": reduced.is_minimal,
        "plan": {
            "producer": plan.producer,
            "model": plan.model.name,
            "sha256": plan.model.sha256,
            "optimization": plan.optimization,
        },
        "versions": {
            **{name: version(name) for name in ("hyps", "onnx", "onnxruntime", "numpy")},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }


def _still_differs(folder: Path) -> bool | None:
    """Return whether it differs in a process of its own, which ends when this one does; None: it took too long."""
    command = [sys.executable, "-I", "reproduce.py"]
    reader, writer = os.pipe()
    try:
        with subprocess.Popen(
            command, cwd=folder, stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                die_with_writer(reader, process.pid)
                said, _ = process.communicate(timeout=_CHECK_S)
            finally:
                process.kill()
    except subprocess.TimeoutExpired:
        return None
    finally:
        os.close(reader)
        os.close(writer)
    return process.returncode == 1 and said != ""
