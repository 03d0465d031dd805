"""Recurrent layers in pieces: by direction, gates, batch and time, run one after another, they give the whole."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cut_fixtures import Array, Cut, distance, emit_cut, stage, whole_answer
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.divide_recurrent import WAYS, RecurrentLayer, Way, find_recurrent
from hyps_passes.rewrites.slice_dense import Refusal
from hyps_passes.searches.split_points import shard_borders
from model_fixtures import floats, model_of, save
from recurrent_fixtures import ACTIVATIONS, GATES, Recurrent

_NEEDS_NUMBERS = ("Elu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu")


def divided(recurrent: Recurrent, way: Way, count: int, folder: Path) -> tuple[Cut, dict[str, Array], Path]:
    """Return the partitions of the divided model, what they make, and the model's file."""
    path = save(recurrent.model(), folder / "m.onnx")
    staged, measured = stage(path, folder / "stage", feeds=recurrent.feeds())
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    found = [find_recurrent(layer, way, measured.sizes) for layer in graph.layers]
    (layer,) = (one for one in found if isinstance(one, RecurrentLayer))
    layer.rewrite(min(max(count, layer.least), layer.most)).apply(staged.model, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    borders = sorted(set(shard_borders(graph)) & set(graph.legal_borders()))
    cut = emit_cut(staged, measured, graph, folder / "plan", borders)
    return cut, cut.run(recurrent.feeds()), path


def assert_same(recurrent: Recurrent, way: Way, count: int, folder: Path) -> Cut:
    cut, made, path = divided(recurrent, way, count, folder)
    for name, value in whole_answer(path, recurrent.feeds()).items():
        assert value.dtype == made[name].dtype
        limit = 1e-5 if recurrent.dtype == TensorProto.FLOAT else 1e-2
        assert distance(value, made[name]) <= limit, (name, recurrent)
    assert_sizes(cut, made)
    return cut


def assert_sizes(cut: Cut, made: dict[str, Array]) -> None:
    """What crosses a border has the declared type and size."""
    for value in cut.graph.values:
        if value.name in made:
            assert value.nbytes == made[value.name].nbytes, value.name
            shape = value.value.shape
            assert shape is not None
            pairs = zip(shape.dims, made[value.name].shape, strict=True)
            assert all(not isinstance(dim, int) or dim == size for dim, size in pairs), value.name


@st.composite
def recurrents(draw: st.DrawFn, way: Way) -> Recurrent:
    op_type = draw(st.sampled_from(sorted(GATES)))
    both = ("bidirectional",) if way == "direction" else ("forward", "reverse", "bidirectional")
    directions = ("forward", "reverse") if way == "time" else both
    made = Recurrent(
        op_type=op_type,
        direction=draw(st.sampled_from(directions)),
        time=draw(st.integers(2 if way == "time" else 1, 7)),
        batch=draw(st.integers(2 if way == "batch" else 1, 4)),
        inputs=draw(st.integers(1, 5)),
        hidden=draw(st.integers(2, 6)),
        bias=draw(st.booleans()),
        states=draw(st.booleans()),
        opset=draw(st.sampled_from((9, 11, 13, 14, 17, 18))),
        seed=draw(st.integers(0, 9)),
    )
    count = 3 if op_type == "LSTM" else 2
    used = draw(st.sets(st.integers(0, count - 1), min_size=1))
    made = replace(made, outputs=tuple(sorted(used)))
    if way != "time" and draw(st.booleans()):
        made = replace(made, lengths=tuple(draw(st.integers(0, made.time)) for _ in range(made.batch)))
    if op_type == "LSTM":
        made = replace(made, peepholes=draw(st.booleans()))
    if way in ("direction", "gates") and made.lengths is None:
        made = replace(made, is_open=draw(st.booleans()))
    return replace(made, attributes=draw(attributes(made)))


@st.composite
def attributes(draw: st.DrawFn, made: Recurrent) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if draw(st.booleans()):
        told["clip"] = draw(st.sampled_from((0.25, 1.5)))
    if made.op_type == "GRU":
        told["linear_before_reset"] = draw(st.integers(0, 1))
    if made.op_type == "LSTM" and draw(st.booleans()):
        told["input_forget"] = 1
    if draw(st.booleans()):
        small = () if made.op_type == "RNN" else ("tanh",)  # which onnxruntime's RNN refuses
        names = ("Sigmoid", "Tanh", "Relu", "Softsign", *small, *_NEEDS_NUMBERS)
        chosen = [draw(st.sampled_from(names)) for _ in range(ACTIVATIONS[made.op_type] * made.directions)]
        told["activations"] = chosen
        told["activation_alpha"] = [0.1 * (i + 1) for i, name in enumerate(chosen) if name in _NEEDS_NUMBERS]
        told["activation_beta"] = [0.3 + 0.1 * i for i, name in enumerate(chosen) if name == "HardSigmoid"]
    return {name: value for name, value in told.items() if value != []}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_pieces_give_the_whole(way: Way, data: st.DataObject) -> None:
    recurrent, count = data.draw(recurrents(way)), data.draw(st.sampled_from((2, 3, 7)))
    with TemporaryDirectory() as folder:
        assert_same(recurrent, way, count, Path(folder))


@pytest.mark.parametrize("way", WAYS)
def test_half_floats_stay_half_floats(way: Way, tmp_path: Path) -> None:
    direction = "bidirectional" if way == "direction" else "forward"
    recurrent = Recurrent(dtype=TensorProto.FLOAT16, direction=direction, batch=4)
    if way in ("direction", "batch"):
        assert_same(recurrent, way, 2, tmp_path)
    else:
        assert (
            refusal(recurrent, way, tmp_path)
            == {
                "gates": "its weights are FLOAT16",
                "time": "states of FLOAT16 would be rounded between the pieces",
            }[way]
        )


def test_directions_hold_half_the_weights_each(tmp_path: Path) -> None:
    recurrent = Recurrent(direction="bidirectional", hidden=8, outputs=(0, 1, 2), states=True, peepholes=True)
    cut = assert_same(recurrent, "direction", 2, tmp_path)
    shards = [part for part in cut.partitions if part.shard is not None]
    whole = sum(value.size for value in weights_of(recurrent).values())
    assert [part.parameters for part in shards] == [whole // 2] * 2
    assert [(part.shard.axis, part.shard.range) for part in shards if part.shard] == [(-3, (0, 1)), (-3, (1, 2))]
    assert [len(part.outputs) for part in shards] == [3, 3]
    assert "made2.1of2" in shards[1].outputs


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_no_partition_holds_input_and_recurrence_weights(direction: str, tmp_path: Path) -> None:
    recurrent = Recurrent(direction=direction, hidden=8, inputs=16, outputs=(0, 2), states=True, bias=False)
    cut = assert_same(recurrent, "gates", 4, tmp_path)
    held = weights_of(recurrent)
    most = {part.parameters for part in cut.partitions if part.parameters}
    assert most == {held["w"].size // 4 // recurrent.directions, held["r"].size // recurrent.directions}
    projections = [p.shard for p in cut.partitions if p.shard is not None and p.shard.layer == "cell.input"]
    assert [shard.index for shard in projections] == list(range(4 * recurrent.directions))
    assert [shard.range[0] for shard in projections] == [8 * index for index in range(4 * recurrent.directions)]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_pieces_of_time_hand_on_their_states(direction: str, tmp_path: Path) -> None:
    recurrent = Recurrent(direction=direction, time=7, outputs=(0, 2))
    cut = assert_same(recurrent, "time", 3, tmp_path)
    shards = [part for part in cut.partitions if part.shard is not None]
    order = [part.shard.index for part in shards if part.shard]
    assert order == ([0, 1, 2] if direction == "forward" else [2, 1, 0])
    assert "made2.carry.1of3" in shards[1].outputs
    assert "made2" in shards[2].outputs


def test_quantized_weights_are_divided_by_direction_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hidden, inputs = 4, 3
    weights: dict[str, Array] = {
        "w": rng.integers(0, 255, (2, inputs, 4 * hidden)).astype(np.uint8),
        "r": rng.integers(0, 255, (2, hidden, 4 * hidden)).astype(np.uint8),
        "b": rng.standard_normal((2, 8 * hidden)).astype(np.float32),
        "ws": (rng.random((2, 4 * hidden)) * 0.01).astype(np.float32),
        "wz": np.full((2, 4 * hidden), 120, np.uint8),
        "rs": (rng.random((2, 4 * hidden)) * 0.01).astype(np.float32),
        "rz": np.full((2, 4 * hidden), 130, np.uint8),
    }
    names = ["x0", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        names,
        ["y", "yh"],
        "cell",
        domain="com.microsoft",
        hidden_size=hidden,
        direction="bidirectional",
    )
    nodes = [helper.make_node("Neg", ["x"], ["x0"]), node]
    model = model_of(nodes, [floats("x", 5, 2, inputs)], [floats("y", 5, 2, 2, hidden)], weights, contrib=True)
    path = save(model, tmp_path / "m.onnx")
    feeds = {"x": rng.standard_normal((5, 2, inputs)).astype(np.float32)}
    staged, measured = stage(path, tmp_path / "stage", feeds=feeds)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    (layer,) = (layer for layer in graph.layers if "Quantize" in layer.kind)
    for way in ("gates", "batch", "time"):
        assert isinstance(find_recurrent(layer, way, measured.sizes), Refusal)
    found = find_recurrent(layer, "direction", measured.sizes)
    assert isinstance(found, RecurrentLayer)
    found.rewrite(2).apply(staged.model, measured.sizes)
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    cut = emit_cut(staged, measured, graph, tmp_path / "plan", graph.legal_borders())
    assert distance(whole_answer(path, feeds)["y"], cut.run(feeds)["y"]) <= 1e-5


REFUSALS: dict[str, tuple[Recurrent, Way, str]] = {
    "one direction": (Recurrent(), "direction", "it has one direction"),
    "both in time": (Recurrent(direction="bidirectional"), "time", "two directions: they can be separated first"),
    "lengths in time": (Recurrent(lengths=(2, 5)), "time", "its sequences have lengths of their own"),
    "open time": (Recurrent(is_open=True), "time", "its number of time steps differs between requests"),
    "open batch": (Recurrent(is_open=True), "batch", "its batch differs between requests"),
    "one sample": (Recurrent(batch=1), "batch", "there is nothing to divide: batch is 1"),
    "one step": (Recurrent(time=1), "time", "there is nothing to divide: time is 1"),
    "old opset": (Recurrent(opset=8), "gates", "opset 8 has no Scan over time"),
    "lengths of open time": (Recurrent(is_open=True, lengths=(2, 5)), "gates", "in an open number of time steps"),
    "activation": (
        Recurrent(
            op_type="RNN",
            attributes={"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]},
        ),
        "gates",
        "there is no operator for the activation Affine",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_tell_why(case: str, tmp_path: Path) -> None:
    recurrent, way, reason = REFUSALS[case]
    assert reason in refusal(recurrent, way, tmp_path)


def test_other_layers_are_refused(tmp_path: Path) -> None:
    path = save(Recurrent(outputs=(0,)).model(), tmp_path / "m.onnx")
    staged, measured = stage(path, tmp_path / "stage")
    layers = build_cut_graph(staged.model, measured.sizes).layers
    found = [find_recurrent(layer, "batch", measured.sizes) for layer in layers]
    assert "Neg has no recurrent operator" in [one.reason for one in found if isinstance(one, Refusal)]
    recurrent = next(one for one in found if isinstance(one, RecurrentLayer))
    assert str(recurrent.rewrite(2)) == "divide-recurrent{layer=cell,way=batch,count=2}"
    with pytest.raises(ValueError, match="3 pieces of 2 along batch"):
        recurrent.rewrite(3).apply(staged.model, measured.sizes)


def refusal(recurrent: Recurrent, way: Way, folder: Path) -> str:
    """Return why the recurrent layer is not divided."""
    staged, measured = stage(save(recurrent.model(), folder / "m.onnx"), folder / "stage", feeds=recurrent.feeds())
    graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
    (layer,) = (layer for layer in graph.layers if recurrent.op_type in layer.kind)
    found = find_recurrent(layer, way, measured.sizes)
    assert isinstance(found, Refusal)
    return found.reason


def weights_of(recurrent: Recurrent) -> dict[str, Array]:
    """Return the weights by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in recurrent.model().graph.initializer}
