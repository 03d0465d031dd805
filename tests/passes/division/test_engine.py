"""The engine, case by case: what it makes of a region, what it leaves alone, and what it refuses."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from cut_fixtures import cut_model, distance, emit_cut, stage
from engine_fixtures import Divided, Net, divided, prepared, sizes_of
from hyps_passes.division.engine import Divide, extent
from hyps_passes.division.layout import Extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError
from hyps_passes.graph import Layer
from hyps_passes.layers import CUT, build_cut_graph
from hyps_passes.searches.split_points import shard_borders
from model_fixtures import save

CLOSE = 1e-5


def assert_same(cut: Divided, net: Net, tolerance: float = CLOSE) -> None:
    whole, pieces = cut.run(net.feeds())
    assert set(whole) == set(pieces)
    for name, value in whole.items():
        assert distance(value, pieces[name]) <= tolerance


def shards(cut: Divided) -> list[Layer]:
    return [layer for layer in build_cut_graph(cut.model, cut.sizes).layers if layer.shard is not None]


def kinds(cut: Divided) -> list[str]:
    return [node.op_type for node in cut.model.graph]


def chain(*, size: int = 12, opset: int = 17) -> tuple[Net, str]:
    """Two convolutions with a pooling between, each with an activation: nodes n0 to n4."""
    net = Net({"x": ("N", 2, size, 7)}, opset=opset)
    value = net.add("Relu", net.add("Conv", "x", net.weight(3, 2, 3, 3), pads=[1, 1, 1, 1]))
    value = net.add("MaxPool", value, kernel_shape=[2, 1], strides=[2, 1])
    return net, net.add("Relu", net.add("Conv", value, net.weight(2, 3, 3, 3), net.weight(2), pads=[1, 1, 1, 1]))


NODES = ("n0", "n1", "n2", "n3", "n4")


def attention(tokens: int = 5, heads: int = 4, width: int = 3) -> tuple[Net, list[str], str]:
    """A block of attention up to the product that mixes the heads, and a residual sum behind it."""
    size = heads * width
    net = Net({"x": ("N", tokens, size)})

    def by_heads(value: str) -> str:
        sum_ = net.add("Add", net.add("MatMul", value, net.weight(size, size)), net.weight(size))
        split = net.add("Reshape", sum_, net.constant(np.array([0, 0, heads, width])))
        return net.add("Transpose", split, perm=[0, 2, 1, 3])

    query, key, value = by_heads("x"), by_heads("x"), by_heads("x")
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = net.add("MatMul", net.add("Softmax", net.add("Mul", scores, net.constant(np.float32(0.3))), axis=-1), value)
    flat = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.constant(np.array([0, 0, size])))
    last = net.add("MatMul", flat, net.weight(size, size))
    nodes = [node.name for node in net.nodes]
    return net, nodes, net.add("Add", net.add("Add", last, net.weight(size)), "x")


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize(("axis", "count"), [(-1, 2), (-2, 3), (-2, 6), (-3, 2)])
def test_a_chain_in_pieces(axis: int, count: int, carry: bool) -> None:
    net, last = chain()
    cut = divided(net.proto(last), NODES, axis, count, carry=carry)
    assert_same(cut, net)
    assert [(layer.shard.index, layer.shard.count, layer.shard.axis) for layer in shards(cut) if layer.shard] == [
        (index, count, axis) for index in range(count)
    ]


def test_independent_pieces_compute_the_overlap_twice_and_those_that_hand_on_do_not() -> None:
    net, last = chain()
    whole, apart = divided(net.proto(last), NODES, -2, 3).computed()
    _, in_turn = divided(net.proto(last), NODES, -2, 3, carry=True).computed()
    assert in_turn == whole
    assert apart["Conv"] > whole["Conv"]


def test_a_piece_that_has_all_it_needs_makes_nothing_of_it() -> None:
    """The first piece looks so far ahead that the second one needs no new row of the first map."""
    net = Net({"x": (1, 1, 8)})
    wide = net.add("MaxPool", net.add("Relu", "x"), kernel_shape=[8], pads=[7, 7])
    short = net.add("MaxPool", wide, kernel_shape=[9])
    cut = divided(net.proto(short), ["n0", "n1", "n2"], -1, 3, carry=True)
    assert_same(cut, net, 0)
    assert kinds(cut).count("Relu") < 3
    assert len(shards(cut)) == 3


def test_an_open_batch_stays_open() -> None:
    net, last = chain()
    cut = divided(net.proto(last), NODES, -2, 3, carry=True)
    piece = next(value for node in cut.model.graph for value in node.outputs if value.name == f"{last}.0of3")
    assert piece.shape is not None
    assert [str(dim) for dim in piece.shape] == ["N", "2", "2", "7"]
    assert cut.sizes[f"{last}.0of3"] == (1, 2, 2, 7)
    larger = {"x": np.random.default_rng(3).standard_normal((5, 2, 12, 7)).astype(np.float32)}
    whole, pieces = cut.run(larger)
    assert distance(whole[last], pieces[last]) <= CLOSE


def test_all_new_values_have_a_type_a_shape_and_a_name_of_their_own() -> None:
    net, last = chain()
    cut = divided(net.proto(last), NODES, -2, 3, carry=True)
    values = [value for node in cut.model.graph for value in node.outputs]
    names = [value.name for value in values] + list(cut.model.graph.initializers) + ["x"]
    assert len(names) == len(set(names))
    assert all(value.type is not None and value.shape is not None and value.name in cut.sizes for value in values)
    nodes = [node.name for node in cut.model.graph]
    assert len(nodes) == len(set(nodes))


def test_an_open_axis_is_refused_and_the_reason_says_what_helps() -> None:
    net = Net({"x": (1, 2, "L")})
    last = net.add("Relu", "x")
    with pytest.raises(IndivisibleError) as caught:
        divided(net.proto(last), ["n0"], -1, 2)
    assert "differs between requests" in caught.value.reason
    assert "--input" in caught.value.reason


def test_slices_of_old_opsets_have_attributes() -> None:
    net, last = chain(opset=9)
    cut = divided(net.proto(last), NODES, -2, 3)
    assert_same(cut, net)
    assert all(len(node.inputs) == 1 for node in cut.model.graph if node.op_type == "Slice")


def test_values_needed_outside_are_merged_too() -> None:
    """A map that is an output of the model, and one that a later node reads at another resolution."""
    net, last = chain()
    after = net.add("GlobalMaxPool", "v2")
    for carry in (False, True):
        cut = divided(net.proto(last, "v1", after), NODES, -2, 3, carry=carry)
        assert_same(cut, net)
        assert kinds(cut).count("Conv") == 6


def test_what_leaves_the_region_is_handed_on_as_it_is_and_the_rest_is_cut_down() -> None:
    net, last = chain()
    outside = divided(net.proto(last, "v2"), NODES, -2, 2, carry=True)
    inside = divided(net.proto(last), NODES, -2, 2, carry=True)
    assert ["v2.carry.0of2" in cut.sizes for cut in (outside, inside)] == [False, True]


@pytest.mark.parametrize("carry", [False, True])
def test_what_all_pieces_need_whole_leaves_the_region_from_one(carry: bool) -> None:
    net = Net({"x": (1, 3, 6)})
    largest = net.add("ReduceMax", "x", axes=[-1])
    last = net.add("Sub", "x", largest)
    cut = divided(net.proto(last, largest), ["n0", "n1"], -1, 3, carry=carry)
    assert_same(cut, net, 0)
    assert kinds(cut).count("ReduceMax") == (1 if carry else 3)
    assert [node.name for node in cut.model.graph if node.op_type == "Concat"] == [f"{last}.merge"]


def test_thin_pieces_are_handed_to_several_later_ones_and_copied_once() -> None:
    """The kernel looks at seven rows, of which each piece makes one: they are joined where they are used."""
    net = Net({"x": (1, 1, 9)})
    last = net.add("MaxPool", net.add("Relu", "x"), kernel_shape=[7], pads=[3, 3])
    cut = divided(net.proto(last), ["n0", "n1"], -1, 9, carry=True)
    assert_same(cut, net, 0)
    carried = [node for node in cut.model.graph if "carry" in str(node.name)]
    assert [str(node.outputs[0].name) for node in carried] == []
    joins = [node for node in cut.model.graph if node.op_type == "Concat" and node.name != f"{last}.merge"]
    assert max(len(node.inputs) for node in joins) == 6  # the first piece makes four rows at once, the others one each


def test_two_ends_of_different_sizes_are_shared_out_in_proportion() -> None:
    net, last = chain()
    half = net.add("MaxPool", "v1", kernel_shape=[1, 1], strides=[3, 2])
    nodes = [*NODES[:4], "n5", "n4"]
    for axis in (-1, -2):
        for carry in (False, True):
            assert_same(divided(net.proto(last, half), nodes, axis, 2, carry=carry), net)


def test_an_end_without_the_axis_is_refused() -> None:
    net, last = chain()
    flat = net.add("ReduceMax", "v1", axes=[1, 2, 3], keepdims=0)
    with pytest.raises(IndivisibleError, match="has no axis -2"):
        divided(net.proto(last, flat), [*NODES[:4], "n5", "n4"], -2, 2)


def test_what_stands_between_and_needs_the_region_comes_behind_it() -> None:
    net = Net({"x": (1, 6)})
    first = net.add("Relu", "x")
    between = net.add("Neg", first)
    last = net.add("Tanh", first)
    cut = divided(net.proto(last, net.add("Mul", between, last)), ["n0", "n2"], -1, 2)
    assert_same(cut, net, 0)


def test_a_region_that_needs_itself_from_outside_is_refused() -> None:
    net = Net({"x": (1, 6)})
    first = net.add("Relu", "x")
    last = net.add("Add", net.add("Neg", first), first)
    with pytest.raises(IndivisibleError, match="outside the region"):
        divided(net.proto(last), ["n0", "n2"], -1, 2)


@pytest.mark.parametrize("carry", [False, True])
def test_two_dense_layers_with_one_merge(carry: bool) -> None:
    """The second one's sum is divided: the first one in rows, nothing put together between them."""
    net = Net({"x": ("N", 5)})
    hidden = net.add("Relu", net.add("Gemm", "x", net.weight(8, 5), net.weight(8), transB=1))
    last = net.add("Gemm", hidden, net.weight(8, 3), net.weight(3))
    cut = divided(net.proto(last), ["n0", "n1", "n2"], None, 4, carry=carry)
    assert_same(cut, net)
    assert "Concat" not in kinds(cut)
    assert kinds(cut).count("Add" if carry else "Sum") == (3 if carry else 1)
    weights = [layer.parameters for layer in shards(cut)]
    assert weights == [2 * 5 + 2 + 2 * 3 + 3] + [2 * 5 + 2 + 2 * 3] * 3
    assert [layer.shard.merge for layer in shards(cut) if layer.shard] == ["sum"] * 4
    assert [layer.shard.range for layer in shards(cut) if layer.shard] == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_sums_of_integers_are_added_one_by_one() -> None:
    """onnxruntime has no `Sum` of integers."""
    net = Net({"x": (2, 6)})
    left = net.add("Cast", net.add("Mul", "x", net.constant(np.float32(9))), to=onnx.TensorProto.INT8)
    product = net.add("MatMulInteger", left, net.constant(np.arange(24, dtype=np.int8).reshape(6, 4)))
    cut = divided(net.proto(product), ["n2"], None, 3)
    assert_same(cut, net, 0)
    assert kinds(cut).count("Add") == 2


