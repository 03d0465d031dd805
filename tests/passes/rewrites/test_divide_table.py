"""Tables divided by rows: bit for bit what the whole look-up gives, in onnxruntime."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from hyps_passes.layers import SHARD, build_cut_graph
from hyps_passes.rewrites.divide_table import DivideTable, TableLayer, find_table
from hyps_passes.rewrites.slice_dense import Refusal
from rule_checks import Data, numbers, some_shape

Array = np.ndarray[Any, Any]

_TYPES = (np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.bool_)


def _model(nodes: list[Any], indices: Array, constants: dict[str, Array], opset: int = 21) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(indices.dtype)
    dims = [f"d{axis}" for axis in range(indices.ndim)]
    inputs = [helper.make_tensor_value_info("indices", kind, dims)]
    outputs = [onnx.ValueInfoProto(name="y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "one", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _run(model: onnx.ModelProto, indices: Array) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"indices": indices})[0])


class _Case:
    """A model, annotated as the compiler annotates it, and what it gives for one request."""

    def __init__(self, nodes: list[Any], indices: Array, constants: dict[str, Array], opset: int = 21) -> None:
        self.proto = onnx.shape_inference.infer_shapes(_model(nodes, indices, constants, opset))
        self.indices, self.expected = indices, _run(self.proto, indices)
        self.model = ir.serde.deserialize_model(self.proto)
        self.sizes = {"indices": indices.shape, "y": self.expected.shape}
        for value in self.proto.graph.value_info:
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if all(dims):
                self.sizes[value.name] = tuple(dims)

    def find(self) -> TableLayer | Refusal:
        layers = build_cut_graph(self.model, self.sizes).layers
        layer = next(layer for layer in layers if any(node.op_type == "Gather" for node in layer.nodes))
        return find_table(self.model, layer, self.sizes)

    def table(self) -> TableLayer:
        found = self.find()
        assert isinstance(found, TableLayer), found
        return found

    def divided(self, count: int, *, carry: bool) -> onnx.ModelProto:
        self.table().rewrite(count, carry=carry).apply(self.model, self.sizes)
        proto = ir.serde.serialize_model(self.model)
        onnx.checker.check_model(proto)
        return proto


def _table(data: Data, dtype: Any) -> Array:
    rows = data.draw(st.integers(2, 9), "rows")
    before, behind = (some_shape(data, least=0, most=1) for _ in range(2))
    shape = (*before, rows, *behind)
    if dtype is np.bool_:
        return numbers(data, shape, np.int8) > 0
    table = numbers(data, shape, dtype)
    if table.dtype.kind == "f":
        special = np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
        table.reshape(-1)[: len(special)] = special[: table.size]
    return table


def _indices(data: Data, rows: int) -> Array:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed of the indices"))
    dtype = data.draw(st.sampled_from([np.int32, np.int64]), "type of the indices")
    return np.asarray(rng.integers(-rows, rows, some_shape(data, least=0, most=2)), dtype)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pieces_are_the_whole_bit_for_bit(data: Data) -> None:
    table = _table(data, data.draw(st.sampled_from(_TYPES), "type"))
    axis = data.draw(st.integers(0, table.ndim - 1), "axis")
    if table.shape[axis] < 2:
        axis = int(np.argmax(table.shape))
    indices = _indices(data, table.shape[axis])
    opset = data.draw(st.sampled_from([13, 21]), "opset")
    node = helper.make_node("Gather", ["table", "indices"], ["y"], "look", axis=axis)
    case = _Case([node], indices, {"table": table}, opset)
    assert case.table().most == table.shape[axis]
    count = data.draw(st.integers(2, table.shape[axis]), "count")

    divided = case.divided(count, carry=data.draw(st.booleans(), "carry"))
    made = _run(divided, indices)
    assert made.dtype == case.expected.dtype
    zero = made.dtype.type(0)
    assert (made + zero).tobytes() == (case.expected + zero).tobytes(), "equal but for the sign of zeros"
    assert {value.name for value in divided.graph.output} == {"y"}
    assert case.sizes["y"] == made.shape


def _quantized(data: Data, rows: int, columns: int, kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return table, scale and zero point, and the attributes of what dequantizes them."""
    shapes: dict[str, tuple[int, ...]] = {
        "all": (),
        "columns": (columns,),
        "rows": (rows,),
        "blocks": (rows // 2, columns),
    }
    scale_shape = shapes[kind]
    constants = {
        "table": numbers(data, (rows, columns), np.int8),
        "scale": np.asarray(np.abs(numbers(data, scale_shape)) + 0.01, np.float32),
        "zero": numbers(data, scale_shape, np.int8),
    }
    attributes = {"all": {}, "columns": {"axis": -1}, "rows": {"axis": 0}, "blocks": {"axis": 0, "block_size": 2}}
    return constants, attributes[kind]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_quantized_tables_are_divided_before_and_behind_the_scales(data: Data) -> None:
    kind = data.draw(st.sampled_from(["all", "columns", "rows", "blocks", "behind"]), "scales")
    rows, columns = 2 * data.draw(st.integers(2, 4), "rows"), data.draw(st.integers(1, 5), "columns")
    constants, attributes = _quantized(data, rows, columns, "all" if kind == "behind" else kind)
    look, scale = ["table", "dequantized"] if kind != "behind" else ["entries", "y"], ["scale", "zero"]
    nodes = [
        helper.make_node("DequantizeLinear", [look[0], *scale], [look[1]], "scaling", **attributes),
        helper.make_node("Gather", ["dequantized", "indices"], ["y"], "look"),
    ]
    if kind == "behind":
        nodes[1] = helper.make_node("Gather", ["table", "indices"], ["entries"], "look")
        nodes.reverse()
    indices = _indices(data, rows)
    case = _Case(nodes, indices, constants)
    case.sizes["entries"] = (*indices.shape, columns)
    found = case.table()
    assert (found.rows, found.grain) == (rows, 2 if kind == "blocks" else 1)

    divided = case.divided(data.draw(st.integers(2, found.most), "count"), carry=data.draw(st.booleans(), "carry"))

    np.testing.assert_array_equal(_run(divided, indices), case.expected)
    assert "table" not in {value.name for value in divided.graph.initializer}


def test_a_table_that_is_cast_is_cast_in_parts() -> None:
    table = np.arange(12, dtype=np.float16).reshape(6, 2)
    nodes = [
        helper.make_node("Cast", ["table"], ["wide"], "cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", ["wide", "indices"], ["y"], "look"),
    ]
    case = _Case(nodes, np.asarray([[5, -6], [2, -1]], np.int64), {"table": table})

    divided = case.divided(3, carry=False)

    np.testing.assert_array_equal(_run(divided, case.indices), case.expected)
    assert sum(node.op_type == "Cast" and node.output[0].startswith("wide") for node in divided.graph.node) == 3


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("index", [6, -7, 100, -100, 11, -12])
def test_an_index_beyond_the_table_fails_as_in_the_whole(index: int, carry: bool) -> None:
    case = _plain()
    divided = case.divided(4, carry=carry)

    with pytest.raises(Exception, match="out of data bounds"):
        _run(case.proto, np.asarray([index]))
    with pytest.raises(Exception, match="out of data bounds"):
        _run(divided, np.asarray([0, index]))


def _plain(opset: int = 21) -> _Case:
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    node = helper.make_node("Gather", ["table", "indices"], ["y"], "look")
    return _Case([node], np.asarray([0, 5, -1], np.int64), {"table": table}, opset)


@pytest.mark.parametrize("carry", [False, True])
def test_pieces_say_which_rows_they_have(carry: bool) -> None:
    case = _plain()
    layer = case.table().layer
    case.divided(4, carry=carry)

    shards = sorted({node.meta[SHARD] for node in case.model.graph if SHARD in node.meta}, key=lambda s: s.index)
    assert [shard.range for shard in shards] == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert {(shard.layer, shard.axis, shard.count, shard.merge) for shard in shards} == {(layer, -2, 4, "sum")}
    graph = build_cut_graph(case.model, case.sizes)
    assert [piece.shard.range for piece in graph.layers if piece.shard is not None] == [s.range for s in shards]
    held = [
        piece.parameters - 2 * piece.shard.range[1] + 2 * piece.shard.range[0] for piece in graph.layers if piece.shard
    ]
    assert set(held) <= {0, 1}, "beside its rows a piece holds what adds nothing"


def test_a_table_that_is_needed_elsewhere_stays() -> None:
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    nodes = [
        helper.make_node("Gather", ["table", "indices"], ["entries"], "look"),
        helper.make_node("MatMul", ["entries", "turned"], ["y"], "project"),
        helper.make_node("Transpose", ["table"], ["turned"], "turn"),
    ]
    nodes = [nodes[0], nodes[2], nodes[1]]
    case = _Case(nodes, np.asarray([0, 5, -1], np.int64), {"table": table})
    case.sizes["entries"] = (3, 2)

    divided = case.divided(2, carry=False)

    np.testing.assert_array_equal(_run(divided, case.indices), case.expected)
    assert "table" in {value.name for value in divided.graph.initializer}


def test_the_rewrite_reads_as_text() -> None:
    assert str(DivideTable("words", "look", 3)) == "divide-table{layer=words,count=3}"
    assert str(DivideTable("words", "look", 3, carry=True)) == "divide-table{layer=words,count=3,carry=true}"


def test_more_pieces_than_rows_are_an_error() -> None:
    case = _plain()

    with pytest.raises(ValueError, match="7 pieces of 6 rows"):
        case.table().rewrite(7).apply(case.model, case.sizes)


def test_what_cannot_be_divided_says_why() -> None:
    one_row = _Case(
        [helper.make_node("Gather", ["table", "indices"], ["y"], "look")],
        np.asarray([0]),
        {"table": np.ones((1, 4), np.float32)},
    )
    computed = _Case(
        [
            helper.make_node("Cast", ["indices"], ["table"], "cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", ["table", "indices"], ["y"], "look"),
        ],
        np.asarray([0, 1]),
        {},
    )
    text = _Case(
        [
            helper.make_node("Gather", ["table", "indices"], ["words"], "look"),
            helper.make_node("StringNormalizer", ["words"], ["y"], "normalize"),
        ],
        np.asarray([0]),
        {"table": np.asarray(["a", "b"], object)},
    )
    text.sizes["words"] = (1,)
    found = [case.find() for case in (one_row, computed, text, _plain(8))]

    reasons = [refusal.reason for refusal in found if isinstance(refusal, Refusal)]
    assert [
        part in reason for part, reason in zip(("no parts", "not constant", "STRING", "opset 8"), reasons, strict=True)
    ]
    for part, reason in zip(("no parts", "not constant", "STRING", "opset 8"), reasons, strict=True):
        assert part in reason
