"""Types and shapes of every tensor: onnxruntime's own inference where it can tell, one run of the model where not."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from hyps.adapters.feeds import Feeds as FeedsCheck
from hyps.errors import ExecutionError, HypsError, ModelError, TensorError, printable
from hyps.formats.dtypes import numpy_name
from hyps.formats.plan import NamedTensor
from hyps.formats.signature import shape_text
from hyps_compiler.irfile import ORT_TYPE
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.ort import open_session, run
from hyps_compiler.sizes import SizeError, check_array, check_sizes
from hyps_compiler.source import read_proto
from hyps_compiler.values import numpy_dtype, random_value

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_TRIES: tuple[tuple[int, int], ...] = ((1, 64), (1, 224), (1, 32), (1, 8), (1, 1), (8, 8), (2, 32))
"""Sizes given to open dimensions, first axes and others, until the model runs: one request, of some length."""

_RANK_CHANGERS = frozenset({"If", "OptionalGetElement", "Reshape", "SequenceAt", "Squeeze"})
"""Where onnxruntime cannot tell the rank of what these make, it may depend on the request."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of the model's tensors."""

    sizes: dict[str, tuple[int, ...]]
    """Concrete shape by name, at the assumed sizes."""
    assumed_dims: dict[str, int]
    """Size given to each open dimension, by its name, or by `input:axis` where it has none."""
    feeds: dict[str, Array] | None
    """A request on which the model runs; None where none was found."""
    problem: str = field(default="")
    """Why no request was found."""


def measure(
    model: ir.Model,
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    feeds: Feeds | None,
    seed: int = 0,
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES,
) -> Measured:
    """Give every value of the staged model its type and symbolic shape, and find concrete sizes.

    Args:
        model: the staged model; its values are annotated in place.
        path: its file.
        shapes: shapes of inputs that the user gave.
        feeds: a request the user gave, or None to make one.
        seed: of the made request's random values.
        max_tensor_nbytes: most bytes that a tensor may take; nothing larger is computed to find out.

    Raises:
        ModelError: onnxruntime refuses the model.
        TensorError: a given shape or request does not fit the model's inputs.
        ExecutionError: the user's request cannot be run.
        SizeError: every request makes a tensor that is too large.
    """
    session = _typed_session(path)
    _annotate(model, path, session)
    inputs = session.get_inputs()
    _check_given(inputs, shapes, feeds)
    problem: HypsError | None = None
    for first, rest in _tries(inputs, shapes)[: 1 if feeds else None]:
        try:
            _check_inputs(inputs, shapes, first, rest, max_tensor_nbytes)
            request = _checked(inputs, feeds) if feeds else _request(inputs, shapes, first, rest, seed)
        except (ExecutionError, SizeError) as error:
            problem = error
            continue
        try:
            sizes, dims = _sizes(path, session, request, max_tensor_nbytes)
        except (ExecutionError, SizeError) as error:
            problem = error
            continue
        _settle_ranks(model, sizes)
        return Measured(sizes, dims, request)
    assert problem is not None
    if feeds or shapes or isinstance(problem, SizeError):
        raise problem
    return Measured(_static_sizes(session), {}, None, problem.message)


def sample_request(session: ort.InferenceSession, request: Feeds, seed: int) -> dict[str, Array]:
    """Return a request of the same shapes with other random values."""
    return _request(session.get_inputs(), _shapes(request), 1, 1, seed)


def _typed_session(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ort.InferenceSession:
    """Return a session of the model in which every value is an output, so that onnxruntime tells its type.

    That is its type at any request, or at one of `shapes`.

    What the model itself says of inner values and outputs is left out: it may be stale (a batch of 1 where the input's
    is open), which onnxruntime forgives in a whole model, but not at the input of a partition.
    """
    proto = read_proto(path)
    for value in proto.graph.input:
        if value.name in (shapes or {}) and value.type.HasField("tensor_type"):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, list((shapes or {})[value.name])))
    del proto.graph.value_info[:]
    inputs = {value.name for value in proto.graph.input}
    for output in proto.graph.output:
        if output.name not in inputs:
            output.ClearField("type")
    present = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    made = dict.fromkeys(name for node in proto.graph.node for name in node.output if name)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in present)
    typed = path.with_name("typed.onnx")
    typed.write_bytes(proto.SerializeToString())
    try:
        return open_session(typed, "none")
    finally:
        typed.unlink()


