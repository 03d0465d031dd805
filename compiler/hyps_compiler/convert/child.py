"""The converting child process: reads one request from its standard input, leaves a model or a refusal.

`python -m hyps_compiler.convert.child` imports the source's framework, which may take gigabytes and prints; the parent
never does. The parent keeps this process' standard input open for as long as it wants the conversion: when the parent
ends, however it ends, this process cleans up and ends too.
"""

import importlib
import logging
import os
import shutil
import sys
import threading
import traceback
from importlib.metadata import packages_distributions
from pathlib import Path

import msgspec

from hyps.errors import DependencyError, HypsError, UsageError, printable
from hyps_compiler.convert.kinds import Kind, kind_named
from hyps_compiler.convert.request import MADE_NAME, REFUSAL_NAME, REFUSALS, Made, Refusal, Request, first_line


def main() -> int:
    """Serve the one request on standard input; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_parent, args=(request.folder,), daemon=True).start()
    try:
        made = run(request)
    except Exception as error:  # the top of this process: whatever it was, the parent must be told
        traceback.print_exc()
        Path(request.folder, REFUSAL_NAME).write_bytes(msgspec.json.encode(_to_refusal(error, request)))
        return 1
    Path(request.folder, MADE_NAME).write_bytes(msgspec.json.encode(made))
    return 0


def run(request: Request) -> Made:
    """Convert as asked, leave the model and the references in the request's folder, and return by what it was made.

    Raises:
        DependencyError: a package that the kind needs cannot be imported.
        ModelError: the source cannot be loaded or expressed in ONNX.
        UsageError: an input to fix does not exist or has another rank; a module of the user's cannot be imported.
    """
    kind = kind_named(request.kind)
    _import_frameworks(kind)
    _import_users_modules(request.modules)
    module = importlib.import_module(f"hyps_compiler.convert.{kind.module}")
    made: Made = module.run(request)
    return made


def _end_with_parent(folder: str) -> None:
    """Wait for the end of standard input, then remove this process' files and end it, whatever it is doing."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read: its lock, held here, would break the normal exit
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _import_frameworks(kind: Kind) -> None:
    """Import what everything else here needs, so that a broken installation is told from a broken model."""
    for name in kind.packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DependencyError(
                f"`{name}` is installed but cannot be imported: {printable(str(error))}",
                f"install it anew: pip install --force-reinstall {_distribution_of(name)}",
            ) from error


def _distribution_of(package: str) -> str:
    """Return the name under which what is imported as `package` was installed."""
    return next(iter(packages_distributions().get(package, [package])))


def _import_users_modules(names: tuple[str, ...]) -> None:
    if names:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the user's own code
            raise UsageError(f"the module `{printable(name)}` cannot be imported: {printable(str(error))}") from error


def _to_refusal(error: Exception, request: Request) -> Refusal:
    """Return what the parent is told about an error."""
    name = printable(Path(request.source).name)
    if isinstance(error, HypsError):
        kind = next(word for word, error_class in REFUSALS.items() if type(error) is error_class)
        return Refusal(kind=kind, message=error.message, hint=error.hint, code=error.code)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return Refusal(kind="failed", message=f"memory ran out in the conversion of `{name}`", code="E_MEMORY")
    if isinstance(error, OSError) and error.errno is not None:
        return Refusal(kind="output", message=f"the ONNX model of `{name}` cannot be written: {error.strerror}")
    said = f"{type(error).__name__}: {first_line(error)}"
    return Refusal(
        kind="model",
        message=f"`{name}`, {kind_named(request.kind).what}, cannot be converted: {said}",
        hint="run it again with -v to see what its framework and the converter print",
    )


if __name__ == "__main__":
    sys.exit(main())
