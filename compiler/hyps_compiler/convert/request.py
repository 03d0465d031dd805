"""What the parent asks of the converting child process, and what the child answers; all of it travels as JSON."""

import msgspec

from hyps.errors import DependencyError, HypsError, ModelError, OutputError, TensorError, UsageError, printable

MODEL_NAME = "model.onnx"
"""The file the child leaves in the request's folder."""

DATA_NAME = "model.onnx.data"
"""The weights beside it, where the child does not put them into it."""

MADE_NAME = "made.json"
"""The file in which the child says by what it made the model."""

REFUSAL_NAME = "refusal.json"
"""The file the child leaves instead when it refuses."""

TRUST_HINT = "if you know who made it, run the same command with --trust"
"""Of every refusal to run what a source holds."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One conversion."""

    source: str
    """Absolute path of what is converted."""
    folder: str
    """Absolute path of an empty folder for the child's files."""
    kind: str = "keras"
    """Name of the row of `kinds.KINDS`."""
    opset: int = 17
    inputs: dict[str, tuple[int | None, ...]] = {}
    """Shapes to fix, by input name; None keeps a dimension dynamic."""
    outputs: tuple[str, ...] = ()
    """Names of the tensors to compute, where the kind lets its caller choose; empty: those that nothing else uses."""
    modules: tuple[str, ...] = ()
    """Python modules to import first: they register the model's own classes with its framework."""
    samples: int = 0
    """Requests that the source framework answers before it is converted, left as references; 0: none."""
    seed: int = 0
    """Of the generator that draws them."""
    feeds: str = ""
    """Absolute path of an .npz file with the one request to answer instead of drawn ones; empty: draw them."""
    trust: bool = False
    """Whether code in the source may be run."""
    constant_nbytes: int = 64_000_000
    """Weights that pass through TensorFlow's and tf2onnx's tools, which take 10 to 20 times their bytes; the largest
    ones beyond this go around them."""


class Made(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By what the child made the model, and what is to be known to judge it."""

    converter: str
    """Name and version, such as `tf2onnx 1.17.0`."""
    framework: str
    """Name and version, such as `keras 3.15.1`."""
    unverified: str = ""
    """Why there are no references although some were asked for, as a phrase; empty where there are."""
    tolerances: dict[str, float] = {}
    """By output, how far off it may be, relative to its largest value, where the element type does not tell."""
    steps: dict[str, float] = {}
    """By output that is made of quantized values: what one step of the quantization is in the output's own unit, 1 for
    an output of integers."""
    notes: tuple[str, ...] = ()
    """What the user should know of the result, a sentence each."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why the child made no model."""

    kind: str
    """One of `REFUSALS`."""
    message: str
    hint: str = ""
    code: str = ""


REFUSALS: dict[str, type[HypsError]] = {
    "dependency": DependencyError,
    "failed": HypsError,
    "model": ModelError,
    "output": OutputError,
    "tensor": TensorError,
    "usage": UsageError,
}
"""Whose fault a refusal is."""


def feeds_name(index: int) -> str:
    """Return the name of the file that holds a reference's inputs, by ONNX name."""
    return f"feeds-{index}.npz"


def answers_name(index: int) -> str:
    """Return the name of the file that holds what the source framework answers to them, by ONNX name."""
    return f"answers-{index}.npz"


def first_line(error: BaseException) -> str:
    """Return what an error of somebody else's code says, as one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, limit=200).rstrip(".")
