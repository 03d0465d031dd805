"""A TensorFlow Lite file taken apart, and put together again as tf2onnx can read it.

Imports TensorFlow: for the child process only.
"""

import importlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it has no types
import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils
from tf2onnx.handler import tf_op

from hyps.errors import ModelError, printable
from hyps_compiler.convert.request import first_line

Array = np.ndarray[Any, Any]

_MARK = b"TFL3"
_KINDS = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
_OPERATORS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
_INTEGERS = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)
"""What values are quantized to."""
_LEFT_TO_ONNX = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT32)
"""Constants that DequantizeLinear takes as they are."""
_STATEFUL = ("ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE")


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the model."""

    name: str
    """As the ONNX model will have it."""
    dtype: str
    """numpy's name."""
    shape: tuple[int | None, ...]
    """None in it: dynamic."""
    span: tuple[float, float] | None
    """What values it may have, where the file tells: integers that stand for other numbers, or numbers that are made
    such integers at once."""
    step: float | None
    """A 256th of that range: the distance of two neighbours among values of 8 bits."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A TensorFlow Lite model as objects, its tensors named anew."""

    model: Any
    """A ModelT."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    quantized: tuple[tuple[int, str], ...]
    """Numbers in the file and names of the tensors computed as integers that stand for other numbers."""
    widened: list[str]
    """Names of weights kept as integers that operators on floats use."""

    def packed(self) -> bytes:
        """Return the file that these parts make."""
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=_MARK)
        return bytes(builder.Output())


def make_interpreter(content: bytes, *, keeps_all: bool = False) -> Any:
    """Return TensorFlow Lite's interpreter of a file's content, which it has checked.

    Args:
        content: of the file.
        keeps_all: whether what it computes on the way can be asked for too.

    Raises:
        ValueError: it is damaged, or no such file.
    """
    interpreter = getattr(tf.lite, "Interpreter", None)
    if interpreter is None:  # where TensorFlow no longer has it
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to another package
        if not keeps_all:
            return interpreter(model_content=content)
        return interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )


def set_inputs(interpreter: Any, values: Sequence[Array]) -> None:
    """Give an interpreter its inputs, in their order, whatever size their dynamic dimensions have."""
    details = interpreter.get_input_details()
    for detail, value in zip(details, values, strict=True):
        if tuple(detail["shape"]) != value.shape:
            interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, values, strict=True):
        interpreter.set_tensor(detail["index"], value)


def take_apart(content: bytes, source_name: str) -> Parts:
    """Return the parts of a TensorFlow Lite file, its tensors with short names, all different.

    Raises:
        ModelError: the file is damaged, has no one graph to convert, or uses an operation that tf2onnx does not have.
    """
    try:
        make_interpreter(content)  # checks the whole file, which the code for Python does not
        model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"`{source_name}` is damaged or no TensorFlow Lite model: {first_line(error)}",
            "copy it again from where it was made",
        ) from error
    graph = _main_graph(model, source_name)
    _check_operators(model, source_name)
    _check_ends(graph, source_name)
    _name_all(model, graph)
    widened = _widen(model)
    return Parts(
        model=model,
        inputs=tuple(_port(model, index) for index in graph.inputs),
        outputs=tuple(_port(model, index) for index in graph.outputs),
        quantized=tuple(
            (index, tensor.name)
            for index, tensor in enumerate(graph.tensors)
            if index not in graph.inputs and _is_quantized(tensor) and not _data(model, tensor)
        ),
        widened=widened,
    )


def fix_shapes(parts: Parts, shapes: dict[str, tuple[int | None, ...]]) -> None:
    """Set the shapes of inputs, by name; None keeps a dimension dynamic."""
    for tensor in parts.model.subgraphs[0].tensors:
        if tensor.name in shapes:
            tensor.shapeSignature = [-1 if size is None else size for size in shapes[tensor.name]]
            tensor.shape = [1 if size is None else size for size in shapes[tensor.name]]


def _main_graph(model: Any, source_name: str) -> Any:
    """Return the graph to convert: the first, which must be the only one that callers may name."""
    if not model.subgraphs or not model.subgraphs[0].operators:
        raise ModelError(f"`{source_name}` holds no operation", "convert the model to TensorFlow Lite again")
    signatures = model.signatureDefs or []
    if len({signature.subgraphIndex for signature in signatures}) > 1:
        listed = ", ".join(f"`{printable(_text(signature.signatureKey))}`" for signature in signatures[:8])
        raise ModelError(
            f"`{source_name}` has {len(signatures)} signatures ({listed}), and an ONNX model has one graph",
            "convert each function to a TensorFlow Lite model of its own",
        )
    return model.subgraphs[0]


def _check_operators(model: Any, source_name: str) -> None:
    """Refuse the operations that have no translation, all at once, by name."""
    codes = [_code(entry) for entry in model.operatorCodes or []]
    used = {codes[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators or []}
    stateful = sorted(used & set(_STATEFUL))
    if stateful:
        raise ModelError(
            f"`{source_name}` keeps values from one request to the next (`{stateful[0]}`), which ONNX cannot express",
            "make its variables constants before it is converted to TensorFlow Lite",
        )
    custom = {_code(entry) for entry in model.operatorCodes or [] if _number(entry) == schema.BuiltinOperator.CUSTOM}
    if used & custom:
        raise ModelError(
            f"`{source_name}` uses the {_listed('operation', used & custom)} beyond those of TensorFlow Lite itself",
            "convert the model it was made from, or leave that operation out of it and compute it afterwards",
        )
    known = {name for domain in tf_op.get_opsets().values() for opset in domain for name in opset}
    unknown = {name for name in used if f"TFL_{name}" not in known}
    if unknown:
        raise ModelError(
            f"`{source_name}` uses the TensorFlow Lite {_listed('operation', unknown)}, which tf2onnx cannot express in"
            " ONNX",
            "convert the model it was made from, or build it without that operation",
        )


def _listed(word: str, names: Collection[str]) -> str:
    """Return some names, after the word for what they are."""
    listed = ", ".join(f"`{printable(name)}`" for name in sorted(names)[:8])
    return f"{word} {listed}" if len(names) == 1 else f"{word}s {listed}"


def _number(entry: Any) -> int:
    """Return an operation's number; newer ones do not fit the byte that older files have for it."""
    number: int = max(entry.builtinCode, entry.deprecatedBuiltinCode)
    return number


