"""scikit-learn's estimators and pipelines on the child's side, by skl2onnx.

Imports scikit-learn: for the child process only.
"""

import importlib
import importlib.metadata
import importlib.util
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped,unused-ignore]  # it has no types
import numpy as np
import onnx
import skl2onnx
import sklearn
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.base import BaseEstimator, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.svm import SVC, NuSVC
from sklearn.utils.validation import check_is_fitted

from hyps.errors import DependencyError, ModelError, printable
from hyps_compiler.arrays import write_npz
from hyps_compiler.convert.request import (
    MODEL_NAME,
    TRUST_HINT,
    Made,
    Request,
    answers_name,
    feeds_name,
    first_line,
)
from hyps_compiler.convert.samples import Input, leave_references
from hyps_compiler.convert.shapes import fixed_shapes
from hyps_compiler.convert.versions import refuse_unsafe

Array = np.ndarray[Any, Any]

_ROWS = 64
"""Of a request: rows are cheap, and a tree shows little of itself on two."""

_ONE_INPUT = "features"

_SAFE_SKOPS = "0.12"
"""The first that tells of every type in a file what it would call."""
_INSTALL_SKOPS = f'pip install "skops>={_SAFE_SKOPS}"'

_ML_OPSET = 3
"""Of the operators for trees and the like, the newest that skl2onnx writes for all of them."""

_TYPES = {"float32": FloatTensorType, "int64": Int64TensorType, "string": StringTensorType}
_METHODS = {
    "label": ("predict",),
    "probabilities": ("predict_proba", "decision_function"),
    "scores": ("decision_function", "transform"),
    "transformed_column": ("transform",),
    "variable": ("transform", "predict"),
}
"""What computes the output that skl2onnx gives a name, the first that the model has."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One feature."""

    dtype: str
    choices: tuple[Any, ...] = ()
    """The values that the model knows, where it knows them."""


def run(request: Request) -> Made:
    """Convert as asked and leave model and references in the request's folder.

    Raises:
        ModelError: the source cannot be loaded, is no fitted model, holds code that may not be run, or cannot be
            expressed in ONNX.
        UsageError: an input to fix does not exist or has another shape.
        DependencyError: a package that the source is written with is missing.
    """
    source = Path(request.source)
    name = printable(source.name)
    model, notes = _loaded(source, trust=request.trust)
    _check_model(model, name)
    columns = _columns(model)
    inputs = _inputs(model, columns, name)
    shapes = fixed_shapes({value.name: value.shape for value in inputs}, request.inputs)
    inputs = [Input(value.name, value.dtype, shapes.get(value.name, value.shape)) for value in inputs]
    converted = _to_onnx(model, inputs, request.opset, name)
    Path(request.folder, MODEL_NAME).write_bytes(converted.SerializeToString())
    unverified = ""
    if request.samples:
        unverified = _leave_references(request, inputs, columns, _Reference(model, inputs, converted))
    return Made(
        converter=f"skl2onnx {skl2onnx.__version__}",
        framework=f"scikit-learn {sklearn.__version__}",
        unverified=unverified,
        notes=notes,
    )


# --- loading ---


