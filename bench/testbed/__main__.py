"""The command `python -m testbed`."""

import os
import subprocess
import time
from pathlib import Path

import click

import testbed
from hyps.formats.cluster import decode_cluster
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import HypsGroup, say, table
from testbed.clusters import MOST_CORES_USED, cores_used, layout_of
from testbed.layout import Layout
from testbed.running import find_device, on_device

_UP_EXAMPLES = """\b
Examples:
  python -m testbed up clusters/pis.toml
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
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def up(cluster: Path, scale: float, paced: bool, command: tuple[str, ...]) -> None:
    """Build the devices and links of a cluster file, until Ctrl-C or until COMMAND has ended.

    COMMAND runs on this machine; `python -m testbed run` brings programs onto the devices, from here or from any other
    terminal.
    """
    layout = layout_of(decode_cluster(cluster.read_text(), str(cluster)), scale=scale, paced=paced)
    if cores_used(layout) > MOST_CORES_USED / 2 * len(os.sched_getaffinity(0)):
        say(f"warning: the devices may use {cores_used(layout):.2g} cores together: they will slow each other down")
    with testbed.build(layout):
        say(_show(layout))
        if command:
            raise SystemExit(subprocess.run(command, check=False).returncode)
        say("up until Ctrl-C; in another terminal: python -m testbed run NAME -- COMMAND")
        while True:
            time.sleep(1)


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
