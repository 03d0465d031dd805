"""Where this process is."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from hyps.adapters.host import address_towards, cache_folder, host_id, is_loopback, private_folder
from hyps.errors import UsageError


def test_the_network_and_the_mounts_tell_hosts_apart() -> None:
    found = host_id()
    assert found == host_id()
    assert f":{os.stat('/proc/self/ns/net').st_ino}:" in found
    assert f":{os.stat('/proc/self/ns/mnt').st_ino}:" in found


def test_the_loopback_is_reached_from_the_loopback() -> None:
    assert is_loopback(address_towards("tcp://127.0.0.1:5757"))
    assert address_towards("ipc:///tmp/x") == ""


@pytest.mark.parametrize("address", ["tcp://nowhere.invalid:1", "tcp://127.0.0.1:x", "tcp://:"])
def test_an_address_without_a_way_there_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        address_towards(address)
    assert caught.value.code == "E_ADDRESS"


def test_the_cache_is_where_the_system_wants_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hyps" / "partitions"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "hyps" / "partitions"


def test_a_private_folder_is_private_and_goes() -> None:
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("killed00", "listens0", "justmade", "notours0", "is_empty")
    folders = {name: tmp_path / f"hyps-{name}" for name in names}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    sockets = {name: socket.socket(socket.AF_UNIX) for name in ("killed00", "listens0", "justmade")}
    for name, each in sockets.items():
        each.bind(str(folders[name] / "data"))
    sockets["listens0"].listen()
    for name in ("killed00", "justmade"):
        sockets[name].close()
    (folders["notours0"] / "file").write_text("kept")
    for name in set(names) - {"justmade"}:
        os.utime(folders[name], (0, 0))

    with private_folder() as held:
        (end := socket.socket(socket.AF_UNIX)).bind(str(held / "data"))
        end.close()
        os.utime(held, (0, 0))  # nobody listens, but it is held
        with private_folder():
            assert held.exists()

    sockets["listens0"].close()
    assert {name for name in names if folders[name].exists()} == set(names) - {"killed00"}
