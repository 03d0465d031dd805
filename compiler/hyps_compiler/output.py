"""An output folder that appears whole or not at all."""

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType

from hyps.errors import OutputError, printable


class OutputFolder:
    """Collects work beside the folder to make and puts the finished one in its place by renaming.

    Everything that is not published is removed on leaving, also what an earlier process that was killed left behind.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        """Refuse what cannot work before any work is done.

        Raises:
            OutputError: the folder exists and `force` is not given, or its parent is no writable folder.
        """
        self._path = path
        shown = printable(os.fspath(path), 200)
        absolute = Path(os.path.abspath(path))
        if not os.fspath(path) or absolute == absolute.parent:
            raise OutputError(f"`{shown}` cannot be an output folder", "give a new folder with `-o`")
        if os.path.lexists(path) and (not path.is_dir() or path.is_symlink()):
            raise OutputError(f"`{shown}` exists and is no folder", "give another with `-o`", code="E_EXISTS")
        if path.exists() and not force and any(path.iterdir()):
            raise OutputError(
                f"`{shown}` exists and is not empty", "add --force to replace it, or give another", code="E_EXISTS"
            )
        if path.exists() and force and any(path.iterdir()) and not (path / "plan.json").exists():
            raise OutputError(
                f"`{shown}` holds something else than a plan, so --force does not replace it", code="E_EXISTS"
            )
        if not absolute.parent.is_dir():
            raise OutputError(
                f"the folder of `{shown}` does not exist", f"make it: mkdir -p {printable(str(path.parent))}"
            )
        if not os.access(absolute.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder of `{shown}` is not writable", "give another with `-o`", code="E_PERMISSION")
        self._absolute = absolute
        self._scratch = absolute.parent / f".{absolute.name}.tmp-{os.getpid()}"

    def __enter__(self) -> "OutputFolder":
        _remove_stale(self._absolute)
        try:
            self._scratch.mkdir()
        except OSError as error:
            raise OutputError(f"`{printable(str(self._path))}` cannot be made: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OutputError(f"`{printable(str(self._path))}` cannot be written: {error.strerror}") from error

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
        try:
            if self._absolute.exists():
                os.rename(self._absolute, old)
            os.rename(folder, self._absolute)
        except OSError as error:
            if old.exists():
                os.rename(old, self._absolute)
            raise OutputError(f"`{printable(str(self._path))}` cannot be written: {error.strerror}") from error


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left beside the folder."""
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        process = left.name.rsplit("-", 1)[-1]
        if process.isdigit() and not _is_alive(int(process)):
            with contextlib.suppress(OSError):
                shutil.rmtree(left)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
