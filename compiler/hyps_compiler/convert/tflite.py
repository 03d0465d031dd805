"""TensorFlow Lite models on the child's side, by tf2onnx, with TensorFlow Lite's interpreter as the reference.

Imports TensorFlow and tf2onnx: for the child process only.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import tensorflow as tf
from tf2onnx import utils
from tf2onnx.handler import tfl_op
from tf2onnx.tflite_handlers import tfl_math
from tf2onnx.tfonnx import process_tf_graph

from hyps.errors import ModelError, UsageError, printable
from hyps_compiler.arrays import read_npz, write_npz
from hyps_compiler.convert import graph, tflite_steps
from hyps_compiler.convert.request import MODEL_NAME, Made, Request, answers_name, feeds_name, first_line
from hyps_compiler.convert.samples import Input, draw, leave_references
from hyps_compiler.convert.shapes import fixed_shapes
from hyps_compiler.convert.tflite_file import Parts, Port, fix_shapes, make_interpreter, set_inputs, take_apart

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
_INT16 = onnx.TensorProto.INT16
_PLAIN_NAME = "plain.tflite"


def run(request: Request) -> Made:
    """Convert as asked and leave model and references in the request's folder.

    Raises:
        ModelError: the source cannot be loaded or expressed in ONNX.
        UsageError: an input to fix does not exist or has another shape.
    """
    source = Path(request.source)
    content = source.read_bytes()
    parts = take_apart(content, printable(source.name))
    if request.outputs:
        raise UsageError("the outputs of a TensorFlow Lite model are those that it names; others cannot be chosen")
    fix_shapes(parts, fixed_shapes({port.name: port.shape for port in parts.inputs}, request.inputs))
    plain = Path(request.folder, _PLAIN_NAME)
    plain.write_bytes(parts.packed())
    logger.info("converting %d inputs, %d outputs", len(parts.inputs), len(parts.outputs))
    converted = _to_onnx(plain, parts, request, printable(source.name))
    Path(request.folder, MODEL_NAME).write_bytes(converted.model.SerializeToString())
    made = Made(converter=graph.converter_version(), framework=f"tensorflow {tf.__version__}")
    return _verified(made, request, parts, content, converted) if request.samples else made


@dataclass(frozen=True, slots=True)
class _Converted:
    """What tf2onnx made of a model."""

    model: onnx.ModelProto
    raw: bytes
    """The model before tf2onnx's optimizer: it has every tensor of the source, under its name and in its layout."""


def _to_onnx(plain: Path, parts: Parts, request: Request, source_name: str) -> _Converted:
    """Return the ONNX model of a file.

    Raises:
        ModelError: tf2onnx fails on it.
    """
    try:
        made = process_tf_graph(None, opset=request.opset, tflite_path=str(plain))
    except Exception as error:  # tf2onnx raises ValueError, KeyError, AttributeError and more for what it does not know
        raise ModelError(
            f"tf2onnx {graph.converter_version().split()[1]} cannot convert `{source_name}`: {first_line(error)}",
            "convert the model it was made from, or run it again with -v to see what tf2onnx prints",
        ) from error
    _mend_loops(made)
    raw = made.make_model("raw").SerializeToString() if parts.quantized and request.samples else b""
    model = graph.finish(made, [port.name for port in parts.inputs], source_name)
    _check_outputs(model, parts, source_name)
    return _Converted(model, raw)


def _mend_loops(made: Any) -> None:
    """Give what a loop carries the shape it enters with: tf2onnx takes that of its producer's first output."""
    for node in made.get_nodes():
        for body in (node.get_body_graphs() or {}).values():
            if node.type == "Loop":
                for outer, inner in zip(node.input[2:], body.input_names[2:], strict=True):
                    body.set_shape(inner, made.get_shape(outer))
            _mend_loops(body)


def _check_outputs(model: onnx.ModelProto, parts: Parts, source_name: str) -> None:
    """Bring the outputs into the model's order; refuse if tf2onnx lost one."""
    found = {value.name: value for value in model.graph.output}
    lost = [port.name for port in parts.outputs if port.name not in found]
    if lost:
        raise ModelError(f"tf2onnx loses the output `{printable(lost[0])}` of `{source_name}`")
    del model.graph.output[:]
    model.graph.output.extend(found[port.name] for port in parts.outputs)


# --- operators that tf2onnx translates wrongly ---


@tfl_op(["TFL_QUANTIZE"], onnx_op="QuantizeLinear")
class _Quantize:
    """Rounds to 16 bits with plain arithmetic: QuantizeLinear does that only from opset 21 on."""

    @classmethod
    def version_10(cls, ctx: Any, node: Any, **options: Any) -> None:
        """Replace the node if it makes 16 bits; called by tf2onnx."""
        if ctx.get_dtype(node.output[0]) != _INT16:
            tfl_math.TflQuantizeOp.version_10(ctx, node, **options)
            return
        (scale,), (zero_point,) = node.get_attr_value("scale"), node.get_attr_value("zero_point")
        limits = np.iinfo(np.int16)
        shape, source, outputs, name = ctx.get_shape(node.output[0]), node.input[0], node.output, node.name
        ctx.remove_node(name)

        def apply(operator: str, *operands: Any) -> str:
            names = [
                operand
                if isinstance(operand, str)
                else ctx.make_const(utils.make_name(name), np.float32(operand)).output[0]
                for operand in operands
            ]
            made: str = ctx.make_node(operator, names, shapes=[shape], dtypes=[onnx.TensorProto.FLOAT]).output[0]
            return made

        rounded = apply("Add", apply("Round", apply("Div", source, scale)), zero_point)
        clipped = apply("Clip", rounded, limits.min, limits.max)
        ctx.make_node(
            "Cast", [clipped], attr={"to": _INT16}, name=name, outputs=outputs, shapes=[shape], dtypes=[_INT16]
        )