def test_an_activation_that_was_fused_follows_the_sum() -> None:
    net = Net({"x": (2, 6)})
    last = net.add(
        "FusedGemm", "x", net.weight(6, 4), net.weight(4), domain="com.microsoft", activation="LeakyRelu",
        activation_alpha=0.3,
    )  # fmt: skip
    proto = net.proto(last)
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(last, 1, [2, 4]))
    cut = divided(proto, ["n0"], None, 3)
    assert_same(cut, net)
    assert kinds(cut).count("LeakyRelu") == 1


@pytest.mark.parametrize("carry", [False, True])
def test_attention_by_heads(carry: bool) -> None:
    net, nodes, last = attention()
    whole = net.proto(last)
    model = prepared(whole)
    assert extent(model, Region("heads", tuple(nodes), None), sizes_of(model)) == Extent(12, 3)
    for count in (2, 3, 4):
        cut = divided(whole, nodes, None, count, carry=carry)
        assert_same(cut, net)
        before, after = cut.computed()
        assert before == after
        assert max(layer.parameters for layer in shards(cut)) <= -(-4 // count) * 3 * (12 * 4 + 3) + 1


def test_more_pieces_than_heads_are_refused() -> None:
    net, nodes, last = attention()
    with pytest.raises(IndivisibleError, match="4 at most"):
        divided(net.proto(last), nodes, None, 5)


def test_attention_by_queries_makes_keys_and_values_once_where_pieces_hand_on() -> None:
    net, nodes, last = attention()
    before, after = divided(net.proto(last), nodes, -2, 3, carry=True).computed()
    assert before == after
    cut = divided(net.proto(last), nodes, -2, 3)
    assert_same(cut, net)


def test_groups_are_kept_whole() -> None:
    net = Net({"x": (1, 6, 5)})
    last = net.add("Relu", net.add("Conv", "x", net.weight(6, 2, 3), group=3))
    model = prepared(net.proto(last))
    assert extent(model, Region("r", ("n0", "n1"), -2), sizes_of(model)).grain in (1, 2)
    for count in (2, 3):
        assert_same(divided(net.proto(last), ["n0", "n1"], -2, count), net)


@pytest.mark.parametrize("carry", [False, True])
def test_spans_are_widened_where_alignment_does_not_help(carry: bool) -> None:
    """Channels are taken from the middle of groups: whichever way they are divided, a border lies inside a group."""
    net = Net({"x": (1, 6, 5)})
    grouped = net.add("Conv", "x", net.weight(6, 2, 3), group=3)
    bounds = [net.constant(np.array([number])) for number in (1, 5, 1)]
    last = net.add("Relu", net.add("Slice", grouped, *bounds))
    model = prepared(net.proto(last))
    assert extent(model, Region("r", ("n0", "n1", "n2"), -2, carry), sizes_of(model)) == Extent(4, 1)
    cut = divided(net.proto(last), ["n0", "n1", "n2"], -2, 2, carry=carry)
    assert_same(cut, net)
    before, after = cut.computed()
    assert (after["Conv"] == before["Conv"]) == carry


def test_quantized_weights_are_cut_before_they_are_made_floats() -> None:
    """DequantizeLinear and Transpose between the initializer and the product: each piece holds its own rows alone."""
    net = Net({"x": ("N", 6)})
    rng = np.random.default_rng(0)
    quantized = net.constant(rng.integers(-100, 100, (9, 6)).astype(np.int8))
    scales = net.constant(rng.uniform(0.01, 0.1, 9).astype(np.float32))
    weight = net.add("Transpose", net.add("DequantizeLinear", quantized, scales, axis=0), perm=[1, 0])
    last = net.add("Relu", net.add("MatMul", "x", weight))
    cut = divided(net.proto(last), ["n2", "n3"], -1, 3)
    assert_same(cut, net)
    assert [layer.weight_bytes for layer in shards(cut)] == [3 * 6 + 3 * 4] * 3
    assert quantized not in cut.model.graph.initializers


def test_a_constant_that_cannot_be_made_in_parts_is_cut_when_it_runs_unless_it_is_large() -> None:
    for size in (6, 300):
        net = Net({"x": ("N", size)})
        last = net.add("MatMul", "x", net.add("Softmax", net.weight(size, size), axis=-1))
        if size == 6:
            cut = divided(net.proto(last), ["n1"], -1, 3)
            assert_same(cut, net)
            assert kinds(cut).count("Slice") == 3
        else:
            with pytest.raises(IndivisibleError, match="Softmax needs all"):
                divided(net.proto(last), ["n1"], -1, 3)


def test_what_the_first_piece_makes_whole_needs_no_rule() -> None:
    net = Net({"x": (1, 1, 8)})
    last = net.add("MaxPool", net.add("Softmax", "x", axis=-1), kernel_shape=[8], pads=[0, 7])
    cut = divided(net.proto(last), ["n0", "n1"], -1, 2, carry=True)
    assert_same(cut, net, 0)
    assert kinds(cut).count("Softmax") == 1
    with pytest.raises(IndivisibleError, match="Softmax needs all"):
        divided(net.proto(last), ["n0", "n1"], -1, 2)


def test_parts_of_constants_are_made_once() -> None:
    net = Net({"x": (1, 4, 6)})
    weight = net.weight(4, 1)
    last = net.add("Add", net.add("Mul", "x", weight), weight)
    cut = divided(net.proto(last), ["n0", "n1"], -2, 2)
    assert_same(cut, net, 0)
    assert [name for name in cut.model.graph.initializers if name.startswith(weight)] == ["w0.0of2", "w0.1of2"]


def test_a_weight_that_others_use_stays() -> None:
    net = Net({"x": (2, 6)})
    weight = net.weight(6, 6)
    last = net.add("MatMul", net.add("MatMul", "x", weight), weight)
    cut = divided(net.proto(last), ["n0"], -1, 3)
    assert_same(cut, net)
    assert weight in cut.model.graph.initializers


def test_parts_of_weights_stay_in_their_file(tmp_path: Path) -> None:
    net = Net({"x": (1, 8)})
    last = net.add("Gemm", "x", net.weight(512, 8), transB=1)
    path = tmp_path / "model.onnx"
    onnx.save(net.proto(last), path, save_as_external_data=True, location="model.data", size_threshold=64)
    model = ir.load(path)
    Divide(Region("r", ("n0",), -1), 4).apply(model, sizes_of(model))
    parts = [value.const_value for value in model.graph.initializers.values() if value.name and "of4" in value.name]
    assert len(parts) == 4
    assert all(isinstance(part, ir.ExternalTensor) for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.numpy() for part in parts if part]), net.weights["w0"])


