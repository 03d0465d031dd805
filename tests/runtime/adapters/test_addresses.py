"""Which addresses can be bound and connected to."""

import socket
from pathlib import Path

import pytest

from hyps.adapters.addresses import SCHEMES, look_up
from hyps.errors import HypsError, PeerError, UsageError


def bindable(address: str, allow_remote: bool = False) -> str:
    return look_up(address).bindable(address, allow_remote)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tcp://127.0.0.1:5757", "tcp://127.0.0.1:5757"),
        ("tcp://localhost:5757", "tcp://127.0.0.1:5757"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
        ("tcp://[::1]:5757", "tcp://[::1]:5757"),
    ],
)
def test_loopback_is_bound_as_it_is(address: str, told: str) -> None:
    assert bindable(address) == told


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5757", "tcp://*:5757", "tcp://192.0.2.1:5757", "tcp://[::]:5757"])
def test_what_other_machines_reach_needs_a_word(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        bindable(address)
    assert caught.value.code == "E_INSECURE"
    assert "--insecure-lab" in caught.value.hint
    assert bindable(address, allow_remote=True).startswith("tcp://")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "5757",
        "127.0.0.1:5757",
        "udp://127.0.0.1:5757",
        "inproc://x",
        "tcp://127.0.0.1",
        "tcp://:5757",
        "tcp://127.0.0.1:70000",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:1/path",
        "tcp://user@127.0.0.1:1",
        "tcp://[::1:5757",
        "ipc://",
        "ipc://@abstract",
        "ipc:///" + "x" * 200,
        "ipc:///tmp/a\nb",
    ],
)
def test_what_is_no_address_is_said(address: str) -> None:
    for use in (bindable, lambda text: look_up(text).connectable(text)):
        with pytest.raises(UsageError) as caught:
            use(address)
        assert caught.value.code == "E_ADDRESS"
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://*:5757"])
def test_nobody_connects_to_any_port_or_any_host(address: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        look_up(address).connectable(address)


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UsageError, match="host of `tcp://nowhere:1` is unknown"):
        bindable("tcp://nowhere:1")


def test_a_socket_file_is_taken_over_only_when_nobody_serves_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    address = f"ipc://{path}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(PeerError) as caught:
            bindable(address)
        assert caught.value.code == "E_ADDRESS_IN_USE"
    assert bindable(address) == address


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("keep me")
    with pytest.raises(UsageError, match="is a file, not a socket"):
        bindable(f"ipc://{path}")
    assert path.read_text() == "keep me"
    with pytest.raises(UsageError, match="folder"):
        bindable(f"ipc://{tmp_path}/missing/socket")


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme_refuses_an_empty_rest(scheme: str) -> None:
    with pytest.raises(HypsError):
        SCHEMES[scheme].connectable(f"{scheme}://")
