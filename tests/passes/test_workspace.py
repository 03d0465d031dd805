"""What kernels take beside inputs and outputs, against what a process that runs them really has resident."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from hyps.adapters.resident import peak_error_nbytes
from hyps_passes.ops import Shapes
from hyps_passes.workspace import overwritten_input, workspace_bytes

F32, F16, U8, I8, I32 = np.float32, np.float16, np.uint8, np.int8, np.int32
MS = "com.microsoft"
_THREADS = 2

_CHILD = """
import json, sys
import numpy as np
from pathlib import Path
from hyps.adapters.machine import hold_memory_down, trim
from hyps.adapters.resident import reset_peak, resident
from hyps.adapters.sessions import Mode, Sessions
hold_memory_down()
opener = Sessions(int(sys.argv[2]))
told = []
for model in sorted(Path(sys.argv[1]).glob("*.onnx")):
    feeds = dict(np.load(model.with_suffix(".npz")))
    session = opener.open(model, Mode.MAPPED, "none")
    session.run(None, feeds)
    rises = []
    for _ in range(3):
        trim()
        reset_peak()
        before = resident().total_nbytes
        made = session.run(None, feeds)
        rises.append(resident().peak_nbytes - before)
        del made
    told.append(sorted(rises)[1])
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Case:
    op_type: str
    inputs: tuple[tuple[type, tuple[int, ...]] | np.ndarray[Any, Any] | None, ...]
    output: tuple[type, tuple[int, ...]]
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


def scalar(value: float, kind: type) -> np.ndarray[Any, Any]:
    return np.array(value, kind)


def floats(*shape: int) -> tuple[type, tuple[int, ...]]:
    return F32, shape


def quantized(source: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...], **attributes: Any) -> Case:
    scale, zero, weight_zero = scalar(0.02, F32), scalar(3, U8), scalar(0, I8)
    inputs = ((U8, source), scale, zero, (I8, kernel), scale, weight_zero, scale, zero)
    return Case("QLinearConv", inputs, (U8, out), attributes=attributes)


