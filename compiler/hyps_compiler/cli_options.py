"""What the commands of `hypsc` share: kinds of arguments, options that mean the same everywhere, and refusals."""

import errno
import functools
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from hyps.adapters.guard import limit_seconds
from hyps.dependencies import check_safe
from hyps.errors import DependencyError, UsageError, printable
from hyps.terminal import NBYTES, TIMEOUT
from hyps_compiler.converting import Converting

_Result = TypeVar("_Result")


class _Place(click.Path):
    """A path; an empty one, as an unset shell variable gives, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            UsageError: it is empty, or longer than the system allows.
        """
        shown = param.opts[0] if param else "a path"
        if value == "":
            raise UsageError(f"`{shown}` is empty", "give the path of a file or folder")
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UsageError(f"`{shown}` is longer than a path may be", "give a shorter one") from error
        return super().convert(value, param, ctx)


PATH = _Place(path_type=Path)

OBJECTIVE_NAMES = ("latency", "throughput", "memory", "energy", "bytes")
"""Those of `hyps_passes.objectives`, known here without numpy."""

_MOST_BATCHES = 16


class _Batches(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """Batch sizes, such as `1,4,16`."""

    name = "batches"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> tuple[int, ...]:
        """Return the sizes, ascending, each once.

        Raises:
            UsageError: the text is no list of sizes.
        """
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isdecimal() and 1 <= int(word) <= 2**20 for word in words) or len(words) > _MOST_BATCHES:
            raise UsageError(f"--batch `{printable(value)}` is no list of batch sizes", "write it like 1,4,16")
        return tuple(sorted({int(word) for word in words}))


BATCHES = _Batches()

SHAPES_HELP = "Shape of an input with open dimensions, as NAME:1x3x224x224; only for sizes, the plan keeps them open."
_SIZE = re.compile("[1-9][0-9]{0,17}")
_TIMEOUT_HELP = "Longest that onnxruntime may take to open the model, or to run it on one request, such as 30s or 2h."
_TENSOR_HELP = (
    "Most memory one tensor that the model computes may take; all that follows from constants alone may take four times"
    " as much together, and weights may be larger."
)

timeout_option = click.option(
    "--timeout",
    type=TIMEOUT,
    default="10m",
    show_default=True,
    expose_value=False,
    callback=lambda _ctx, _param, seconds: limit_seconds(seconds),
    help=_TIMEOUT_HELP,
)

max_tensor_option = click.option(
    "--max-tensor-bytes", "max_tensor", type=NBYTES, default="2GiB", show_default=True, help=_TENSOR_HELP
)


_MODULE_HELP = "Python module that registers classes of a model that is to be converted; may repeat."


def converting_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Give a command that takes a model the options for one that is no ONNX file; it takes them as `converting`."""

    @functools.wraps(command)
    def bundled(*args: Any, trust: bool, modules: tuple[str, ...], **told: Any) -> _Result:
        return command(*args, converting=Converting(trust, modules), **told)

    with_module = click.option("--module", "modules", multiple=True, help=_MODULE_HELP)(bundled)
    return click.option("--trust", is_flag=True, help="Run code in a MODEL to convert, as reading a pickle does.")(
        with_module
    )


def require_compiler(*unsafe: str) -> None:
    """Refuse at once where only the light runtime is installed, or an old version of one of the packages `unsafe`.

    Raises:
        DependencyError: with the line that installs what is needed.
    """
    missing = [name for name in ("onnx", "onnx_ir", "networkx") if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"the compiler needs {', '.join(missing)}, which is not installed", 'pip install "hyps[compiler]"'
        )
    check_safe(*unsafe)


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `--input NAME:SHAPE` gives.

    Raises:
        UsageError: one of them is no such thing.
    """
    shapes = {}
    for text, name, sizes in _split_shapes(texts):
        if not all(_SIZE.fullmatch(size) for size in sizes):
            raise _no_shape(text)
        shapes[name] = tuple(map(int, sizes))
    return shapes


def parse_open_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes that `--input NAME:SHAPE` gives, in which `?` is a dimension that stays open.

    Raises:
        UsageError: one of them is no such thing.
    """
    shapes = {}
    for text, name, sizes in _split_shapes(texts):
        if not all(size == "?" or _SIZE.fullmatch(size) for size in sizes):
            raise _no_shape(text)
        shapes[name] = tuple(None if size == "?" else int(size) for size in sizes)
    return shapes


def _split_shapes(texts: tuple[str, ...]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each text, the name in it, and the words of the shape in it."""
    for text in texts:
        name, _, dims = text.rpartition(":")
        if not name:
            raise _no_shape(text)
        yield text, name, dims.split("x")


def _no_shape(text: str) -> UsageError:
    return UsageError(f"--input `{printable(text)}` is no NAME:SHAPE", "write it like image:1x3x224x224")


def print_json(value: Any) -> None:
    """Print a result for machines on stdout."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))