def _annotate(model: ir.Model, path: Path, session: ort.InferenceSession) -> None:
    told = {info.name: info for info in (*session.get_inputs(), *session.get_outputs())}
    scalars = _scalars(path, session)
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        info = told.get(str(value.name))
        dtype = None if info is None else numpy_dtype(info.type)
        if info is None or dtype is None:
            if info is not None and not info.type.startswith("tensor("):
                value.type = value.type if not isinstance(value.type, ir.TensorType) else None
                value.meta[ORT_TYPE] = info.type
            continue
        value.type = ir.TensorType(ir.DataType.STRING if dtype == "string" else ir.DataType.from_numpy(np.dtype(dtype)))
        if info.shape or info.name in scalars:
            value.shape = ir.Shape(_known_dims([_dim(size) for size in info.shape], value))
        elif not (value.is_graph_input() or _is_only_output(value)):
            value.shape = None


def _scalars(path: Path, session: ort.InferenceSession) -> set[str]:
    """Return the values that are certainly scalars: onnxruntime says [] for these and for unknown ranks alike."""
    doubtful = {info.name for info in session.get_outputs() if info.shape == [] and info.type.startswith("tensor(")}
    if not doubtful:
        return set()
    proto = read_proto(path)
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.ClearField("type")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # it knows less than onnxruntime, which did infer
        return set()
    ranks = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    return {name for name in doubtful & ranks.keys() if ranks[name].HasField("shape") and not ranks[name].shape.dim}


def _known_dims(dims: list[int | str | None], value: ir.Value) -> list[int | str | None]:
    """Return the inferred dimensions; those left open as the model declares them, where nothing else reads them."""
    declared = value.shape
    if declared is None or len(declared) != len(dims) or not _is_only_output(value):
        return dims
    named = [dim if isinstance(dim, int) else dim.value for dim in declared.dims]
    return [other if dim is None else dim for dim, other in zip(dims, named, strict=True)]


def _is_only_output(value: ir.Value) -> bool:
    return value.is_graph_output() and not value.is_graph_input() and not value.uses()


