"""Testbeds that are up on this machine: what other processes need to run programs on their devices."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from hyps.errors import UsageError, printable

_FOLDER = Path("/run/hyps-bed")


class Run(Struct, frozen=True):
    """One testbed that is up."""

    name: str
    """Which its namespaces and control groups begin with."""
    addresses: dict[str, str]
    """Of the devices."""
    prefixes: dict[str, tuple[str, ...]]
    """What a command line begins with to run on each device."""


def remember(run: Run) -> None:
    """Let other processes find a testbed."""
    _FOLDER.mkdir(mode=0o700, exist_ok=True)
    beside = _FOLDER / f"{run.name}.new"
    beside.write_bytes(msgspec.json.encode(run))
    beside.rename(_path(run.name))


def forget(name: str) -> None:
    """Let nobody find the testbed any more."""
    _path(name).unlink(missing_ok=True)


def runs() -> list[Run]:
    """Return the testbeds that are up, and those that killed processes have left."""
    return [msgspec.json.decode(path.read_bytes(), type=Run) for path in sorted(_FOLDER.glob("*.json"))]


def find_device(name: str) -> Run:
    """Return the testbed that is up and has a device of that name.

    Raises:
        UsageError: none is up, or has it, or several have.
    """
    able = [run for run in runs() if _lives(run)]
    if not able:
        raise UsageError("no testbed is up", "start one with `python -m testbed up cluster.toml` in another terminal")
    having = [run for run in able if name in run.addresses]
    if not having:
        known = ", ".join(sorted({device for run in able for device in run.addresses}))
        raise UsageError(f"no device is called `{printable(name)}`", f"there are {known}")
    if len(having) > 1:
        raise UsageError(f"{len(having)} testbeds that are up have a device `{name}`", "end all but one")
    return having[0]


def on_device(run: Run, name: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` on a device; `{NAME}` in it becomes that device's address."""
    words = []
    for word in command:
        for device, address in run.addresses.items():
            word = word.replace(f"{{{device}}}", address)
        words.append(word)
    return [*run.prefixes[name], *words]


def _lives(run: Run) -> bool:
    pid = run.name.split("-")[-2]
    return os.path.exists(f"/proc/{pid}")


def _path(name: str) -> Path:
    return _FOLDER / f"{name}.json"
