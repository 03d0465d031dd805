"""Where the commands begin: nothing is imported before Ctrl-C is quiet, as most of a short command is importing."""

import importlib
import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130


def worker() -> NoReturn:
    """Run `hyps-worker`."""
    start("hyps.cli", "worker")


def manager() -> NoReturn:
    """Run `hyps-manager`."""
    start("hyps.cli_manager", "manager")


def start(module: str, name: str) -> NoReturn:
    """Import a command and leave with its exit status; an interrupt before it can speak for itself says nothing."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:  # else whoever started us wants none
        signal.signal(signal.SIGINT, lambda _signum, _frame: os._exit(_INTERRUPTED))
    command = getattr(importlib.import_module(module), name)
    try:
        signal.signal(signal.SIGINT, before)
        sys.exit(command())
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)