def _settle_ranks(model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Give values of unknown rank the one that was observed, unless another request may bring another.

    Without a rank a partition's input or output is no valid ONNX.
    """
    doubtful: set[int] = set()
    for node in model.graph:
        may_change = node.op_type in _RANK_CHANGERS or any(id(value) in doubtful for value in node.inputs)
        for value in node.outputs:
            observed = sizes.get(str(value.name))
            if value.shape is not None or observed is None:
                continue
            if may_change:
                doubtful.add(id(value))
            else:
                value.shape = ir.Shape([None] * len(observed))


def _dim(size: int | str | None) -> int | str | None:
    return None if size == "" or (isinstance(size, int) and size < 0) else size


def _check_given(inputs: list[Any], shapes: Mapping[str, tuple[int, ...]], feeds: Feeds | None) -> None:
    known = {info.name: info for info in inputs}
    for name in (*shapes, *(feeds or ())):
        if name not in known:
            raise TensorError(
                f"`{printable(name)}` is no input of the model", f"its inputs are {', '.join(map(printable, known))}"
            )
    for name, shape in shapes.items():
        declared = known[name].shape
        if len(shape) != len(declared) or any(
            isinstance(d, int) and d != s for d, s in zip(declared, shape, strict=True)
        ):
            raise TensorError(
                f"shape {shape_text(shape)} does not fit input `{printable(name)}` of shape {shape_text(declared)}"
            )


def _checked(inputs: list[Any], feeds: Feeds) -> dict[str, Array]:
    """Return the user's request as onnxruntime takes it."""
    declared = []
    for info in inputs:
        is_tensor = info.type.startswith("tensor(")
        shape = tuple(_dim(size) for size in info.shape) or None  # [] may be a scalar or an unknown rank
        dtype = numpy_name(info.type) if is_tensor else info.type
        declared.append(NamedTensor(name=info.name, dtype=dtype, shape=shape))
    return FeedsCheck(declared).checked(feeds)


def _tries(inputs: list[Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
    static = all(info.name in shapes or all(isinstance(size, int) for size in info.shape) for info in inputs)
    return _TRIES[:1] if static else _TRIES


def _request(
    inputs: list[Any], shapes: Mapping[str, tuple[int, ...]], first: int, rest: int, seed: int
) -> dict[str, Any]:
    """Return seeded random inputs; a dimension's name keeps one size throughout."""
    request = {}
    for position, (info, given) in enumerate(_input_shapes(inputs, shapes, first, rest)):
        request[info.name] = random_value(info.type, given, np.random.default_rng([seed, position]))
    return request


def _shapes(request: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a request; sequences, maps and what is left out have none."""
    shapes = {}
    for name, value in request.items():
        if isinstance(value, np.ndarray):
            shapes[name] = tuple(value.shape)
        elif isinstance(value, ort.OrtValue) and value.is_tensor():
            shapes[name] = tuple(value.shape())
    return shapes


def _input_shapes(
    inputs: list[Any], shapes: Mapping[str, tuple[int, ...]], first: int, rest: int
) -> Iterator[tuple[Any, tuple[int, ...]]]:
    dims = _bindings(inputs, shapes)
    for info in inputs:
        shape = []
        for axis, size in enumerate(info.shape):
            if isinstance(size, str):
                dims.setdefault(size, first if axis == 0 and len(info.shape) > 1 else rest)
            default = first if axis == 0 and len(info.shape) > 1 else rest
            shape.append(size if isinstance(size, int) else dims.get(size, default))
        yield info, shapes.get(info.name, tuple(shape))


def _check_inputs(
    inputs: list[Any], shapes: Mapping[str, tuple[int, ...]], first: int, rest: int, max_tensor_nbytes: int
) -> None:
    for info, shape in _input_shapes(inputs, shapes, first, rest):
        check_array(info.name, shape, numpy_dtype(info.type), max_tensor_nbytes)


def _check_outputs(session: ort.InferenceSession, max_tensor_nbytes: int) -> None:
    for info in session.get_outputs():
        if all(isinstance(size, int) and size >= 0 for size in info.shape):
            check_array(info.name, info.shape, numpy_dtype(info.type), max_tensor_nbytes)


def _bindings(inputs: list[Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    pairs = [
        (declared, size)
        for info in inputs
        for declared, size in zip(info.shape, shapes.get(info.name, ()), strict=False)
    ]
    return {declared: size for declared, size in pairs if isinstance(declared, str)}


def _sizes(
    path: Path, session: ort.InferenceSession, request: Feeds, max_tensor_nbytes: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return each tensor's concrete shape under the request, by arithmetic where possible, else by running."""
    inputs = session.get_inputs()
    shapes = _shapes(request)
    dims = _bindings(inputs, shapes)
    assumed = dict(dims)
    for info in inputs:
        for axis, size in enumerate(info.shape if info.name in shapes else ()):
            if not isinstance(size, (int, str)):
                assumed[f"{info.name}:{axis}"] = shapes[info.name][axis]
    sizes = dict(shapes)
    unknown = []
    _check_outputs(session, max_tensor_nbytes)
    for info in session.get_outputs():
        if numpy_dtype(info.type) is None:
            continue
        shape = [dims.get(size) if isinstance(size, str) else size for size in info.shape or [None]]
        if all(isinstance(size, int) and size >= 0 for size in shape) and info.shape is not None:
            sizes[info.name] = tuple(size for size in shape if size is not None)
        else:
            unknown.append(info.name)
    scalars = [info.name for info in session.get_outputs() if numpy_dtype(info.type) is not None and info.shape == []]
    doubtful = dict.fromkeys((*unknown, *scalars))
    check_sizes(read_proto(path), max_tensor_nbytes, shapes)
    if dims or assumed:
        with contextlib.suppress(ModelError):  # an `If` may have a branch for other shapes than these: running tells
            session = _typed_session(path, shapes)
        _check_outputs(session, max_tensor_nbytes)
    if dims or assumed or doubtful:
        sizes.update(_observed(path, tuple(doubtful), request))
    return sizes, assumed


def _observed(path: Path, names: tuple[str, ...], request: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the named tensors in one run."""
    proto = read_proto(path)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    observed = path.with_name("observed.onnx")
    observed.write_bytes(proto.SerializeToString())
    try:
        session = open_session(observed, "none")
        results = run(
            session, [name for name in names if name not in request] or [session.get_outputs()[0].name], request
        )
    finally:
        observed.unlink()
    return {name: tuple(np.shape(value)) for name, value in results.items() if not isinstance(value, (list, dict))}


def _static_sizes(session: ort.InferenceSession) -> dict[str, tuple[int, ...]]:
    infos = [*session.get_inputs(), *session.get_outputs()]
    static = [info for info in infos if info.shape and all(isinstance(size, int) for size in info.shape)]
    return {info.name: tuple(info.shape) for info in static}
