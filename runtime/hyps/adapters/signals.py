"""Signals that tell a process to leave."""

import contextlib
import signal
from collections.abc import Callable, Iterator

LEAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def leaving_on_signals(leave: Callable[[], None]) -> Iterator[None]:
    """Have `leave` called for every signal that tells the process to end; for the main thread."""
    before = {number: signal.signal(number, lambda *_: leave()) for number in LEAVING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