CASES = {
    "convolution in blocks": Case(
        "Conv", (floats(1, 8, 500, 500), floats(8, 8, 3, 3)), floats(1, 8, 500, 500), attributes={"pads": [1] * 4}
    ),
    "convolution all at once": Case(
        "Conv", (floats(1, 512, 28, 28), floats(1024, 512, 3, 3)), floats(1, 1024, 26, 26), attributes={}
    ),
    "three dimensions": Case(
        "Conv", (floats(1, 64, 12, 12, 12), floats(1200, 64, 3, 3, 3)), floats(1, 1200, 10, 10, 10), attributes={}
    ),
    "transposed convolution": Case(
        "ConvTranspose",
        (floats(1, 32, 64, 64), floats(32, 64, 4, 4)),
        floats(1, 64, 130, 130),
        attributes={"strides": [2, 2]},
    ),
    "half precision convolution": Case(
        "Conv", ((F16, (1, 16, 256, 256)), (F16, (16, 16, 3, 3))), (F16, (1, 16, 254, 254)), attributes={}
    ),
    "quantized convolution": quantized((1, 64, 96, 96), (64, 64, 3, 3), (1, 64, 96, 96), pads=[1] * 4),
    "quantized depthwise": quantized((1, 256, 96, 96), (256, 1, 3, 3), (1, 256, 96, 96), pads=[1] * 4, group=256),
    "dense, transposed weight": Case(
        "Gemm", (floats(64, 4096), floats(1024, 4096)), floats(64, 1024), attributes={"transB": 1}
    ),
    "half precision product": Case("MatMul", ((F16, (64, 2048)), (F16, (2048, 2048))), (F16, (64, 2048))),
    "blocks of four bits": Case(
        "MatMulNBits",
        (floats(4, 2048), (U8, (2048, 64, 16)), floats(2048 * 64)),
        floats(4, 2048),
        MS,
        {"K": 2048, "N": 2048, "bits": 4, "block_size": 32},
    ),
    "recurrent": Case(
        "LSTM",
        (floats(500, 4, 64), floats(1, 1024, 64), floats(1, 1024, 256)),
        floats(500, 1, 4, 256),
        attributes={"hidden_size": 256},
    ),
    "attention": Case(
        "Attention",
        (floats(1, 384, 768), floats(768, 2304), floats(2304)),
        floats(1, 384, 768),
        MS,
        {"num_heads": 12},
    ),
    "softmax over channels": Case(
        "Softmax", (floats(1, 64, 200, 200),), floats(1, 64, 200, 200), attributes={"axis": 1}
    ),
    "half precision sum": Case("Add", ((F16, (1, 64, 200, 200)), (F16, (1, 64, 200, 200))), (F16, (1, 64, 200, 200))),
    "sum of three": Case("Sum", (floats(1, 64, 200, 200),) * 3, floats(1, 64, 200, 200)),
    "pooling": Case(
        "MaxPool",
        (floats(1, 64, 400, 400),),
        floats(1, 64, 200, 200),
        attributes={"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
}


def arrays(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    made = {}
    for index, given in enumerate(case.inputs):
        if isinstance(given, np.ndarray):
            made[f"x{index}"] = given
        elif given is not None:
            kind, shape = given
            whole = rng.integers(0, 9, shape) if np.issubdtype(kind, np.integer) else rng.random(shape)
            made[f"x{index}"] = whole.astype(kind)
    return made


def write(case: Case, path: Path) -> None:
    feeds = arrays(case)
    names = [f"x{index}" if f"x{index}" in feeds else "" for index in range(len(case.inputs))]
    constants = {name: value for name, value in feeds.items() if value.shape == ()}
    node = helper.make_node(case.op_type, names, ["y"], domain=case.domain, **case.attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    given = [
        helper.make_tensor_value_info(name, kinds[name], value.shape)
        for name, value in feeds.items()
        if name not in constants
    ]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", given, [onnx.ValueInfoProto(name="y")], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    np.savez(path.with_suffix(".npz"), **{name: feeds[name] for name in feeds if name not in constants})  # type: ignore[arg-type]  # numpy's stub wants a bool for `allow_pickle`


def ir_node(case: Case) -> tuple[ir.Node, Shapes]:
    feeds = arrays(case)
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(feeds[name].dtype))) if name in feeds else None
        for name in (f"x{index}" for index in range(len(case.inputs)))
    ]
    attributes = ir.convenience.convert_attributes(case.attributes)
    node = ir.Node(case.domain, case.op_type, inputs, attributes, num_outputs=1, version=17 if not case.domain else 1)
    kind, shape = case.output
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(kind)))
    return node, Shapes({"y": shape, **{name: value.shape for name, value in feeds.items()}})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what is resident is read from Linux' /proc")
def test_predictions_hold(tmp_path: Path) -> None:
    for number, case in enumerate(CASES.values()):
        write(case, tmp_path / f"{number:02}.onnx")
    child = [sys.executable, "-c", _CHILD, str(tmp_path), str(_THREADS)]
    told = subprocess.run(child, check=True, capture_output=True, text=True, timeout=60)
    error = peak_error_nbytes(_THREADS + 1)
    wrong = []
    for (name, case), measured in zip(CASES.items(), json.loads(told.stdout), strict=True):
        kind, shape = case.output
        predicted = workspace_bytes(*ir_node(case), threads=_THREADS) + math.prod(shape) * np.dtype(kind).itemsize
        if not measured - error <= predicted <= 1.1 * (measured + error):
            wrong.append(f"{name}: predicted {predicted}, measured {measured}")
    assert not wrong


@pytest.mark.parametrize(
    ("op_type", "overwrites"), [("Relu", 0), ("Sigmoid", 0), ("Reshape", 0), ("Add", None), ("Erf", None)]
)
def test_only_some_operators_work_in_place(op_type: str, overwrites: int | None) -> None:
    case = Case(op_type, (floats(1, 4),), floats(1, 4))
    assert overwritten_input(*ir_node(case)) == overwrites


def test_half_precision_is_never_computed_in_place() -> None:
    assert overwritten_input(*ir_node(Case("Relu", ((F16, (1, 4)),), (F16, (1, 4))))) is None


def test_unknown_shapes_count_as_nothing() -> None:
    for case in CASES.values():
        node, shapes = ir_node(case)
        assert 0 <= workspace_bytes(node, Shapes({}), _THREADS) <= workspace_bytes(node, shapes, _THREADS)


def test_texts_count_by_their_handles() -> None:
    node = ir.Node("", "Where", [ir.Value(name=name) for name in "cab"])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.STRING)
    assert workspace_bytes(node, Shapes({"c": (5,), "a": (5,), "b": (5,), "y": (5,)})) >= 2 * 32 * 5
