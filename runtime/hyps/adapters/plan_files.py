"""Plan folders on disk: read `plan.json`, and make sure that every file it names is there, whole and unaltered."""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from hyps.adapters.machine import cpu_family
from hyps.errors import PlanError, printable
from hyps.formats.plan import Partition, Plan, decode_plan, file_digests

PLAN_FILE = "plan.json"

_COMPILE_AGAIN = "compile the model again, or copy the plan again from where it came"
_CHUNK_NBYTES = 256 * 1024
_MAX_PLAN_FILE_NBYTES = 64 * 2**20
_LINK_ERRNOS = (errno.ELOOP, errno.EMLINK, errno.ENOTDIR)
"""What opening with O_NOFOLLOW gives for a link; with O_DIRECTORY, or on the way through a file, ENOTDIR."""


def read_plan(folder: str | Path) -> Plan:
    """Return the plan in `folder`; its other files are not looked at, which is `check_files`' part.

    Raises:
        PlanError: there is no plan (`E_NO_PLAN`), or `plan.json` is no plan.
    """
    path = Path(folder)
    shown = printable(str(folder))
    hint = "give the folder that `hypsc compile` wrote"
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise PlanError(f"there is no plan folder `{shown}`", hint, code="E_NO_PLAN") from error
    if not path.is_dir():
        raise PlanError(f"`{shown}` is a file, not a plan folder", hint, code="E_NO_PLAN")
    if not os.path.lexists(path / PLAN_FILE):
        raise PlanError(f"the folder `{shown}` holds no `{PLAN_FILE}`", hint, code="E_NO_PLAN")
    with opened(path, PLAN_FILE) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return decode_plan(file.read(_MAX_PLAN_FILE_NBYTES + 1))


def check_files(
    folder: str | Path, plan: Plan, partitions: Collection[str] | None = None, *, drop_cache: bool = False
) -> None:
    """Make sure that the files of `partitions` (ids; all when None) are those that the plan was written with.

    Files are streamed, so that hashing needs no memory; with `drop_cache` their pages also leave the system's cache,
    which counts against a memory budget.

    Raises:
        PlanError: the first file that is missing (`E_MISSING`), is no plain file of the folder (`E_PATH`) or has
            other bytes than the plan says (`E_TAMPERED`).
    """
    chosen = [partition for partition in plan.partitions if partitions is None or partition.id in partitions]
    for (path, sha256), nbytes in sorted(_expected(chosen).items()):
        _check_file(Path(folder), path, sha256, nbytes, drop_cache)


def read_piece(folder: str | Path, path: str, offset: int, nbytes: int) -> tuple[bytes, int]:
    """Return at most `nbytes` of a file of the folder, from `offset`, and how many it has in all.

    Raises:
        PlanError: the file is missing, or is no plain file of the folder.
    """
    with opened(Path(folder), path) as descriptor:
        return os.pread(descriptor, nbytes, offset), os.fstat(descriptor).st_size


def length_error(path: str, found: int, expected: int) -> PlanError:
    """Return the refusal of a file of the plan that has `found` bytes instead of those expected (`E_TAMPERED`)."""
    message = f"file `{printable(path)}` of the plan has {found} bytes instead of {expected}"
    return PlanError(message, _COMPILE_AGAIN, "E_TAMPERED")


def check_cpu(plan: Plan) -> None:
    """Make sure that this machine can run the plan's layouts.

    Raises:
        PlanError: the plan is `native` to another CPU family; others run anywhere.
    """
    if plan.optimization == "native" and plan.cpu_family != cpu_family():
        target = printable(plan.cpu_family or "an unnamed CPU")
        raise PlanError(
            f"the plan was compiled for `{target}` and this machine is `{cpu_family()}`",
            "compile it with `--optimize portable`, or on this machine",
            code="E_CPU",
        )


def _expected(partitions: list[Partition]) -> dict[tuple[str, str], int | None]:
    """Return the expected length (None: not told) per path and digest; a file that several share is checked once."""
    lengths = {ref.path: ref.nbytes for part in partitions for ref in part.weights}
    return {(path, sha256): lengths.get(path) for part in partitions for path, sha256 in file_digests(part)}


def _check_file(folder: Path, path: str, sha256: str, nbytes: int | None, drop_cache: bool) -> None:
    with opened(folder, path) as descriptor:
        found = os.fstat(descriptor).st_size
        if nbytes is not None and found != nbytes:
            raise length_error(path, found, nbytes)
        digest = _sha256(descriptor)
        if drop_cache and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if digest != sha256:
        raise PlanError(
            f"file `{printable(path)}` of the plan is not the one it was written with", _COMPILE_AGAIN, "E_TAMPERED"
        )


def _sha256(descriptor: int) -> str:
    import hashlib  # brings OpenSSL, 3.5 MB that a runner which does not check files does without

    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_NBYTES)
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        digest.update(view[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def opened(folder: Path, path: str) -> Iterator[int]:
    """Yield a descriptor of a plain file under `folder`, without following a link on the way.

    A hard link is refused too: its bytes belong to someone else's file, which onnxruntime would serve.
    """
    shown = printable(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.split("/"):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo must not make us wait
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise PlanError(f"`{shown}` in the plan is no plain file of its own", _COMPILE_AGAIN, "E_PATH")
        yield descriptor
    except FileNotFoundError as error:
        raise PlanError(f"file `{shown}` of the plan is missing", _COMPILE_AGAIN, "E_MISSING") from error
    except OSError as error:
        reason = "a link leads there" if error.errno in _LINK_ERRNOS else printable(error.strerror or str(error))
        raise PlanError(f"file `{shown}` of the plan cannot be read: {reason}", _COMPILE_AGAIN, "E_PATH") from error
    finally:
        os.close(descriptor)
