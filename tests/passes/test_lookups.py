"""Look-ups: which weights are read by the row only, and by what."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph, node_inputs
from hyps_passes.lookups import find_look_ups
from hyps_passes.searches.chain import Limits

TABLE = np.zeros((512, 512), np.float32)
IDS = helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])
node = helper.make_node


def look_ups(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    inputs: tuple[onnx.ValueInfoProto, ...] = (IDS,),
) -> dict[str, tuple[str, ...]]:
    """Return the tables of a model and what they are looked up by."""
    held = [numpy_helper.from_array(value, name) for name, value in {"table": TABLE, **(weights or {})}.items()]
    graph = helper.make_graph(nodes, "g", list(inputs), [], held)
    made = ir.serde.deserialize_model(helper.make_model(graph)).graph
    found = find_look_ups(tuple(made), node_inputs, lambda value: value.is_graph_input())
    return {str(one.table.name): tuple(str(value.name) for value in one.indices) for one in found}


GATHER = node("Gather", ["table", "ids"], ["rows"])


def test_a_table_that_is_gathered_from_is_looked_up() -> None:
    assert look_ups([GATHER]) == {"table": ("ids",)}


def test_a_quantized_one_is_before_it_is_dequantized() -> None:
    codes: dict[str, Any] = {"codes": np.zeros((1024, 1024), np.int8), "scale": np.ones((), np.float32)}
    nodes = [node("Gather", ["codes", "ids"], ["c"]), node("DequantizeLinear", ["c", "scale"], ["rows"])]
    assert look_ups(nodes, codes) == {"codes": ("ids",)}


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([node("Gather", ["table", "ids"], ["rows"], axis=1)], "columns are looked up"),
        ([GATHER, node("MatMul", ["rows", "table"], ["y"])], "it is multiplied with too"),
        ([GATHER, node("Gather", ["table", "ids"], ["columns"], axis=-1)], "columns are looked up too"),
        ([node("Add", ["ids", "ids"], ["sum"]), node("Gather", ["table", "sum"], ["rows"])], "indices are computed"),
        ([node("Gather", ["table", "some"], ["rows"])], "indices are a weight"),
        (
            [node("Cast", ["ids"], ["c"], to=TensorProto.INT8), node("Gather", ["table", "c"], ["y"])],
            "cut off to bytes",
        ),
        ([node("Transpose", ["table"], ["t"]), node("Gather", ["t", "ids"], ["rows"])], "it is turned around first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_weight_of_which_more_is_read_is_none(nodes: list[onnx.NodeProto], why: str) -> None:
    assert look_ups(nodes, {"some": np.zeros(3, np.int64)}) == {}, why


def test_a_table_that_a_graph_inside_reads_is_none() -> None:
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    inner = {
        "then_branch": helper.make_graph([node("Abs", ["table"], ["a"])], "then", [], []),
        "else_branch": helper.make_graph([node("Gather", ["table", "ids"], ["b"])], "else", [], []),
    }
    assert look_ups([node("If", ["flag"], ["y"], **inner)], inputs=(IDS, flag)) == {}  # type: ignore[arg-type]  # graphs
    assert look_ups([GATHER, node("If", ["flag"], ["y"], **inner)], inputs=(IDS, flag)) == {}  # type: ignore[arg-type]


def test_small_weights_are_read_whole() -> None:
    nodes = [node("Gather", ["few", "ids"], ["rows"])]
    assert look_ups(nodes, {"few": np.zeros((10, 512), np.float32)}) == {}


def test_indices_may_have_another_shape_or_width() -> None:
    nodes = [
        node("Unsqueeze", ["ids", "axes"], ["u"]),
        node("Cast", ["u"], ["narrow"], to=TensorProto.INT32),
        node("Slice", ["narrow", "start", "end"], ["part"]),
        node("Gather", ["table", "part"], ["rows"]),
    ]
    numbers = {"axes": np.array([0]), "start": np.array([1]), "end": np.array([2])}
    assert look_ups(nodes, numbers) == {"table": ("ids",)}


def test_indices_that_were_no_integers_are_none() -> None:
    floats = helper.make_tensor_value_info("floats", TensorProto.FLOAT, ["tokens"])
    nodes = [node("Cast", ["floats"], ["c"], to=TensorProto.INT64), node("Gather", ["table", "c"], ["rows"])]
    assert look_ups(nodes, inputs=(floats,)) == {}


def test_several_look_ups_of_one_table_go_by_all_their_indices() -> None:
    more = helper.make_tensor_value_info("more", TensorProto.INT32, ["others"])
    nodes = [
        GATHER,
        node("Gather", ["table", "more"], ["b"]),
        node("Gather", ["table", "ids"], ["c"]),
        node("Gather", ["second", "more"], ["d"]),
    ]
    assert look_ups(nodes, {"second": TABLE}, (IDS, more)) == {"table": ("ids", "more"), "second": ("more",)}


def test_packed_tables_are_looked_up_with_their_scales() -> None:
    weights = {"codes": np.zeros((2048, 1024), np.uint8), "scales": np.zeros((2048, 128), np.float32)}
    packed = node("GatherBlockQuantized", ["codes", "ids", "scales"], ["y"], domain="com.microsoft", bits=8)
    assert look_ups([packed], weights) == {"codes": ("ids",), "scales": ("ids",)}
    across = helper.make_node(
        "GatherBlockQuantized", ["codes", "ids", "scales"], ["y"], domain="com.microsoft", bits=8, quantize_axis=0
    )
    assert look_ups([across], weights) == {}


def test_embeddings_are_looked_up_by_words_segments_and_given_positions() -> None:
    ids = [helper.make_tensor_value_info(name, TensorProto.INT32, [1, "n"]) for name in ("words", "segments", "places")]
    weights = dict.fromkeys(("word", "position", "segment"), TABLE) | {"gain": np.ones(512, np.float32)}
    inputs = ["words", "segments", "word", "position", "segment", "gain", "gain"]
    kind = {"domain": "com.microsoft"}
    given = node("EmbedLayerNormalization", [*inputs, "", "places"], ["y"], **kind)
    counted = node("EmbedLayerNormalization", inputs, ["y"], **kind)
    told = {"word": ("words",), "segment": ("segments",)}
    assert look_ups([given], weights, tuple(ids)) == {**told, "position": ("places",)}
    assert look_ups([counted], weights, tuple(ids)) == told
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    half |= {name: np.zeros((1024, 1024), np.float16) for name in ("word", "position", "segment")}
    assert look_ups([given], half, tuple(ids)) == {}


def tied(head: bool) -> CutGraph:
    """Return the layers of a model that looks up rows of a table twice and, with a `head`, multiplies with it too."""
    nodes = [GATHER, node("Relu", ["rows"], ["r"]), node("Gather", ["table", "ids"], ["more"])]
    if head:
        nodes.append(node("MatMul", ["table", "column"], ["scores"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [3])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("r", "more", "scores")[: 2 + head]
    ]
    held = {"table": TABLE, "column": np.ones((512, 1), np.float32)}
    inits = [numpy_helper.from_array(value, name) for name, value in held.items()]
    model = ir.serde.deserialize_model(helper.make_model(helper.make_graph(nodes, "g", [ids], ends, inits)))
    sizes = {"ids": (3,), "rows": (3, 512), "r": (3, 512), "more": (3, 512), "scores": (512, 1)}
    for made in (value for one in model.graph for value in one.outputs):
        made.type = ir.TensorType(ir.DataType.FLOAT)
    return build_cut_graph(model, sizes)


def test_rows_count_in_memory_and_not_the_table() -> None:
    graph = tied(head=False)
    rows = 3 * 4096  # of 2048 bytes each, which never lie in two pages
    assert [layer.absent_bytes for layer in graph.layers] == [TABLE.nbytes - 3 * 4096] * 2
    window = graph.window(0, 1)
    assert window.absent_bytes == TABLE.nbytes - 2 * rows
    assert window.peak_bytes is not None
    assert Limits(reads_rows=True).needed_nbytes(window) == window.peak_bytes - window.absent_bytes
    assert Limits().needed_nbytes(window) == window.peak_bytes


def test_a_table_that_a_window_reads_whole_counts_whole() -> None:
    graph = tied(head=True)
    assert graph.window(0, 1).absent_bytes > 0
    assert graph.window(0, 2).absent_bytes == 0
    assert graph.window(2, 2).absent_bytes == 0
