"""Addresses of workers: which can be bound, which can be connected to, and which only with a warning."""

import ipaddress
import os
import socket
import stat
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyps.errors import PeerError, UsageError, printable

_IPC_PATH_CHARS = 100


@dataclass(frozen=True, slots=True)
class Scheme:
    """What an address of one kind must be; each function returns what libzmq is to be told."""

    bindable: Callable[[str, bool], str]
    connectable: Callable[[str], str]


def look_up(address: str) -> Scheme:
    """Return the kind of address that `address` is.

    Raises:
        UsageError: it is of no kind that there is (`E_ADDRESS`).
    """
    scheme, separator, _ = address.partition("://")
    if not separator or scheme not in SCHEMES:
        raise _no_address(address)
    return SCHEMES[scheme]


def _bind_tcp(address: str, allow_remote: bool) -> str:
    host, port = _host_and_port(address)
    ip = ipaddress.ip_address("0.0.0.0") if host == "*" else _resolve(address, host)
    if not ip.is_loopback and not allow_remote:
        raise UsageError(
            f"`{printable(address)}` can be reached by other machines, and this version does not encrypt",
            "bind to `tcp://127.0.0.1:PORT`, or accept the risk in a closed lab with `--insecure-lab`",
            code="E_INSECURE",
        )
    return _tcp(ip, port)


def _connect_tcp(address: str) -> str:
    host, port = _host_and_port(address)
    if port == 0 or host == "*":
        raise _no_address(address)
    return _tcp(_resolve(address, host), port)


def _bind_ipc(address: str, allow_remote: bool) -> str:
    """Refuse a path where libzmq would remove a file or push another worker out: it does both without a word."""
    path = Path(_ipc_path(address))
    if not path.parent.is_dir():
        raise UsageError(f"the folder of `{printable(address)}` does not exist", code="E_ADDRESS")
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(
                f"`{printable(str(path))}` is a file, not a socket", "choose another path", code="E_ADDRESS"
            )
        if _is_served(path):
            raise in_use(address)
    return address


def _connect_ipc(address: str) -> str:
    _ipc_path(address)
    return address


SCHEMES: Mapping[str, Scheme] = {"tcp": Scheme(_bind_tcp, _connect_tcp), "ipc": Scheme(_bind_ipc, _connect_ipc)}
"""The kinds of address there are."""


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _no_address(address) from error
    if not host or port is None or parts.path or parts.query or parts.fragment or parts.username:
        raise _no_address(address)
    return host, port


def _resolve(address: str, host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"the host of `{printable(address)}` is unknown", code="E_ADDRESS") from error
    return min((ipaddress.ip_address(str(entry[4][0])) for entry in found), key=lambda ip: ip.version)


def _tcp(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    host = f"[{ip}]" if ip.version == 6 else str(ip)
    return f"tcp://{host}:{port if port else '*'}"


def _ipc_path(address: str) -> str:
    path = address.removeprefix("ipc://")
    if not path or path.startswith("@") or not path.isprintable() or len(os.fsencode(path)) > _IPC_PATH_CHARS:
        raise _no_address(address)
    return path


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def in_use(address: str) -> PeerError:
    """Return the refusal of an address that another process serves."""
    hint = "stop what listens there, or choose another address with `--bind`"
    return PeerError(f"`{printable(address)}` is already in use", hint, "E_ADDRESS_IN_USE")


def _no_address(address: str) -> UsageError:
    hint = "write it like tcp://127.0.0.1:5757 or ipc:///run/user/1000/hyps"
    return UsageError(f"`{printable(address)}` is no address", hint, "E_ADDRESS")