def _code(entry: Any) -> str:
    """Return the name of an operation."""
    number = _number(entry)
    return _text(entry.customCode) if number == schema.BuiltinOperator.CUSTOM else _OPERATORS.get(number, f"{number}")


def _check_ends(graph: Any, source_name: str) -> None:
    """Refuse inputs that are outputs, outputs that are there twice, and element types that ONNX models do not take."""
    names = [_text(graph.tensors[index].name) for index in (*graph.inputs, *graph.outputs)]
    ends = [*graph.inputs, *graph.outputs]
    for index, name in zip(ends, names, strict=True):
        if ends.count(index) > 1:
            raise ModelError(
                f"`{source_name}` gives the tensor `{printable(name)}` in two places: as an input or output each",
                "build the model without that output",
            )
        kind = _KINDS.get(graph.tensors[index].type, "")
        if kind == "STRING" or not hasattr(np, kind.lower()):
            raise ModelError(
                f"`{source_name}` has the input or output `{printable(name)}` of {kind}, which is no number"
            )


def _name_all(model: Any, main: Any) -> None:
    """Give all tensors and graphs names that are different: tf2onnx takes tensors of one name for one tensor."""
    taken: set[str] = set()
    for index, name in _signature_names(model):
        main.tensors[index].name = _distinct(name, taken)
    named = {index for index, _ in _signature_names(model)}
    for index in (*main.inputs, *main.outputs):
        if index not in named:
            main.tensors[index].name = _distinct(_short(_text(main.tensors[index].name)), taken)
    kept = {*named, *main.inputs, *main.outputs}
    for number, graph in enumerate(model.subgraphs):
        graph.name = f"graph_{number}"
        for index, tensor in enumerate(graph.tensors or []):
            if graph is not main or index not in kept:
                tensor.name = _distinct(_short(_text(tensor.name)) or "tensor", taken)


def _signature_names(model: Any) -> list[tuple[int, str]]:
    """Return the tensors that the model's one signature names."""
    entries = [
        (entry.tensorIndex, _text(entry.name))
        for signature in (model.signatureDefs or [])[:1]
        for entry in (*(signature.inputs or []), *(signature.outputs or []))
    ]
    ends = {*model.subgraphs[0].inputs, *model.subgraphs[0].outputs}
    return [(index, name) for index, name in dict(entries).items() if index in ends and name]


def _short(name: str) -> str:
    """Return a tensor's name without what TensorFlow puts around it.

    >>> _short("serving_default_image:0")
    'image'
    """
    head, colon, tail = name.rpartition(":")
    bare = head if colon and tail.isdigit() else name
    return bare.removeprefix("serving_default_")