def test_a_region_is_divided_beside_another_of_the_same_values() -> None:
    """Names that are taken already are not given again."""
    net = Net({"x": (1, 8)})
    first = net.add("Relu", "x")
    net.nodes.append(onnx.helper.make_node("Neg", [first], ["v0.0of2"], "n0.0of2"))
    last = net.add("Tanh", "v0.0of2")
    model = prepared(net.proto(last))
    sizes = sizes_of(model)
    Divide(Region("a", ("n0",), -1), 2).apply(model, sizes)
    Divide(Region("b", ("n0.0of2", "n2"), -1), 2).apply(model, sizes)
    assert_same(Divided(net.proto(last), model, sizes), net, 0)


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    net, nodes, last = attention()
    model = prepared(net.proto(last))
    before, sizes = ir.serde.serialize_model(model), sizes_of(model)
    for axis, count in ((None, 5), (-4, 2), (-2, 6)):
        with pytest.raises(IndivisibleError):
            Divide(Region("r", tuple(nodes), axis), count).apply(model, sizes)
    assert ir.serde.serialize_model(model) == before
    assert sizes == sizes_of(model)


def test_a_value_of_unknown_size_is_refused_before_anything_is_made() -> None:
    net, nodes, last = attention()
    model = prepared(net.proto(last))
    before, sizes = ir.serde.serialize_model(model), sizes_of(model)
    del sizes["v5"]  # of the keys: pieces for spans of queries make it whole
    with pytest.raises(IndivisibleError, match="`v5` is unknown"):
        Divide(Region("r", tuple(nodes), -2), 2).apply(model, sizes)
    assert ir.serde.serialize_model(model) == before


