"""Asks a running manager or worker how it fares."""

import itertools
import time
from types import TracebackType
from typing import Self

from hyps.adapters.transport import Client, ZmqClient
from hyps.errors import PeerError, printable
from hyps.formats.messages import AskStatus, Failed, Status, decode_from_worker, encode
from hyps.formats.status import MAX_LEVELS, MAX_REPORT_NBYTES, Report, decode_report


def observe(address: str) -> "Observer":
    """Return an observer of the manager or worker at `address`; whether anybody is there shows when it asks.

    Raises:
        UsageError: no address.
    """
    return Observer(ZmqClient(address, max_nbytes=MAX_REPORT_NBYTES), address)


class Observer:
    """One connection over which reports are asked for, one at a time."""

    def __init__(self, client: Client, shown: str) -> None:
        """Take the connection, and the address it goes to as it is shown."""
        self._client, self._shown = client, printable(shown)
        self._numbers = itertools.count(1)

    def ask(self, timeout_s: float = 5.0, levels: int = MAX_LEVELS) -> Report:
        """Return how it fares, with `levels` levels of groups within groups.

        Raises:
            PeerError: nobody answers in time, or not with a report.
        """
        request, deadline_s = f"status-{next(self._numbers)}", time.monotonic() + timeout_s
        self._client.send([encode(AskStatus(request, levels))], timeout_s)
        while (left_s := deadline_s - time.monotonic()) > 0:
            parts = self._client.receive(left_s)
            if parts is None:
                continue
            message = decode_from_worker(memoryview(parts[0]))
            if isinstance(message, Failed) and message.request in ("", request):
                text = f"`{self._shown}` does not tell how it is: {printable(message.message)}"
                raise PeerError(text, "use the same version of hyps on both sides", printable(message.code))
            if isinstance(message, Status) and message.request == request and len(parts) == 2:
                return decode_report(memoryview(parts[1]))
        raise PeerError(f"`{self._shown}` did not answer within {timeout_s:.3g} s", "see whether it still runs")

    def close(self) -> None:
        """Leave."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