def _distinct(name: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken, and take it."""
    free, number = name, 0
    while not free or free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _text(value: bytes | str | None) -> str:
    """Return a string of the file, which may be missing."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _port(model: Any, index: int) -> Port:
    """Return what is known of an input or output of the main graph."""
    tensor = model.subgraphs[0].tensors[index]
    step: float | None = None
    span: tuple[float, float] | None = None
    near = tensor if _is_quantized(tensor) else _quantized_twin(model, index)
    if near is not None:
        limits = np.iinfo(_KINDS[near.type].lower())
        scale, zero_point = (1.0, 0) if near is tensor else _quantization(near)
        step, span = (
            scale * 2.0 ** (limits.bits - 8),
            (scale * (limits.min - zero_point), scale * (limits.max - zero_point)),
        )
    return Port(
        name=tensor.name,
        dtype=_KINDS[tensor.type].lower(),
        shape=tuple(None if size < 0 else size for size in _sizes(tensor)),
        span=span,
        step=step,
    )


def _quantized_twin(model: Any, index: int) -> Any:
    """Return the tensor of integers that a tensor is made into at once, or was made of; None if there is none."""
    graph = model.subgraphs[0]
    codes = [_code(entry) for entry in model.operatorCodes]
    for operator in graph.operators:
        ends = {"QUANTIZE": (operator.inputs, operator.outputs), "DEQUANTIZE": (operator.outputs, operator.inputs)}
        here, there = ends.get(codes[operator.opcodeIndex], ((), ()))
        if index in here and _is_quantized(graph.tensors[there[0]]):
            return graph.tensors[there[0]]
    return None


def _quantization(tensor: Any) -> tuple[float, int]:
    return float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])


def _sizes(tensor: Any) -> list[int]:
    sizes = tensor.shape if tensor.shapeSignature is None or not len(tensor.shapeSignature) else tensor.shapeSignature
    return [] if sizes is None else [int(size) for size in sizes]


def _is_quantized(tensor: Any) -> bool:
    quantization = tensor.quantization
    return tensor.type in _INTEGERS and quantization is not None and quantization.scale is not None


def _widen(model: Any) -> list[str]:
    """Make floats of constants that operators on floats use; return the names of those that were 8 bits wide.

    TensorFlow Lite rounds the other operand to 8 bits at such an operator as it runs, which is no part of the model.
    """
    widened: list[str] = []
    for graph in model.subgraphs:
        for operator, tensor in _constant_operands(model, graph):
            if tensor.type == schema.TensorType.FLOAT32 or tensor.quantization is None:
                continue
            is_hybrid = graph.tensors[operator.outputs[0]].type == schema.TensorType.FLOAT32
            if is_hybrid and _is_quantized(tensor):
                widened.append(tensor.name)
                _make_float(model, tensor)
            elif tensor.type not in _LEFT_TO_ONNX and tensor.quantization.scale is not None:
                _make_float(model, tensor)
    return widened


def _constant_operands(model: Any, graph: Any) -> Iterator[tuple[Any, Any]]:
    """Yield operators with each constant they use, but those that only turn it into other numbers."""
    codes = [_code(entry) for entry in model.operatorCodes]
    for operator in graph.operators or []:
        if codes[operator.opcodeIndex] in ("DEQUANTIZE", "QUANTIZE"):
            continue
        options = operator.builtinOptions
        for index in operator.inputs if operator.inputs is not None else ():
            if index >= 0 and _data(model, graph.tensors[index]):
                yield operator, graph.tensors[index]
        if getattr(options, "asymmetricQuantizeInputs", False):
            options.asymmetricQuantizeInputs = False  # it speaks of the rounding that `_widen` leaves out


def _data(model: Any, tensor: Any) -> Collection[int]:
    """Return the bytes of a constant; nothing for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    return () if data is None or not len(data) else bytes(data)


def _make_float(model: Any, tensor: Any) -> None:
    """Turn a quantized constant into the floats it stands for."""
    raw = np.frombuffer(bytes(_data(model, tensor)), _KINDS[tensor.type].lower()).reshape(_sizes(tensor))
    scales = np.asarray(tensor.quantization.scale, np.float32)
    points = np.asarray(tensor.quantization.zeroPoint, np.float32)
    along = [1] * raw.ndim
    if scales.size > 1:
        along[tensor.quantization.quantizedDimension] = scales.size
        scales, points = scales.reshape(along), np.broadcast_to(points, scales.shape).reshape(along)
    values = ((raw.astype(np.float32) - points) * scales).astype(np.float32)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    tensor.buffer = len(model.buffers)  # a new one: tensors of different scales may share their bytes
    model.buffers.append(buffer)
    tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