def test_what_is_read_whole_is_not_cut() -> None:
    net = Net({"x": (1, 1, 5)})
    last = net.add("MaxPool", "x", kernel_shape=[5], pads=[2, 2])
    cut = divided(net.proto(last), ["n0"], -1, 5)
    assert_same(cut, net, 0)
    assert kinds(cut).count("Slice") == 4


def test_what_must_not_be_divided() -> None:
    net = Net({"x": (1, 8)})
    net.add("RandomNormalLike", "x")
    net.add("Relu", "v0")
    net.add("EyeLike", "v1")
    net.add("Relu", "x")
    whole = net.proto("v1", "v2", "v3")
    for nodes, reason in ((["n0", "n1"], "random"), (["n1", "n2"], "EyeLike cannot"), (["n3", "n0"], "random")):
        with pytest.raises(IndivisibleError, match=reason):
            divided(whole, nodes, -1, 2)
    cut = divided(whole, ["n3"], -1, 2)
    with pytest.raises(IndivisibleError, match="H-partition already"):
        Divide(Region("r", ("n3.0of2",), -1), 2).apply(cut.model, cut.sizes)
    with pytest.raises(ValueError, match="no nodes"):
        divided(whole, ["n9"], -1, 2)
    with pytest.raises(ValueError, match="1 pieces"):
        divided(whole, ["n3"], -1, 1)