@tfl_op(["TFL_DEQUANTIZE"], onnx_op="DequantizeLinear")
class _Dequantize:
    """Reads 16 bits with plain arithmetic: DequantizeLinear does that only from opset 21 on."""

    @classmethod
    def version_10(cls, ctx: Any, node: Any, **options: Any) -> None:
        """Translate the node; called by tf2onnx."""
        if ctx.get_dtype(node.input[0]) == _INT16:
            tfl_math.TflDequantizeOp.version_1(ctx, node, **options)
        else:
            tfl_math.TflDequantizeOp.version_10(ctx, node, **options)


# --- references ---


def _verified(made: Made, request: Request, parts: Parts, content: bytes, converted: _Converted) -> Made:
    """Leave the references, and return what was made with what is to be known to judge the comparison."""
    original = _Reference(content, parts)
    # without the rounding that TensorFlow Lite does as it runs, which is no part of the model
    source = _Reference(parts.packed(), parts) if parts.widened else original
    unverified = _leave_references(request, parts, source)
    if unverified:
        return msgspec.structs.replace(made, unverified=unverified)
    samples = [
        read_npz(Path(request.folder, feeds_name(index))) for index in range(1 if request.feeds else request.samples)
    ]
    if parts.widened:
        return msgspec.structs.replace(made, notes=(_rounding_note(parts, samples, original, source),))
    if not parts.quantized:
        return made
    answers = [read_npz(Path(request.folder, answers_name(index))) for index in range(len(samples))]
    found = tflite_steps.check(parts, content, converted.raw, list(zip(samples, answers, strict=True)))
    return msgspec.structs.replace(made, notes=found.notes, tolerances=found.tolerances, steps=found.steps)


def _leave_references(request: Request, parts: Parts, source: "_Reference") -> str:
    """Have TensorFlow Lite answer as many requests as asked for; return why it cannot, or nothing."""
    inputs = [Input(port.name, port.dtype, request.inputs.get(port.name, port.shape)) for port in parts.inputs]
    if request.feeds or not any(port.span for port in parts.inputs):
        return leave_references(request, inputs, source.answer)
    for index in range(request.samples):
        feeds = _spread(draw(inputs, request.seed + index), parts.inputs, request.seed + index)
        write_npz(Path(request.folder, feeds_name(index)), feeds)
        write_npz(Path(request.folder, answers_name(index)), source.answer(feeds))
    return ""


def _spread(feeds: Mapping[str, Array], ports: Sequence[Port], seed: int) -> dict[str, Array]:
    """Return a request with values drawn from all that an input may have, where the model says what these are."""
    generator = np.random.default_rng(seed)
    spread = dict(feeds)
    for port in ports:
        if port.span is not None:
            low, high = port.span
            drawn = low + (high - low) * _uneven(generator, feeds[port.name].shape)
            spread[port.name] = (np.rint(drawn) if np.dtype(port.dtype).kind in "iu" else drawn).astype(port.dtype)
    return spread


def _uneven(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return numbers from 0 to 1, around another level in each row and channel: plain noise looks alike everywhere."""
    level = generator.random([size if axis in (0, len(shape) - 1) else 1 for axis, size in enumerate(shape)])
    uneven: Array = (level + generator.random(shape)) / 2
    return uneven


class _Reference:
    """TensorFlow Lite's interpreter, its inputs and outputs named as in the ONNX model."""

    def __init__(self, content: bytes, parts: Parts) -> None:
        self._content = content
        self._inputs = [port.name for port in parts.inputs]
        self._outputs = [port.name for port in parts.outputs]

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for the given inputs."""
        # one interpreter per request: with dynamic shapes, TensorFlow 2.21 answers a second request wrongly
        interpreter = make_interpreter(self._content)
        set_inputs(interpreter, [feeds[name] for name in self._inputs])
        interpreter.invoke()
        details = interpreter.get_output_details()
        return {
            name: interpreter.get_tensor(detail["index"]) for name, detail in zip(self._outputs, details, strict=True)
        }


def _rounding_note(
    parts: Parts, samples: Sequence[Mapping[str, Array]], original: _Reference, source: _Reference
) -> str:
    """Return how far TensorFlow Lite's rounding takes its own outputs from those of the weights."""
    largest = 0.0
    for feeds in samples:
        rounded, exact = original.answer(feeds), source.answer(feeds)
        for name, values in exact.items():
            scale = float(np.max(np.abs(values), initial=0.0)) or 1.0
            largest = max(largest, float(np.max(np.abs(rounded[name] - values), initial=0.0)) / scale)
    return (
        f"{len(parts.widened)} weights of 8 bits became float32, and the operators on them compute in float32:"
        f" TensorFlow Lite rounds what meets such weights to 8 bits as it runs, which moves its own outputs by up to"
        f" {largest:.2g} of the largest"
    )
