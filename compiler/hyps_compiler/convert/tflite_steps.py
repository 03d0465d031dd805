"""Quantized TensorFlow Lite models: every operator of the ONNX model on the very values that TensorFlow Lite has there.

Two right implementations of a quantized network round differently now and then, and every layer makes more of it:
TensorFlow Lite's own two sets of kernels end tens of steps apart after fifty layers. From end to end a wrong conversion
could therefore hide. Operator by operator it cannot: given the same integers, a right one is off by one step at times.

Imports TensorFlow: for the child process only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from hyps.errors import printable
from hyps.formats.quantities import counted
from hyps_compiler.convert.tflite_file import Parts, make_interpreter, set_inputs

Array = np.ndarray[Any, Any]
Sample = tuple[Mapping[str, Array], Mapping[str, Array]]
"""A request and what TensorFlow Lite answers."""

MOST_STEPS = 2
"""As many steps may an operator be off on TensorFlow Lite's own values; a step is a 256th of what a tensor holds."""

_SLACK = 1.5
"""Of what was measured from end to end, which the optimized model may be off as well."""

_SPARE_STEPS = 4
"""That onnxruntime's kernels for whole quantized operators may add to that."""

_COMPUTED = "/computed"


@dataclass(frozen=True, slots=True)
class Found:
    """How a quantized model compares, for the parent to judge its outputs by."""

    notes: tuple[str, ...]
    tolerances: dict[str, float]
    steps: dict[str, float]


def check(parts: Parts, content: bytes, raw: bytes, samples: Sequence[Sample]) -> Found:
    """Compare a quantized model operator by operator, and say how far off its outputs may be from end to end.

    Args:
        parts: of the source.
        content: of the source's file.
        raw: the ONNX model with the source's tensors under their names, before it is optimized.
        samples: requests, and what the source answers to them.
    """
    steps = {port.name: port.step for port in parts.outputs if port.step is not None}
    worst, off, compared = _compare_operators(parts, content, raw, samples)
    if worst.steps > MOST_STEPS:  # then the outputs are held to the few steps that suit a shallow model
        note = (
            f"the operator that makes `{printable(worst.name)}` is off by {counted(worst.steps, 'step')} of its"
            " quantization"
        )
        return Found(notes=(note,), tolerances={}, steps=steps)
    note = (
        "on TensorFlow Lite's own values inside the network no operator is off by more than"
        f" {counted(worst.steps, 'step')} of its quantization, and {off / max(compared, 1):.2%} of those {compared}"
        " values differ"
    )
    return Found(notes=(note,), tolerances=_tolerances(raw, samples, steps), steps=steps)


@dataclass(frozen=True, slots=True, order=True)
class _Worst:
    """The operator that is furthest off, by the tensor it makes."""

    steps: float = 0.0
    name: str = ""


def _compare_operators(parts: Parts, content: bytes, raw: bytes, samples: Sequence[Sample]) -> tuple[_Worst, int, int]:
    """Return the operator that is furthest off, how many values differ, and how many were compared."""
    model, names = _open_up(raw, [name for _, name in parts.quantized])
    session = _session(model.SerializeToString())
    worst, off, compared = _Worst(), 0, 0
    for feeds, _ in samples:
        interpreter = make_interpreter(content, keeps_all=True)
        set_inputs(interpreter, [feeds[port.name] for port in parts.inputs])
        interpreter.invoke()
        kept = {name: interpreter.get_tensor(index) for index, name in parts.quantized if name in names}
        computed = session.run([f"{name}{_COMPUTED}" for name in names], {**feeds, **kept})
        for name, values in zip(names, computed, strict=True):
            away = np.abs(values.astype(np.int64) - kept[name].astype(np.int64))
            compared, off = compared + away.size, off + int(np.count_nonzero(away))
            steps = float(away.max(initial=0)) / 2.0 ** (np.iinfo(values.dtype).bits - 8)
            worst = max(worst, _Worst(steps, name))
    return worst, off, compared


def _open_up(raw: bytes, quantized: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with each quantized value as an input of what uses it and as an output of what makes it.

    Also returns the names of the values at which it was opened.
    """
    model = onnx.ModelProto.FromString(raw)
    types = {"QuantizeLinear": None, "Cast": onnx.TensorProto.INT16}
    zero_points = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    wanted, names = set(quantized), []
    for node in model.graph.node:
        name = node.output[0] if node.output else ""
        if name not in wanted or node.op_type not in types:
            continue
        dtype = types[node.op_type] or zero_points[node.input[2]]
        node.output[0] = f"{name}{_COMPUTED}"
        if name not in outputs:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, None))
        model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], dtype, None))
        names.append(name)
    kept = [value for value in model.graph.output if value.name.endswith(_COMPUTED)]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model, names


def _tolerances(raw: bytes, samples: Sequence[Sample], steps: Mapping[str, float]) -> dict[str, float]:
    """Return how far off an output may be from end to end, relative to its largest value.

    The model before optimization, each operator of which is right, shows how far rounding goes.
    """
    session = _session(raw)
    tolerances: dict[str, float] = {}
    for name, step in steps.items():
        off, largest = 0.0, 0.0
        for feeds, answers in samples:
            (values,) = session.run([name], dict(feeds))
            off = max(off, float(np.max(np.abs(values.astype(np.float64) - answers[name]), initial=0.0)))
            largest = max(largest, float(np.max(np.abs(answers[name].astype(np.float64)), initial=0.0)))
        if largest:
            tolerances[name] = (_SLACK * off + _SPARE_STEPS * step) / largest
    return tolerances


def _session(model: bytes) -> onnxruntime.InferenceSession:
    """Return a session that computes what the graph says, with no operators made of several."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