def test_a_place_where_the_user_cuts_is_not_reached_over() -> None:
    net, last = chain()
    model = prepared(net.proto(last))
    sizes = sizes_of(model)
    next(node for node in model.graph if node.name == "n2").outputs[0].meta[CUT] = True
    with pytest.raises(IndivisibleError, match="cut behind `n2`"):
        Divide(Region("r", NODES, -2), 2).apply(model, sizes)
    Divide(Region("r", NODES[:3], -2), 2).apply(model, sizes)
    merged = next(node for node in model.graph if node.op_type == "Concat")
    assert CUT in merged.outputs[0].meta


def test_its_text_says_what_it_does() -> None:
    assert str(Divide(Region("a..b", NODES, -2, carry=True), 4)) == "divide{region=a..b,axis=-2,count=4,carry=true}"
    assert str(Divide(Region("fc1..fc2", NODES, None), 2)) == "divide{region=fc1..fc2,axis=sum,count=2}"


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("is_sum", [False, True])
def test_pieces_are_partitions_that_run_one_after_another(is_sum: bool, carry: bool, tmp_path: Path) -> None:
    """As the compiler writes them: each piece is one layer and one file, and plain onnxruntime runs them in turn."""
    net, nodes, last = attention() if is_sum else (*chain()[:1], list(NODES), chain()[1])
    path = save(net.proto(last), tmp_path / "model.onnx")
    staged, measured = stage(path, tmp_path / "stage", feeds=net.feeds())
    Divide(Region("region", tuple(nodes), None if is_sum else -2, carry), 3).apply(staged.model, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes)
    cut = emit_cut(staged, measured, graph, tmp_path / "plan", shard_borders(graph))
    whole = cut_model(path, tmp_path / "whole", lambda graph: []).run(net.feeds())
    assert distance(whole[last], cut.run(net.feeds())[last]) <= CLOSE
    parts = [part for part in cut.partitions if part.shard is not None]
    assert [(part.shard.index, part.kind, len(part.layers)) for part in parts if part.shard] == [
        (index, "horizontal", 1) for index in range(3)
    ]
