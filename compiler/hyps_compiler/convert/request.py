"""What the parent asks of the converting child process, and how the child says no; both travel as JSON."""

import msgspec

from hyps.errors import DependencyError, HypsError, ModelError, OutputError, UsageError, printable

MODEL_NAME = "model.onnx"
"""The file the child leaves in the request's folder."""

DATA_NAME = "model.onnx.data"
"""The weights beside it, where they are too large for one file."""

REFUSAL_NAME = "refusal.json"
"""The file the child leaves instead when it refuses."""

DEFAULT_OPSET = 17
"""tf2onnx writes its cleanest graphs at 17; at 18, the highest it knows, transposes stay around pooling."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One conversion."""

    source: str
    """Absolute path of the `.keras` file or the SavedModel folder."""
    folder: str
    """Absolute path of an empty folder for the child's files."""
    data_name: str = DATA_NAME
    """The name by which the model refers to the weights beside it, once both are in place."""
    opset: int = DEFAULT_OPSET
    inputs: dict[str, tuple[int | None, ...]] = {}
    """Shapes to fix, by input name; None keeps a dimension dynamic."""
    modules: tuple[str, ...] = ()
    """Python modules to import first: they register the model's own classes with Keras."""
    constant_nbytes: int = 64_000_000
    """Weights that pass through TensorFlow's and tf2onnx's tools, which take 10 to 20 times their bytes; the largest
    ones beyond this go around them."""
    file_nbytes: int = 2_000_000_000
    """The largest ONNX file without weights beside it; protobuf's own limit is 2 GiB."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why the child made no model."""

    kind: str
    """One of `KINDS`."""
    message: str
    hint: str = ""
    code: str = ""


KINDS: dict[str, type[HypsError]] = {
    "dependency": DependencyError,
    "failed": HypsError,
    "model": ModelError,
    "output": OutputError,
    "usage": UsageError,
}
"""Whose fault a refusal is."""


def first_line(error: BaseException) -> str:
    """Return what an error of somebody else's code says, as one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, limit=200).rstrip(".")
