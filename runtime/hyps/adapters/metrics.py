"""Serves metrics over HTTP, from a thread of its own; whoever scrapes cannot hold up what is measured.

The report belongs to the thread that serves requests, so it is asked for: the scrape notes that it wants one and wakes
that thread, which tells one when it comes by. A few scrapes at once are answered, each within a few seconds or not at
all; more are turned away.
"""

import contextlib
import errno
import ipaddress
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import urlsplit

from hyps.adapters.addresses import look_up
from hyps.errors import PeerError, UsageError, printable
from hyps.formats.exposition import CONTENT_TYPE, exposition
from hyps.formats.status import Report

_MOST_CONNECTIONS = 8
_CONNECTION_S = 5.0
"""That one may take from beginning to end."""

_TELL_S = 2.0
_FRESH_S = 0.2
"""A report that is no older serves another scrape."""

_POLL_S = 0.25


class MetricsServer:
    """Metrics at `http://HOST:PORT/metrics`; all but `is_asked` and `tell` may be called from any thread.

    Attributes:
        url: where they are.
    """

    def __init__(self, address: str, wake: Callable[[], None], *, allow_remote: bool = False) -> None:
        """Serve at `address`, HOST:PORT; `wake` has the thread that serves requests look at `is_asked`.

        Raises:
            UsageError: no such address (`E_ADDRESS`), or one that other machines reach (`E_INSECURE`).
            PeerError: it is taken (`E_ADDRESS_IN_USE`), or the system does not give it.
        """
        self._wake = wake
        self._asked = threading.Event()
        self._told = threading.Condition()
        self._report: Report | None = None
        self._told_s = -math.inf
        self._is_closed = False
        self._server = _bound(address, allow_remote, self._text)
        host, port = self._server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        self.url = f"http://{shown}:{port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
        self._thread.start()

    def is_asked(self) -> bool:
        """Return whether somebody waits for a report, which is then to be told with `tell`."""
        return self._asked.is_set()

    def tell(self, report: Report) -> None:
        """Answer those who wait."""
        with self._told:
            self._report, self._told_s = report, time.monotonic()
            self._asked.clear()
            self._told.notify_all()

    def close(self) -> None:
        """Stop serving, and wake nobody any more; what is being answered is not answered."""
        with self._told:
            self._is_closed = True
            self._told.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _text(self) -> str | None:
        """Return the text of a scrape; None when no report was told in time."""
        with self._told:
            if self._is_closed:
                return None
            if time.monotonic() - self._told_s > _FRESH_S:
                before_s = self._told_s
                self._asked.set()
                self._wake()
                self._told.wait_for(lambda: self._told_s > before_s or self._is_closed, _TELL_S)
                if self._told_s <= before_s:
                    return None
            report = self._report
        return None if report is None else exposition(report)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Takes a few connections, and each for a few seconds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], text: Callable[[], str | None]) -> None:
        self.text = text
        self._since_s: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether there is room for one more."""
        with self._lock:
            if len(self._since_s) >= _MOST_CONNECTIONS:
                return False
            self._since_s[request] = time.monotonic()
            return True

    def service_actions(self) -> None:
        """Cut off whoever takes too long; called again and again while it serves."""
        before_s = time.monotonic() - _CONNECTION_S
        with self._lock:
            late = [request for request, since_s in self._since_s.items() if since_s < before_s]
        for request in late:
            with contextlib.suppress(OSError):  # it has just ended by itself
                request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            self._since_s.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the scraper's affair."""


class _Handler(BaseHTTPRequestHandler):
    """One scrape per connection."""

    server: _Server
    server_version, sys_version = "hyps", ""
    timeout = _CONNECTION_S

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, "metrics are at /metrics\n")
            return
        text = self.server.text()
        if text is None:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "the process is too busy to tell how it is\n")
        else:
            self._answer(HTTPStatus.OK, text)

    def _answer(self, status: HTTPStatus, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing: scrapes come every few seconds."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _bound(address: str, allow_remote: bool, text: Callable[[], str | None]) -> _Server:
    host, port = _host_and_port(address, allow_remote)
    kind = _Server6 if ipaddress.ip_address(host).version == 6 else _Server
    try:
        return kind((host, port), text)
    except OSError as error:
        refusal = f"metrics cannot be served at `{printable(address)}`: {printable(error.strerror or str(error))}"
        code = "E_ADDRESS_IN_USE" if error.errno == errno.EADDRINUSE else "E_ADDRESS"
        raise PeerError(refusal, "choose another address with `--metrics`", code) from error


def _host_and_port(address: str, allow_remote: bool) -> tuple[str, int]:
    try:
        bindable = look_up("tcp://").bindable(f"tcp://{address}", allow_remote)
    except UsageError as error:
        if error.code == "E_INSECURE":
            text = f"metrics at `{printable(address)}` could be read by other machines"
            hint = "use `127.0.0.1:PORT`, or accept the risk in a closed lab with `--insecure-lab`"
            raise UsageError(text, hint, error.code) from error
        text = f"`{printable(address)}` is no address for metrics"
        raise UsageError(text, "write it like 127.0.0.1:9464", error.code) from error
    parts = urlsplit(bindable.replace(":*", ":0"))
    return str(parts.hostname), parts.port or 0
