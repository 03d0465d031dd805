"""Where the command `hypsc` begins."""

from typing import NoReturn

from hyps.entry import start


def hypsc() -> NoReturn:
    """Run `hypsc`."""
    start("hyps_compiler.cli", "main")
