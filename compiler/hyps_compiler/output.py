"""An output folder that appears whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from hyps.adapters.guard import forget_scratch, note_scratch
from hyps.containment import remove_folder
from hyps.errors import ModelError, OutputError, printable

_ANOTHER = "give another place with `-o`"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM = 64 * 1024
_SCRATCH = re.compile(r"hyps-([1-9][0-9]{0,9})-[a-z0-9_]{8}", re.ASCII)


class OutputFolder:
    """Collects work beside the folder to make and puts the finished one in its place by renaming.

    Everything that is not published is removed on leaving, also what an earlier process that was killed left behind.
    """

    def __init__(self, path: Path, *, force: bool, marker: str = "plan.json", holds: str = "a plan") -> None:
        """Take the place of the folder; `force` lets one that `holds` the same be replaced, as its `marker` shows."""
        self._path, self._force = path, force
        self._marker, self._holds = marker, holds
        self._absolute = self._scratch = path

    def __enter__(self) -> "OutputFolder":
        """Refuse what cannot work before any work is done.

        Raises:
            OutputError: the folder exists and `force` is not given, or its parent is no writable folder.
        """
        try:
            self._absolute = Path(os.path.abspath(self._path))
            _check_place(self._absolute, _shown(self._path))
            _remove_stale(self._absolute)
            self._check_content()
            self._scratch = self._absolute.parent / f".{self._absolute.name}.tmp-{os.getpid()}"
            note_scratch(self._scratch)
            self._scratch.mkdir()
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_full = isinstance(error, ModelError) and shutil.disk_usage(self._scratch).free < _NO_ROOM
        remove_folder(self._scratch)
        if is_full and error is not None:  # onnxruntime, which writes here too, does not tell why it could not
            raise _disk_full(self._path) from error
        if isinstance(error, OSError) and (error.errno in _FULL or error.filename is None):
            raise _unwritable(self._path, error) from error

    def scratch(self, name: str) -> Path:
        """Return a new empty folder that lives until the end."""
        folder = self._scratch / name
        folder.mkdir()
        return folder

    def publish(self, folder: Path) -> None:
        """Put `folder` where the output belongs, replacing what is there.

        Raises:
            OutputError: it cannot be renamed.
        """
        old = self._scratch / "replaced"
        self._check_content()  # another process may have been faster
        forget_scratch(self._scratch)  # it may hold the old plan for a moment, which the next run puts back
        try:
            if self._absolute.exists():
                os.rename(self._absolute, old)
            os.rename(folder, self._absolute)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        finally:  # also when a signal comes between the two
            _put_back(old, self._absolute)

    def _check_content(self) -> None:
        """Refuse to replace anything but an empty folder, or with `force` what this one is to hold."""
        path, shown = self._path, _shown(self._path)
        if not os.path.lexists(path):
            return
        if not path.is_dir() or path.is_symlink():
            raise OutputError(f"{shown} exists and is no folder", _ANOTHER, code="E_EXISTS")
        if not any(path.iterdir()):
            return
        if not (path / self._marker).exists():
            raise OutputError(f"{shown} exists and holds something else than {self._holds}", _ANOTHER, code="E_EXISTS")
        if not self._force:
            hint = "add --force to replace it, or give another folder with `-o`"
            raise OutputError(f"{shown} exists and is not empty", hint, code="E_EXISTS")


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file, which then appears whole at `path`, or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    note_scratch(beside)
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        beside.unlink(missing_ok=True)
        forget_scratch(beside)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards; one whose process was shot goes when the next one is made.

    Raises:
        OutputError: there is no place for one.
    """
    try:
        _remove_stale_scratch(Path(tempfile.gettempdir()))
        folder = TemporaryDirectory(prefix=f"hyps-{os.getpid()}-", ignore_cleanup_errors=True)
    except OSError as error:
        hint = "make room, or name a folder on another disk in the environment variable TMPDIR"
        raise OutputError(f"no temporary folder can be made: {error.strerror or error}", hint) from error
    note_scratch(Path(folder.name))
    try:
        with folder as name, contextlib.ExitStack() as lock:
            with contextlib.suppress(OSError):  # not every file system has locks
                lock.enter_context(_locked(Path(name)))
            yield Path(name)
    finally:  # children of children may be ending only now
        remove_folder(Path(folder.name))
    forget_scratch(Path(folder.name))


