"""The command `python -m testbed`."""

import click

import testbed
from hyps.terminal import HypsGroup


@click.group(cls=HypsGroup)
def main() -> None:
    """Slow devices and links on one Linux machine."""


@main.command()
def sweep() -> None:
    """Remove namespaces, control groups and programs that a killed run has left behind."""
    for name in testbed.sweep():
        click.echo(f"removed {name}")


if __name__ == "__main__":
    main()
