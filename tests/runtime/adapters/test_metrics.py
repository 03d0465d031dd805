"""The metrics server: what it serves, to whom, and that nobody holds it up."""

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from exposition_parser import parse
from hyps.adapters import metrics
from hyps.adapters.metrics import MetricsServer
from hyps.errors import PeerError, UsageError
from hyps.formats.exposition import CONTENT_TYPE
from status_fixtures import manager

pytestmark = pytest.mark.network

WAIT_S = 20.0


class Owner:
    """A thread such as serves requests, which has the report."""

    def __init__(self) -> None:
        self._woken = threading.Event()
        self.is_over = False
        self.told = 0

    def wake(self) -> None:
        self._woken.set()

    def run(self, server: MetricsServer) -> None:
        while not self.is_over:
            self._woken.wait(0.2)
            self._woken.clear()
            if server.is_asked():
                self.told += 1
                server.tell(manager(3))


@contextmanager
def serving(owner: Owner | None = None) -> Iterator[MetricsServer]:
    wake: Callable[[], None] = owner.wake if owner is not None else lambda: None
    with MetricsServer("127.0.0.1:0", wake) as server, ThreadPoolExecutor(1) as pool:
        if owner is not None:
            pool.submit(owner.run, server)
        try:
            yield server
        finally:
            if owner is not None:
                owner.is_over = True


def get(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def connected(server: MetricsServer) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((str(parts.hostname), parts.port or 0), WAIT_S)


def test_a_scrape_gets_the_report_of_the_moment() -> None:
    owner = Owner()
    with serving(owner) as server:
        status, kind, text = get(server.url)
        assert (status, kind) == (200, CONTENT_TYPE)
        assert parse(text)["hyps_requests_done_total"].value() == 12_330
        time.sleep(0.3)
        get(server.url)
        assert owner.told == 2


def test_scrapes_at_once_share_a_report() -> None:
    owner = Owner()
    with serving(owner) as server, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(get, [server.url] * 4))
    assert {status for status, _, _ in answers} == {200}
    assert owner.told <= 2


def test_elsewhere_there_is_nothing() -> None:
    with serving() as server:
        assert get(server.url.replace("/metrics", "/"))[0] == 404
        assert get(server.url.replace("/metrics", "/../etc/passwd"))[0] == 404


def test_only_get_is_understood() -> None:
    with serving() as server:
        parts = urlsplit(server.url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=WAIT_S)
        connection.request("POST", "/metrics", b"x" * 100)
        assert connection.getresponse().status == 501
        connection.close()


def test_a_process_that_is_too_busy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TELL_S", 0.05)
    with serving() as server:
        assert get(server.url)[0] == 503


def test_clients_that_say_nothing_are_cut_off_and_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CONNECTION_S", 1.0)
    with serving(Owner()) as server, ExitStack() as stack:
        silent = [stack.enter_context(connected(server)) for _ in range(6)]
        assert get(server.url)[0] == 200
        start_s = time.monotonic()
        for client in silent:
            assert client.recv(100) == b""
        assert time.monotonic() - start_s < WAIT_S / 2


def test_clients_that_trickle_are_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CONNECTION_S", 1.0)
    with serving(Owner()) as server, connected(server) as client:
        client.settimeout(0.05)
        start_s, is_open = time.monotonic(), True
        while is_open:
            assert time.monotonic() - start_s < WAIT_S / 2
            try:
                client.send(b"G")
                is_open = client.recv(100) != b""
            except TimeoutError:
                continue
            except OSError:
                break


def test_more_clients_than_there_is_room_for_are_turned_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CONNECTION_S", 10 * WAIT_S)
    monkeypatch.setattr(metrics._Handler, "timeout", 10 * WAIT_S)
    with serving(Owner()) as server, ExitStack() as stack:
        for _ in range(metrics._MOST_CONNECTIONS):
            stack.enter_context(connected(server))
        with connected(server) as late:
            assert late.recv(100) == b""


def test_other_machines_get_in_only_where_that_is_asked_for() -> None:
    with pytest.raises(UsageError, match="could be read by other machines") as caught:
        MetricsServer("0.0.0.0:0", lambda: None)
    assert caught.value.code == "E_INSECURE"
    with MetricsServer("0.0.0.0:0", lambda: None, allow_remote=True) as server:
        assert server.url.startswith("http://0.0.0.0:")


@pytest.mark.parametrize("address", ["", "9464", "tcp://127.0.0.1:1", "127.0.0.1:x", "127.0.0.1:99999", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is no address for metrics"):
        MetricsServer(address, lambda: None)


def test_an_address_in_use_is_named() -> None:
    with serving() as server:
        address = urlsplit(server.url).netloc
        with pytest.raises(PeerError, match="in use") as caught:
            MetricsServer(address, lambda: None)
    assert caught.value.code == "E_ADDRESS_IN_USE"


def test_nobody_is_woken_once_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TELL_S", WAIT_S)
    woken: list[float] = []
    with MetricsServer("127.0.0.1:0", lambda: woken.append(time.monotonic())) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, server.url)
        while not woken:
            time.sleep(0.01)
        server.close()
        assert waiting.result(WAIT_S)[0] == 503
    assert server._text() is None
    assert len(woken) == 1


def test_nothing_is_left_when_it_is_closed() -> None:
    before = threading.active_count()
    with serving(Owner()) as server:
        get(server.url)
    deadline_s = time.monotonic() + WAIT_S
    while threading.active_count() > before:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    with pytest.raises(OSError, match="refused"):
        connected(server)
