"""The packages that HyPS uses: the oldest version that will do of each, and which of them an older one makes unsafe."""

import importlib
import os
import re
import resource
from collections.abc import Mapping

from hyps.errors import DependencyError, HypsError
from hyps.formats.quantities import format_nbytes

FLOORS: Mapping[str, Mapping[str, str]] = {
    "": {"click": "8.1", "msgspec": "0.19", "numpy": "1.26", "onnxruntime": "1.27", "pyzmq": "26"},
    "compiler": {"ml_dtypes": "0.5", "networkx": "3.2", "onnx": "1.21", "onnx-ir": "1.0", "tomli-w": "1.0"},
    "image": {"pillow": "10"},
    "search": {"ortools": "9.12"},
    "tf": {"keras": "3.12", "tensorflow-cpu": "2.19", "tf2onnx": "1.17"},
}
"""Oldest version by package, by extra; the packages of a plain `pip install hyps` under the empty name."""

UNSAFE = {
    "onnx": "reads files outside the model's folder",
    "onnxruntime": "lets a model read memory and files that are not its own",
}
"""What a version below the floor does, of the packages with which no command starts then."""

_LEAST_ADDRESS_SPACE_NBYTES = 256 * 10**6
"""Python, numpy and onnxruntime with their threads; below it they end in ways of their own."""


def check_safe(*packages: str) -> None:
    """Refuse to work with an unsafe version of one of `packages`, or where they cannot even be loaded.

    Raises:
        DependencyError: one is missing or older than its floor.
        HypsError: the limit on this process's address space leaves too little for them (`E_MEMORY`).
    """
    _check_address_space()
    for package in packages:
        floor = floor_of(package)
        try:
            version = str(importlib.import_module(package).__version__)
        except ModuleNotFoundError as error:
            raise DependencyError(f"{package} is not installed", f'pip install "{package}>={floor}"') from error
        if is_below(version, floor):
            text = f"{package} {version} is installed, and any before {floor} {UNSAFE[package]}"
            raise DependencyError(text, f'pip install --upgrade "{package}>={floor}"')


def floor_of(package: str) -> str:
    """Return the oldest version of a package that will do."""
    return next(floors[package] for floors in FLOORS.values() if package in floors)


def is_below(version: str, floor: str) -> bool:
    """Return whether `version` comes before `floor`; what is not a number in it is not looked at.

    >>> is_below("1.9.2", "1.21"), is_below("1.21.0rc1", "1.21"), is_below("2", "1.21")
    (True, False, False)
    """
    return _numbers(version) < _numbers(floor)


def address_space_nbytes() -> int | None:
    """Return the most address space that this process may have; None: no limit."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _check_address_space() -> None:
    limit = address_space_nbytes()
    if limit is None:
        return
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # numpy's own threads, which HyPS has no use for, take 40 MB each
    if limit < _LEAST_ADDRESS_SPACE_NBYTES:
        text = f"this process may have {format_nbytes(limit)} of address space, too little to load onnxruntime"
        raise HypsError(text, "allow more: ulimit -v unlimited", code="E_MEMORY")


def _numbers(version: str) -> list[int]:
    release = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return [int(part) for part in release[0].split(".")] if release else []