def _loaded(source: Path, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    """Return what is in a file, and what scikit-learn says about that."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = _from_skops(source, trust=trust) if source.suffix.lower() == ".skops" else _from_pickle(source, trust)
    said = {first_line(UserWarning(warning.message)) for warning in caught if issubclass(warning.category, UserWarning)}
    return model, tuple(sorted(said))


def _from_pickle(source: Path, trust: bool) -> Any:
    """Return what is pickled in a file, which may run any code."""
    name = printable(source.name)
    if not trust:  # the parent has refused it already; this is the last line before the code runs
        raise ModelError(f"`{name}` is a Python pickle, which may run code", "add --trust", code="E_UNTRUSTED")
    try:
        return joblib.load(source)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"`{name}` needs the Python module `{printable(error.name or '')}`, which is not installed",
            "install it, or name its file with --module where it is your own",
        ) from error
    except Exception as error:  # a pickle is a program: it may raise anything
        raise _unreadable(name, error) from error


def _from_skops(source: Path, *, trust: bool) -> Any:
    """Return what is in a file of skops, none of whose types may run code unless trusted.

    Raises:
        DependencyError: skops is not installed, or so old that it would run code from the file.
        ModelError: it cannot be read, or holds types that are not trusted.
    """
    name = printable(source.name)
    try:
        skops = importlib.import_module("skops.io")
    except ImportError as error:
        raise DependencyError(f"`{name}` cannot be read without `skops`", _INSTALL_SKOPS) from error
    if not trust:
        refuse_unsafe("skops", importlib.metadata.version("skops"), _SAFE_SKOPS)
    try:
        unknown = skops.get_untrusted_types(file=source)
        if unknown and not trust:
            listed = ", ".join(f"`{printable(str(kind))}`" for kind in unknown[:5])
            raise ModelError(
                f"`{name}` holds {listed}, which skops does not know to be harmless",
                TRUST_HINT,
                code="E_UNTRUSTED",
            )
        return skops.load(source, trusted=unknown)
    except ModelError:
        raise
    except Exception as error:  # zipfile's and json's own, KeyError, TypeError, AttributeError and more
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ModelError:
    is_damage = isinstance(error, pickle.UnpicklingError | EOFError)
    what = "is damaged or no pickle" if is_damage else "cannot be loaded"
    return ModelError(
        f"`{name}` {what}: {type(error).__name__}: {first_line(error)}",
        "save it again, with the scikit-learn that is installed here",
    )


def _check_model(model: Any, name: str) -> None:
    """Refuse what is no scikit-learn estimator, or was never fitted."""
    if not isinstance(model, BaseEstimator):
        kind = printable(type(model).__name__)
        raise ModelError(f"`{name}` holds a value of the type `{kind}`, which is no scikit-learn model")
    try:
        check_is_fitted(model)
    except (NotFittedError, TypeError) as error:
        raise ModelError(f"`{name}` holds a model that was never fitted", "fit it, then save it again") from error
    if not hasattr(model, "n_features_in_"):
        raise ModelError(f"`{name}` does not say how many features it takes", "fit it on an array or a table")


# --- what it takes ---


def _columns(model: Any) -> list[_Column]:
    """Return the model's features, as text where an encoder at their start knows texts."""
    columns = [_Column("float32")] * model.n_features_in_
    names = [str(name) for name in getattr(model, "feature_names_in_", ())]
    for indices, encoder in _encoders(model, names, list(range(model.n_features_in_))):
        for index, known in zip(indices, encoder.categories_, strict=False):
            kind = np.asarray(known).dtype.kind
            dtype = "string" if kind in "OU" else "int64" if kind in "iu" else "float32"
            columns[index] = _Column(dtype, tuple(value for value in known if value == value and value is not None))
    return columns


def _encoders(model: Any, names: Sequence[str], indices: Sequence[int]) -> Iterator[tuple[Sequence[int], Any]]:
    """Yield the encoders of categories that see features as they come, with the indices of these."""
    if hasattr(model, "categories_"):
        yield indices, model
    elif hasattr(model, "steps"):
        for _, step in model.steps:
            yield from _encoders(step, names, indices)
            if hasattr(step, "categories_") or hasattr(step, "transformers_"):
                return
    elif hasattr(model, "transformers_"):
        for _, part, chosen in model.transformers_:
            if not isinstance(part, str):
                yield from _encoders(part, names, [indices[index] for index in _indices(chosen, names, len(indices))])


def _indices(chosen: Any, names: Sequence[str], count: int) -> list[int]:
    """Return the numbers of a ColumnTransformer's columns, which may be names, numbers, a slice or a mask."""
    if isinstance(chosen, str):
        return [names.index(chosen)]
    if isinstance(chosen, slice):
        return list(range(count))[chosen]
    listed = list(np.atleast_1d(chosen))
    if listed and isinstance(listed[0], bool | np.bool_):
        return [index for index, is_chosen in enumerate(listed) if is_chosen]
    return [names.index(str(item)) if isinstance(item, str) else int(item) for item in listed]


def _inputs(model: Any, columns: Sequence[_Column], name: str) -> list[Input]:
    """Return one input per column where columns have names, else one for all."""
    names = [str(column) for column in getattr(model, "feature_names_in_", ())]
    if names:
        return [Input(each, column.dtype, (None, 1)) for each, column in zip(names, columns, strict=True)]
    dtypes = {column.dtype for column in columns}
    if "string" in dtypes and len(dtypes) > 1:
        raise ModelError(
            f"`{name}` takes text and numbers in one array, which an ONNX tensor cannot hold",
            "fit it on a table with column names; every column becomes an input then",
        )
    return [Input(_ONE_INPUT, "string" if "string" in dtypes else "float32", (None, len(columns)))]


# --- conversion ---


def _to_onnx(model: Any, inputs: Sequence[Input], opset: int, name: str) -> onnx.ModelProto:
    """Return the ONNX model.

    Raises:
        ModelError: skl2onnx cannot express it.
    """
    types = [(value.name, _TYPES[value.dtype](list(value.shape or ()))) for value in inputs]
    opsets = {"": opset, "ai.onnx.ml": _ML_OPSET}
    try:
        try:  # without this option most classifiers give a list of dicts, and the others do not know the option
            options = {"zipmap": False} if hasattr(model, "classes_") else None
            converted = skl2onnx.to_onnx(model, initial_types=types, options=options, target_opset=opsets)
        except NameError:
            converted = skl2onnx.to_onnx(model, initial_types=types, target_opset=opsets)
    except Exception as error:  # skl2onnx raises its own, RuntimeError, NotImplementedError, ValueError and more
        raise ModelError(
            f"skl2onnx {skl2onnx.__version__} cannot convert `{name}`: {first_line(error)}",
            "build the pipeline of other steps, or run it again with -v to see all that skl2onnx says",
        ) from error
    _rename_inputs(converted.graph, [value.name for value in inputs])
    if _has_swapped_scores(model):
        _negate(converted.graph, "probabilities")
    model_proto: onnx.ModelProto = converted
    return model_proto


def _rename_inputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give the inputs the names that the columns have: skl2onnx takes all out that is not of an identifier."""
    renamed = {value.name: name for value, name in zip(graph.input, names, strict=True) if value.name != name}
    for value in graph.input:
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _has_swapped_scores(model: Any) -> bool:
    """Return whether skl2onnx gives a model's scores the wrong sign: those of support vectors for two classes."""
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    return isinstance(last, SVC | NuSVC) and len(last.classes_) == 2 and not hasattr(last, "predict_proba")


def _negate(graph: onnx.GraphProto, output: str) -> None:
    """Change the sign of an output."""
    for node in graph.node:
        node.output[:] = [f"{output}_swapped" if name == output else name for name in node.output]
        node.input[:] = [f"{output}_swapped" if name == output else name for name in node.input]
    graph.node.append(onnx.helper.make_node("Neg", [f"{output}_swapped"], [output], name=f"{output}/Neg"))


# --- references ---


class _Reference:
    """The model itself, its inputs and outputs named as in ONNX."""

    def __init__(self, model: Any, inputs: Sequence[Input], converted: onnx.ModelProto) -> None:
        self._model = model
        self._inputs = inputs
        self._is_table = hasattr(model, "feature_names_in_")
        self._outputs = {
            value.name: value.type.tensor_type
            for value in converted.graph.output
            if value.type.WhichOneof("value") == "tensor_type"
        }
        self._methods = {name: self._method(name) for name in self._outputs}

    def reason_against(self) -> str:
        """Return why the model cannot answer, as a phrase; empty where it can."""
        lost = [name for name, method in self._methods.items() if method is None]
        if lost or not self._outputs:
            return f"no method of the model computes the output `{printable(''.join(lost[:1]))}`"
        if self._is_table and importlib.util.find_spec("pandas") is None:
            return "the model takes tables, and `pandas` is not installed"
        return ""

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for the given inputs."""
        table: Any = feeds[self._inputs[0].name]
        if self._is_table:
            pandas = importlib.import_module("pandas")
            table = pandas.DataFrame({value.name: feeds[value.name].reshape(-1) for value in self._inputs})
        answers: dict[str, Array] = {}
        for name, method in self._methods.items():
            assert method is not None  # `reason_against` was asked first
            answers[name] = _like_onnx(method(table), name, self._outputs[name])
        return answers

    def _method(self, output: str) -> Callable[[Any], Any] | None:
        """Return what computes an output."""
        names = _METHODS.get(output, ())
        if output == "variable" and is_regressor(self._model):
            names = ("predict",)  # some can transform as well
        return next((getattr(self._model, name) for name in names if hasattr(self._model, name)), None)


def _like_onnx(values: Any, output: str, tensor: onnx.TypeProto.Tensor) -> Array:
    """Return an answer with the shape and type that skl2onnx gives it."""
    array = np.asarray(values.todense() if hasattr(values, "todense") else values)
    dims = tensor.shape.dim
    if output == "probabilities" and array.ndim == 1 and len(dims) == 2 and dims[1].dim_value == 2:
        array = np.stack([-array, array], axis=1)  # of two classes, skl2onnx tells both sides
    elif array.ndim == 1 and len(dims) == 2:
        array = array.reshape(-1, 1)
    if tensor.elem_type == onnx.TensorProto.STRING:
        return array.astype(str).astype(object)
    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _leave_references(request: Request, inputs: Sequence[Input], columns: Sequence[_Column], source: _Reference) -> str:
    """Have the model answer as many requests as asked for; return why it cannot, or nothing."""
    reason = source.reason_against()
    if reason or request.feeds:
        return reason or leave_references(request, inputs, source.answer)
    for index in range(request.samples):
        feeds = _draw(inputs, columns, np.random.default_rng(request.seed + index))
        write_npz(Path(request.folder, feeds_name(index)), feeds)
        write_npz(Path(request.folder, answers_name(index)), source.answer(feeds))
    return ""


def _draw(inputs: Sequence[Input], columns: Sequence[_Column], generator: np.random.Generator) -> dict[str, Array]:
    """Return a request: known values of categories, numbers of all magnitudes elsewhere."""
    rows = next((value.shape[0] for value in inputs if value.shape), None) or _ROWS
    magnitude = 10.0 ** generator.uniform(-1, 2, (rows, 1))
    drawn = [_draw_column(column, magnitude, generator) for column in columns]
    if len(inputs) == len(drawn):
        return {value.name: values for value, values in zip(inputs, drawn, strict=True)}
    return {inputs[0].name: np.concatenate(drawn, axis=1)}


def _draw_column(column: _Column, magnitude: Array, generator: np.random.Generator) -> Array:
    if column.choices:
        chosen: Array = generator.choice(np.asarray(column.choices, dtype=object), magnitude.shape)
        return chosen if column.dtype == "string" else chosen.astype(column.dtype)
    return (generator.standard_normal(magnitude.shape) * magnitude).astype(column.dtype)
