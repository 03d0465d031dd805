"""Builds a layout and takes it down again, whatever happens in between."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hyps.errors import HypsError, UsageError, printable
from testbed.groups import Group, can_make_groups, find_groups, make_group
from testbed.layout import Layout, Machine
from testbed.network import card_of, namespaces_of, wiring
from testbed.running import Run, forget, remember, runs

_PREFIX = "hyps-bed"
_TUNNELS = Path("/dev/net/tun")
_TOOLS = ("ip", "tc", "unshare", "nsenter", "taskset", "chrt")
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_NAMESPACES = Path("/run/netns")
_ENTER = 'for file in $1; do echo $$ > "$file" || exit 126; done; shift; exec "$@"'
"""A shell that enters the groups and becomes the program: nothing of Python runs between fork and exec."""


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that was built: where programs are run."""

    name: str
    address: str
    machine: Machine
    prefix: tuple[str, ...]
    """What a command line begins with to run on the device."""
    _processes: list["subprocess.Popen[Any]"] = field(default_factory=list)

    def popen(self, command: Sequence[Any], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program on the device; `options` are those of `subprocess.Popen`. It is killed with the testbed."""
        process = subprocess.Popen([*self.prefix, *map(str, command)], **options)
        self._processes.append(process)
        return process

    def run(self, command: Sequence[Any], **options: Any) -> "subprocess.CompletedProcess[Any]":
        """Run a program on the device to its end; `options` are those of `subprocess.run`."""
        return subprocess.run([*self.prefix, *map(str, command)], **options)

    def reap(self) -> None:
        """Kill every program that was started, and take note of its end."""
        for process in self._processes:
            process.kill()
            process.wait()


def missing() -> str:
    """Return why no testbed can be built here; empty where one can."""
    if sys.platform != "linux":
        return "namespaces and control groups need Linux"
    if os.geteuid() != 0:
        return "namespaces and control groups need root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"there is no `{absent[0]}` here"
    if not can_make_groups():
        return "there are no control groups that could be changed"
    return "" if _is_allowed(["unshare", "--net", "true"]) else "network namespaces are not allowed here"


def missing_to_pace() -> str:
    """Return why no core can be slowed here, beside what `missing` says; empty where one can."""
    return "" if _is_allowed(["chrt", "--fifo", "1", "true"]) else "priority over everything else is not allowed here"


def missing_to_delay() -> str:
    """Return why no wire can have a delay here, beside what `missing` says; empty where one can."""
    return missing_to_pace() if _TUNNELS.exists() else f"there is no `{_TUNNELS}` here"


@contextlib.contextmanager
def build(layout: Layout) -> Iterator[Mapping[str, Device]]:
    """Build the layout for the block and yield its devices by name.

    Everything is taken down when the block ends, by an exception, Ctrl-C, SIGTERM or SIGHUP too; programs that still
    run on a device are killed. What a killed run left behind is swept first.

    Raises:
        HypsError: this machine has no namespaces, traffic control or control groups, or does not let us.
        UsageError: a machine is to be pinned to a core that there is not.
    """
    if reason := missing():
        raise HypsError(f"no testbed can be built: {reason}")
    absent = sorted(set(layout.cores()) - os.sched_getaffinity(0))
    if absent:
        raise UsageError(f"there is no core {absent[0]} here to pin a machine to")
    if any(wire.delay_s for wire in layout.wires) and (reason := missing_to_delay()):
        raise HypsError(f"no wire can have a delay: {reason}")
    sweep()
    stack = contextlib.ExitStack()
    with _ended_by_signals():
        try:
            with _undisturbed():
                devices = _set_up(layout, stack)
            yield devices
        finally:
            with _undisturbed():
                stack.close()


def sweep() -> list[str]:
    """Remove what runs that are gone have left behind; return the names of what was removed."""
    removed = []
    for group in find_groups(_PREFIX):
        if _is_orphan(group.folders[0].name):
            group.remove()
            removed.append(group.folders[0].name)
    for path in sorted(_NAMESPACES.glob(f"{_PREFIX}*")):
        if _is_orphan(path.name):
            _command(["ip", "netns", "delete", path.name])
            removed.append(path.name)
    for run in runs():
        if _is_orphan(run.name):
            forget(run.name)
    return removed


def _set_up(layout: Layout, stack: contextlib.ExitStack) -> dict[str, Device]:
    """Make groups, namespaces, wires and pacers; put on the stack what undoes every step."""
    run = f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
    namespaces = {name: f"{run}-{name}" for name in namespaces_of(layout)}
    for namespace in namespaces.values():
        stack.callback(_delete_namespace, namespace)
        _command(["ip", "netns", "add", namespace])
    for command in wiring(layout, namespaces):
        _command(command)
    for index, wire in enumerate(layout.wires):
        if wire.delay_s:
            ends = [str(_NAMESPACES / namespaces[end]) for end in (wire.a, wire.b)]
            problem = f"the wire between {wire.a} and {wire.b} cannot be delayed"
            _start_helper("testbed.relay", [card_of(index), *ends, str(wire.delay_s)], problem, stack)
    devices = {}
    for name, machine in layout.machines.items():
        group = _group_of(machine, f"{run}-{name}")
        device = Device(name, layout.address(name), machine, _prefix(group, namespaces[name], machine.core))
        stack.callback(device.reap)
        stack.callback(group.remove)
        if machine.is_paced:
            problem = f"core {machine.core} cannot be slowed"
            _start_helper("testbed.pacer", [str(machine.core), str(machine.cpu_fraction)], problem, stack)
        devices[name] = device
    stack.callback(forget, run)
    remember(Run(run, {name: device.address for name, device in devices.items()}, _prefixes(devices)))
    return devices


def _prefixes(devices: Mapping[str, Device]) -> dict[str, tuple[str, ...]]:
    return {name: device.prefix for name, device in devices.items()}


def _group_of(machine: Machine, name: str) -> Group:
    fraction = None if machine.is_paced else machine.cpu_fraction
    return make_group(name, cpu_fraction=fraction, memory_bytes=machine.memory_bytes, period_s=machine.period_s)


def _prefix(group: Group, namespace: str, core: int | None) -> tuple[str, ...]:
    """Return what a command line begins with to run in the group, the namespace and on the core."""
    entrances = " ".join(map(str, group.entrances))
    pinned = () if core is None else ("taskset", "--cpu-list", str(core))
    return ("sh", "-c", _ENTER, "sh", entrances, "nsenter", f"--net={_NAMESPACES / namespace}", *pinned)


def _start_helper(module: str, arguments: Sequence[str], problem: str, stack: contextlib.ExitStack) -> None:
    """Start a program of ours that says a line when it is ready; it ends with the stack, or with this process."""
    command, folder = [sys.executable, "-m", module, *arguments], Path(__file__).parent.parent
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    stack.callback(process.communicate)
    stack.callback(process.kill)
    assert process.stdout is not None
    if not process.stdout.readline():
        said = process.communicate()[1].strip().splitlines() or ["it said nothing"]
        raise HypsError(f"{problem}: {said[-1]}", "run as root in the top control group")


def _command(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HypsError(f"`{' '.join(command)}` failed: {printable(done.stderr.strip())}", "run as root")


def _is_allowed(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _delete_namespace(namespace: str) -> None:
    if (_NAMESPACES / namespace).exists():
        _command(["ip", "netns", "delete", namespace])


def _is_orphan(name: str) -> bool:
    """Return whether the process that the name was made by is gone."""
    pid = name.removeprefix(f"{_PREFIX}-").split("-")[0]
    return pid.isdigit() and not Path(f"/proc/{pid}").exists()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block like an exception; Ctrl-C does already. Only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back until the block is through."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_ENDING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
