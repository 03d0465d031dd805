"""Recurrent layers in pieces: by direction, gates, batch and time, run one after another, they give the whole."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from cut_fixtures import Array, Cut, distance, emit_cut, stage, whole_answer
from hyps_passes.layers import build_cut_graph
from hyps_passes.rewrites.divide_recurrent import WAYS, RecurrentLayer, Way, find_recurrent
from hyps_passes.searches.split_points import shard_borders
from model_fixtures import save
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
