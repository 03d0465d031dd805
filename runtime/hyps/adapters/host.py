"""Where this process is: which machine and network, at which address others see it, and where its own files go."""

import contextlib
import fcntl
import ipaddress
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hyps.errors import UsageError, printable

_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_PREFIX = "hyps-"
_SETTLED_S = 60.0
"""So old is the folder of a killed process at least before another one removes it."""


def host_id() -> str:
    """Return what processes have in common that can reach each other by a path; empty where the system does not tell.

    That is the machine since it was started, its network and mount namespaces, and the user: devices that are emulated
    on one machine share all but the network, and would otherwise go around the links that are emulated for them.
    """
    try:
        boot = Path(_BOOT_ID).read_text(encoding="ascii").strip()
        spaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt")]
    except (OSError, UnicodeDecodeError):
        return ""
    return f"{boot}:{spaces[0]}:{spaces[1]}:{os.getuid()}"


def address_towards(peer: str) -> str:
    """Return the address of this machine from which the tcp:// address `peer` is reached; empty for other kinds.

    Raises:
        UsageError: there is no way there, or it is no address (`E_ADDRESS`).
    """
    if not peer.startswith("tcp://"):
        return ""
    host, _, port = peer.removeprefix("tcp://").rpartition(":")
    try:
        number = int(port)
        found = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: the system only looks for the way
            return str(probe.getsockname()[0])
    except (OSError, ValueError, UnicodeError) as error:
        raise UsageError(
            f"there is no way to `{printable(peer)}`: {printable(str(error))}", code="E_ADDRESS"
        ) from error


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an IP address."""
    return ipaddress.ip_address(address).is_loopback


def tcp_address(host: str, port: int | str) -> str:
    """Return the address to bind or connect to.

    >>> tcp_address("::1", 0), tcp_address("10.0.0.1", 5757)
    ('tcp://[::1]:0', 'tcp://10.0.0.1:5757')
    """
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def cache_folder() -> Path:
    """Return the user's folder for what can be fetched again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "hyps" / "partitions"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder that only this user can look into; it is removed with all that is in it.

    What killed processes left of theirs is removed, too.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _sweep(Path(folder).parent)
            yield Path(folder)
        finally:
            os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove folders of this user that nobody holds and where nobody listens; new ones may not be held yet."""
    for folder in root.glob(f"{_PREFIX}????????"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            is_old = time.time() - found.st_mtime > _SETTLED_S
            if is_old and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    files = [*folder.iterdir()]
    if not files or not all(stat.S_ISSOCK(file.lstat().st_mode) for file in files):
        return False  # somebody else's, whatever its name
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
    return not any(map(_is_listened_to, files))


def _is_listened_to(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(0.0)
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