def check_output_file(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        OutputError: it exists and `force` is not given, is no plain file, or its folder is no writable folder.
    """
    try:
        _check_place(Path(os.path.abspath(path)), _shown(path))
        if path.exists() and not path.is_file():
            raise OutputError(f"{_shown(path)} exists and is no plain file", _ANOTHER, code="E_EXISTS")
        if os.path.lexists(path) and not force:
            raise OutputError(f"{_shown(path)} exists", "add --force to replace it", code="E_EXISTS")
    except OSError as error:
        raise _unwritable(path, error) from error


def check_apart(output: Path, *sources: str | Path | None) -> None:
    """Refuse an output that is a file that is read for it, lies in such a folder, or is a folder that holds one.

    With `--force` it would be gone. None and what does not exist are passed over, and links are followed.

    Raises:
        OutputError: it is one of them, in one of them or around one of them.
    """
    for source in [Path(source) for source in sources if source is not None]:
        try:
            found = _overlap(output, source)
        except (OSError, ValueError):  # a name that the system cannot have; whoever opens it says so
            continue
        if found:
            raise OutputError(f"{_shown(output)} {found}", _ANOTHER, code="E_EXISTS")


def _overlap(output: Path, source: Path) -> str:
    """Return in words how an output is in the way of a source; nothing where it is not."""
    if not source.exists():
        return ""
    if output.exists() and output.samefile(source):  # hard links too
        return f"is {_shown(source)}, which is read and would be lost"
    made, read = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if made.is_relative_to(read):
        return f"lies in {_shown(source)}, which is read and stays as it is"
    return f"holds {_shown(source)}, which is read and would be lost" if read.is_relative_to(made) else ""


def quoted(name: str) -> str:
    """Return a name as a shell takes it, for commands in hints."""
    return shlex.quote(name) if name.isprintable() else printable(shlex.quote(name))


def _check_place(absolute: Path, shown: str) -> None:
    """Refuse a path whose folder cannot take it."""
    folder = absolute.parent
    try:
        os.fspath(absolute).encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"the path {shown} is no UTF-8, which onnxruntime needs", _ANOTHER, "E_NAME") from error
    if absolute == folder:
        raise OutputError(f"{shown} cannot be replaced", _ANOTHER)
    if not folder.is_dir():
        if _is_free(folder):
            hint = f"make its folder: mkdir -p {quoted(os.path.relpath(folder))}"
            raise OutputError(f"the folder of {shown} does not exist", hint)
        raise OutputError(f"{shown} lies under something that is no folder", _ANOTHER)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder of {shown} is not writable", _ANOTHER, code="E_PERMISSION")
    if absolute.is_dir() and absolute.samefile(os.curdir):
        raise OutputError(f"{shown} is the folder that the command runs in", _ANOTHER)


def _unwritable(path: Path, error: OSError) -> OutputError:
    if error.errno in _FULL:
        return _disk_full(path)
    code = "E_PERMISSION" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
    return OutputError(f"{_shown(path)} cannot be written: {error.strerror or error}", _ANOTHER, code=code)


def _disk_full(path: Path) -> OutputError:
    hint = "make room there, or give a place on another disk with `-o`"
    return OutputError(f"there is no room left to write {_shown(path)}", hint, code="E_DISKFULL")


def _is_free(path: Path) -> bool:
    """Return whether nothing is at `path`, nor anything but a folder in the place of one of its folders."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        pass
    return False


def _shown(path: Path) -> str:
    return f"`{printable(os.fspath(path), 200)}`"


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left beside the folder, and put back what it had just set aside."""
    start = f".{path.name}.tmp-"
    for left in [entry for entry in path.parent.iterdir() if entry.name.startswith(start)]:
        process = left.name.removeprefix(start)
        if process.isdigit() and not _is_alive(int(process)):
            with contextlib.suppress(OSError):
                _put_back(left / "replaced", path)
                shutil.rmtree(left)


def _remove_stale_scratch(folder: Path) -> None:
    """Remove the temporary folders in `folder` whose processes, of the same user, have ended."""
    with os.scandir(folder) as entries:
        found = [(entry, named) for entry in entries if (named := _SCRATCH.fullmatch(entry.name))]
    for entry, named in found:
        with contextlib.suppress(OSError):  # another process may be faster, or still hold the lock
            is_ours = entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            if is_ours and not _is_alive(int(named[1])):
                with _locked(Path(entry.path)):
                    shutil.rmtree(entry.path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder: process numbers alone say nothing where containers share it.

    Raises:
        BlockingIOError: another process holds it.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        os.rename(old, path)


def _is_alive(process: int) -> bool:
    """Return whether the process runs; one that has ended, of which nobody has taken note yet, does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2]
    except OSError:  # it ended just now, or the system has no such file
        return True
    return state.split()[:1] != ["Z"]
