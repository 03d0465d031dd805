"""Logs as JSON, one object per line, for whatever collects them."""

import json
import logging
import math
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

_PLAIN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_FIRST = ("request", "epoch", "partition", "device")
_MOST_CHARS = 10_000


class JsonLines(logging.Formatter):
    """Makes a line of each record: `time` (UTC), `level`, `logger`, `message`, its `extra`, and `exception`.

    >>> record = logging.LogRecord("hyps.node", logging.INFO, "", 0, "loaded %s", ("conv1",), None)
    >>> record.created, record.partition = 0.0, "conv1"
    >>> JsonLines(device="pi").format(record)[1:74]
    '"time":"1970-01-01T00:00:00.000Z","level":"info","logger":"hyps.node","me'
    """

    def __init__(self, device: str = "") -> None:
        """Take what this process is called, which is told where a record names no other device."""
        super().__init__()
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        told["message"] = record.getMessage()[:_MOST_CHARS]
        extra = {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        if self._device:
            extra.setdefault("device", self._device)
        first = {name: extra.pop(name) for name in _FIRST if name in extra}
        fields = {name: _plain(value) for name, value in {**first, **dict(sorted(extra.items()))}.items()}
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))[-_MOST_CHARS:]
        return json.dumps({**told, **fields}, separators=(",", ":"), allow_nan=False)


def json_handler(stream: TextIO, device: str = "") -> logging.Handler:
    """Return a handler that writes JSON lines to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(device))
    return handler


def _plain(value: object) -> Any:
    """Return what JSON can say of a value."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)[:_MOST_CHARS]
