"""The kinds of source that can be made into ONNX models: one table, which imports no framework."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyps_compiler.convert import archives, checks


def _runs_none(_source: Path) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of source: how to tell it, what it takes to read it, and who converts it."""

    name: str
    what: str
    """In words, for messages: `a Keras file`."""
    accepts: Callable[[Path], bool]
    """By name and first bytes; never raises but OSError."""
    check: Callable[[Path], None]
    """Raises a ModelError for what can be seen to be wrong without the framework."""
    packages: tuple[str, ...]
    """What the child imports."""
    extra: str
    """The extra of ours that installs them."""
    module: str
    """In this package: has `run(request: Request) -> Made`, for the child process only."""
    opsets: range
    """Versions of ONNX's operators that the converter writes."""
    default_opset: int
    runs_code: Callable[[Path], bool] = _runs_none
    """Whether reading this very file may run code in it; refused without `trust`."""


_TENSORFLOW = ("tensorflow", "keras", "tf2onnx")
_TF_OPSETS = range(13, 19)
_TF_OPSET = 17
"""tf2onnx writes its cleanest graphs at 17; at 18, the highest it knows, transposes stay around pooling."""

_TORCH = ("torch", "onnxscript")
_TORCH_OPSET = 20
"""The first with Gelu, GridSample and others as one node each; the exporter's own choice, and its most for scripts."""

KINDS: tuple[Kind, ...] = (
    Kind(
        name="keras",
        what="a Keras file",
        accepts=checks.has_suffix(".keras"),
        check=checks.check_keras,
        packages=_TENSORFLOW,
        extra="tf",
        module="functions",
        opsets=_TF_OPSETS,
        default_opset=_TF_OPSET,
    ),
    Kind(
        name="keras-h5",
        what="a Keras HDF5 file",
        accepts=checks.has_suffix(".h5", ".hdf5"),
        check=checks.check_hdf5,
        packages=_TENSORFLOW,
        extra="tf",
        module="functions",
        opsets=_TF_OPSETS,
        default_opset=_TF_OPSET,
    ),
    Kind(
        name="saved-model",
        what="a SavedModel folder",
        accepts=checks.is_saved_model,
        check=checks.check_saved_model,
        packages=_TENSORFLOW,
        extra="tf",
        module="functions",
        opsets=_TF_OPSETS,
        default_opset=_TF_OPSET,
    ),
    Kind(
        name="frozen-graph",
        what="a frozen TensorFlow graph",
        accepts=checks.may_be_graph_def,
        check=checks.check_graph_def,
        packages=_TENSORFLOW,
        extra="tf",
        module="functions",
        opsets=_TF_OPSETS,
        default_opset=_TF_OPSET,
    ),
    Kind(
        name="tflite",
        what="a TensorFlow Lite model",
        accepts=checks.has_suffix(".tflite"),
        check=checks.check_tflite,
        packages=_TENSORFLOW,
        extra="tf",
        module="tflite",
        opsets=_TF_OPSETS,
        default_opset=_TF_OPSET,
    ),
    Kind(
        name="torch-export",
        what="a PyTorch exported program",
        accepts=archives.is_program,
        check=archives.check_content,
        packages=_TORCH,
        extra="torch",
        module="pytorch",
        opsets=range(18, 24),
        default_opset=_TORCH_OPSET,
        runs_code=archives.runs_code,
    ),
    Kind(
        name="torch-script",
        what="a PyTorch module",
        accepts=checks.has_suffix(*archives.SUFFIXES),
        check=archives.check_content,
        packages=_TORCH,
        extra="torch",
        module="pytorch",
        opsets=range(18, 21),
        default_opset=_TORCH_OPSET,
        runs_code=archives.runs_code,
    ),
    Kind(
        name="sklearn",
        what="a scikit-learn model",
        accepts=checks.has_suffix(".pkl", ".joblib", ".skops"),
        check=checks.check_not_empty,
        packages=("sklearn", "skl2onnx"),
        extra="sklearn",
        module="pipelines",
        opsets=range(13, 22),
        default_opset=17,
        runs_code=checks.has_suffix(".pkl", ".joblib"),
    ),
)
"""The first row that accepts a path is its kind."""


def kind_of(source: Path) -> Kind | None:
    """Return what kind of source a path is; None where it can not be converted, or needs not to be.

    Raises:
        OSError: it is a name that the system cannot have.
    """
    return next((kind for kind in KINDS if kind.accepts(source)), None)


def kind_named(name: str) -> Kind:
    """Return the row of a name that is in the table."""
    return next(kind for kind in KINDS if kind.name == name)
