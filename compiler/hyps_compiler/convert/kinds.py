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


_TF_OPSET = 17
"""tf2onnx writes its cleanest graphs at 17; at 18, the highest it knows, transposes stay around pooling."""

_TORCH = ("torch", "onnxscript")
_TORCH_OPSET = 20
"""The first with Gelu, GridSample and others as one node each; the exporter's own choice, and its most for scripts."""


def _tensorflow(
    name: str, what: str, accepts: Callable[[Path], bool], check: Callable[[Path], None], module: str = "functions"
) -> Kind:
    return Kind(
        name=name,
        what=what,
        accepts=accepts,
        check=check,
        packages=("tensorflow", "keras", "tf2onnx"),
        extra="tf",
        module=module,
        opsets=range(13, 19),
        default_opset=_TF_OPSET,
    )


KINDS: tuple[Kind, ...] = (
    _tensorflow("keras", "a Keras file", checks.has_suffix(".keras"), checks.check_keras),
    _tensorflow("keras-h5", "a Keras HDF5 file", checks.has_suffix(".h5", ".hdf5"), checks.check_hdf5),
    _tensorflow("saved-model", "a SavedModel folder", checks.is_saved_model, checks.check_saved_model),
    _tensorflow("frozen-graph", "a frozen TensorFlow graph", checks.may_be_graph_def, checks.check_graph_def),
    _tensorflow(
        "tflite", "a TensorFlow Lite model", checks.has_suffix(".tflite"), checks.check_tflite, module="tflite"
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
