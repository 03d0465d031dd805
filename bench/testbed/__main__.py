"""The command `python -m testbed`."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click

import testbed
from hyps.errors import HypsError
from hyps.formats.cluster import decode_cluster
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import HypsGroup, say, table
from testbed.bed import Device
from testbed.clusters import MOST_CORES_USED, cores_used, layout_of
from testbed.layout import Layout
from testbed.running import find_device, on_device

_BIN = Path(sys.executable).parent
_PORT = 5757
_UP_EXAMPLES = """\b
Examples:
  python -m testbed up clusters/pis.toml
  python -m testbed up clusters/pis.toml --plan plan/
  python -m testbed up clusters/pis.toml -- python -m testbed run pi1 -- ip route get {pi2}
"""
_RUN_EXAMPLES = """\b
Examples:
  python -m testbed run pi2
  python -m testbed run pi1 -- hyps-manager plan --bind tcp://{pi1}:5757 --insecure-lab
"""
_NAMES_AND_COMMAND = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group(cls=HypsGroup)
def main() -> None:
    """Slow devices and links on one Linux machine, for whoever is root."""


@main.command(epilog=_UP_EXAMPLES)
@click.argument("cluster", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--scale", default=1.0, show_default=True, help="The speed of one core of this machine.")
@click.option("--paced", is_flag=True, help="Give each device a core of its own, and slow that evenly.")
@click.option(
    "--plan",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run a manager for this plan on the entry device, and a worker on every device.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def up(cluster: Path, scale: float, paced: bool, plan: Path | None, command: tuple[str, ...]) -> None:
    """Build the devices and links of a cluster file, until Ctrl-C or until COMMAND has ended.

    COMMAND runs on this machine; `python -m testbed run` brings programs onto the devices, from here or from any other
    terminal.
    """
    described = decode_cluster(cluster.read_text(), str(cluster))
    layout = layout_of(described, scale=scale, paced=paced)
    if cores_used(layout) > MOST_CORES_USED / 2 * len(os.sched_getaffinity(0)):
        say(f"warning: the devices may use {cores_used(layout):.2g} cores together: they will slow each other down")
    with testbed.build(layout) as devices:
        say(_show(layout))
        programs = {} if plan is None else _serve(plan.resolve(), described.entry, devices)
        if command:
            raise SystemExit(subprocess.run(command, check=False).returncode)
        say("up until Ctrl-C; in another terminal: python -m testbed run NAME -- COMMAND")
        while not (ended := [name for name, program in programs.items() if program.poll() is not None]):
            time.sleep(1)
        raise HypsError(f"{ended[0]} has ended", "see above what it said")


@main.command(context_settings=_NAMES_AND_COMMAND, epilog=_RUN_EXAMPLES)
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on the device NAME of the testbed that is up; a shell if no command is given.

    `{NAME}` in the command stands for the address of that device.
    """
    found = find_device(name)
    line = on_device(found, name, command or (os.environ.get("SHELL", "sh"),))
    os.execvp(line[0], line)


@main.command()
def sweep() -> None:
    """Remove namespaces, control groups and programs that a killed run has left behind."""
    for name in testbed.sweep():
        click.echo(f"removed {name}")


def _serve(plan: Path, entry: str, devices: Mapping[str, Device]) -> dict[str, "subprocess.Popen[bytes]"]:
    """Start a manager on the entry device and a worker on each, which find the plan's files where they lie."""
    address = f"tcp://{devices[entry].address}:{_PORT}"
    command = [_BIN / "hyps-manager", plan, "--bind", address, "--insecure-lab"]
    programs = {f"the manager on {entry}": devices[entry].popen(command)}
    for name, device in devices.items():
        command = [_BIN / "hyps-worker", plan, "--manager", address, "--device", name, "--insecure-lab"]
        if device.machine.memory_bytes is not None:
            command += ["--memory", str(device.machine.memory_bytes)]
        programs[f"the worker on {name}"] = device.popen(command)
    say(f"clients on devices connect to {address}")
    return programs


def _show(layout: Layout) -> str:
    """Return devices and wires as two tables."""
    devices = [
        (
            name,
            layout.address(name),
            "all" if machine.cpu_fraction is None else f"{machine.cpu_fraction:.3g}",
            "all" if machine.memory_bytes is None else format_nbytes(machine.memory_bytes),
        )
        for name, machine in layout.machines.items()
    ]
    wires = [(wire.a, wire.b, *map(_shown_rate, wire.rates), format_seconds(wire.delay_s)) for wire in layout.wires]
    tables = [table(devices, ("device", "address", "cores", "memory"), "llrr", 120)]
    if wires:
        tables.append(table(wires, ("from", "to", "up", "down", "delay"), "llrrr", 120))
    return "\n\n".join(tables)


def _shown_rate(bytes_per_s: float | None) -> str:
    return "unlimited" if bytes_per_s is None else f"{bytes_per_s * 8 / 1e6:.4g} Mbit/s"


if __name__ == "__main__":
    main()
