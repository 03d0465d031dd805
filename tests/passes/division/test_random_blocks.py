"""Random attention and feed-forward blocks, divided as one region each, against the whole block in onnxruntime."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hyps_compiler.irfile import load_model, save_model
from hyps_compiler.measure import measure
from hyps_passes.division.engine import Divide, extent
from hyps_passes.division.region import Region
from rule_checks import Data, largest, numbers

Array = np.ndarray[Any, Any]


class _Block:
    """Nodes and weights of a block that reads `x`, `[batch, tokens, width]`, as they are appended."""

    def __init__(self, data: Data, width: int) -> None:
        self.data, self.width = data, width
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}

    def node(self, op_type: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def weight(self, name: str, *shape: int) -> str:
        self.weights[name] = numbers(self.data, shape)
        return name

    def numbers(self, name: str, *values: int) -> str:
        self.weights[name] = np.asarray(values, np.int64)
        return name

    def dense(self, name: str, x: str, inputs: int, outputs: int) -> str:
        made = self.node("MatMul", name, [x, self.weight(f"{name}.w", inputs, outputs)])
        if self.data.draw(st.booleans(), f"bias of {name}"):
            made = self.node("Add", f"{name}.bias", [made, self.weight(f"{name}.b", outputs)])
        return made

    def attention(self, heads: int, size: int, *, fused: bool) -> str:
        width = heads * size
        query, key, value = (self.dense(name, "x", self.width, width) for name in ("query", "key", "value"))
        if fused:
            context = self.node(
                "MultiHeadAttention", "attend", [query, key, value], num_heads=heads, domain="com.microsoft"
            )
        else:
            context = self._plain(query, key, value, heads, size)
        return self.node("MatMul", "project", [context, self.weight("project.w", width, self.width)])

    def _plain(self, query: str, key: str, value: str, heads: int, size: int) -> str:
        shape = self.numbers("shape", 0, 0, heads, size)
        orders = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        apart = {
            name: self.node("Transpose", f"{name}.turn", [self.node("Reshape", f"{name}.split", [x, shape])], perm=perm)
            for (name, perm), x in zip(orders.items(), (query, key, value), strict=True)
        }
        shares = self.node("Softmax", "softmax", [self.node("MatMul", "scores", [apart["query"], apart["key"]])])
        context = self.node(
            "Transpose", "back", [self.node("MatMul", "context", [shares, apart["value"]])], perm=[0, 2, 1, 3]
        )
        return self.node("Reshape", "join", [context, self.numbers("joined", 0, 0, -1)])

    def model(self, output: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", self.width])]
        initializers = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "block", infos, [onnx.ValueInfoProto(name=output)], initializers)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _run(path: Path, feeds: dict[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def _check(data: Data, block: _Block, output: str, grain: int) -> None:
    """Check that the block is divided as a whole, with one sum behind it, and gives the same."""
    nodes = [str(node.name) for node in block.nodes]
    feeds = {"x": numbers(data, (2, 5, block.width))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(block.model(output), path)
        whole, model = _run(path, feeds), load_model(path)
        sizes = measure(model, path, shapes={}, feeds=feeds).sizes
        region = Region("block", tuple(nodes), None)
        found = extent(model, region, sizes)
        assert found.grain == grain
        Divide(region, data.draw(st.integers(2, found.most), "pieces")).apply(model, sizes)
        save_model(model, path)
        made = _run(path, feeds)
    np.testing.assert_allclose(made, whole, rtol=0, atol=1e-5 * largest(whole))
    assert _merges(model) == ["Sum"]


def _merges(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type in ("Sum", "Concat")]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_attention_is_divided_from_its_projections_to_its_sum(data: Data) -> None:
    heads, size = data.draw(st.integers(2, 6), "heads"), data.draw(st.integers(1, 8), "size")
    block = _Block(data, data.draw(st.integers(1, 12), "width"))

    _check(data, block, block.attention(heads, size, fused=data.draw(st.booleans(), "fused")), size)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_dense_layers_in_a_row_are_divided_with_one_sum(data: Data) -> None:
    inner = data.draw(st.integers(2, 16), "inner width")
    block = _Block(data, data.draw(st.integers(1, 12), "width"))
    hidden = block.node("Sigmoid", "act", [block.dense("expand", "x", block.width, inner)])
    output = block.node("MatMul", "contract", [hidden, block.weight("contract.w", inner, block.width)])

    _check(data, block, output, 1)
