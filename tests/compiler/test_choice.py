"""How layers that do not fit are divided: the kind of cut that helps is chosen, limits hold, answers stay."""

import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

import hyps_models
from cut_fixtures import Array, Cut, Feeds, emit_cut, plain_session, stage
from hyps.errors import InfeasibleError
from hyps.formats.plan import Optimization
from hyps_compiler.choice import Choice, smallest
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import BASE_BYTES, Request, divide
from hyps_passes.searches.chain import Limits
from model_fixtures import floats, model_of, save

KB = 1000


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}


def conv(out: int, wide: int, *, group: int = 1, side: int = 8) -> ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4, group=group)
    shapes = weights(w=(out, wide // group, 3, 3))
    return model_of([node], [floats("x", 1, wide, side, side)], [floats("y", 1, out, side, side)], shapes)


def chain(channels: int = 8, side: int = 96) -> ModelProto:
    """Return three convolutions with a small input and a small output around large maps."""
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], name="conv2", pads=[2] * 4, dilations=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["p", "k3"], ["y"], name="conv3"),
    ]
    shapes = weights(k1=(channels, 1, 3, 3), k2=(channels, channels, 3, 3), k3=(1, channels, 1, 1))
    return model_of(nodes, [floats("x", 1, 1, side, side)], [floats("y", 1, 1, side // 4, side // 4)], shapes)


def two_dense(batch: int = 64, hidden: int = 4096) -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="fc1"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="fc2"),
    ]
    return model_of(nodes, [floats("x", batch, 8)], [floats("y", batch, 8)], weights(w1=(8, hidden), w2=(hidden, 8)))


def attention(heads: int = 8, length: int = 160, width: int = 8) -> ModelProto:
    whole = (1, heads, length, width)
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="mix"),
    ]
    inputs = [floats("q", *whole), floats("k", 1, heads, width, length), floats("v", *whole)]
    return model_of(nodes, inputs, [floats("y", *whole)], {})


def look_up(rows: int, width: int) -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], name="cast", to=7),
        helper.make_node("Gather", ["table", "i"], ["y"], name="word"),
    ]
    return model_of(nodes, [floats("x", 1, 6)], [floats("y", 1, 6, width)], weights(table=(rows, width)))


def both_ways(hidden: int = 32) -> ModelProto:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="lstm", hidden_size=hidden, direction="bidirectional")
    shapes = weights(w=(2, 4 * hidden, 16), r=(2, 4 * hidden, hidden))
    return model_of([node], [floats("x", 5, 1, 16)], [floats("y", 5, 2, 1, hidden)], shapes)


def by_rows(side: int = 512) -> ModelProto:
    nodes = [
        helper.make_node("Erf", ["x"], ["e"], name="erf"),
        helper.make_node("Softmax", ["e"], ["s"], name="softmax", axis=-1),
        helper.make_node("ReduceMax", ["s"], ["y"], name="max", axes=[-1], keepdims=1),
    ]
    return model_of(nodes, [floats("x", side, side)], [floats("y", side, 1)], {})


def divided(model: ModelProto, folder: Path, level: Optimization = "portable", **asked: Any) -> tuple[Cut, list[str]]:
    """Return the model divided as asked, checked against the limits; `memory` is what partitions may take."""
    folder.mkdir(exist_ok=True)
    staged, measured = stage(save(model, folder / "model.onnx"), folder / "stage", level)
    memory = asked.pop("memory", None)
    request = Request(memory_bytes=None if memory is None else BASE_BYTES + memory, **asked)
    division = divide(staged.model, measured.sizes, staged.fused, request)
    for first, last in division.windows:
        window = division.graph.window(first, last)
        assert request.max_params is None or window.parameters <= request.max_params
        assert memory is None or (window.peak_bytes or 0) - window.passing_bytes <= memory
    cut = emit_cut(staged, measured, division.graph, folder / "plan", division.borders)
    return cut, list(division.rewrites)


def check_answers(cut: Cut, model: ModelProto) -> None:
    rng = np.random.default_rng(1)
    feeds: Feeds = {
        value.name: rng.random([dim.dim_value for dim in value.type.tensor_type.shape.dim], np.float32) * 5
        for value in model.graph.input
    }
    made = cut.run(feeds)
    for name, expected in zip(cut.outputs, plain_session(model.SerializeToString()).run(None, feeds), strict=True):
        assert np.abs(made[name] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        pytest.param(conv(64, 32), {"max_params": 4000}, r"region=conv,axis=-3,count=5", id="output channels"),
        pytest.param(conv(1, 256), {"max_params": 500}, r"region=conv,axis=sum,count=5", id="input channels"),
        pytest.param(conv(64, 64, group=64), {"max_params": 100}, r"region=conv,axis=-3,count=6", id="groups"),
        pytest.param(chain(), {"memory": 450 * KB}, r"region=conv1\.\..*,axis=-2,.*carry=true", id="tiles"),
        pytest.param(
            two_dense(1, 100_000), {"memory": 300 * KB}, r"region=fc1\.\.fc2,axis=sum", id="two dense layers, one merge"
        ),
        pytest.param(two_dense(1), {"max_params": 9000}, r"slice-dense\{layer=fc1,count=4\}", id="dense rows"),
        pytest.param(attention(), {"memory": 500 * KB}, r"region=scores\.\.mix,axis=-[23]", id="attention"),
        pytest.param(look_up(9000, 1), {"memory": 20 * KB}, r"divide-table\{layer=", id="rows of a table"),
        pytest.param(look_up(40, 500), {"max_params": 450}, r"axis=-1,count=46", id="a wide table"),
        pytest.param(both_ways(), {"max_params": 6200}, r"divide-recurrent\{layer=lstm,way=direction", id="directions"),
        pytest.param(by_rows(), {"memory": 1400 * KB}, r"region=erf\.\.max,axis=-2", id="element-wise rows"),
    ],
)
def test_the_cut_that_helps_is_chosen(model: ModelProto, asked: dict[str, Any], expected: str, tmp_path: Path) -> None:
    cut, rewrites = divided(model, tmp_path, **asked)
    assert re.search(expected, rewrites[0]), rewrites
    check_answers(cut, model)


def test_what_fits_is_left_whole(tmp_path: Path) -> None:
    for index, model in enumerate((chain(), two_dense(), attention(), both_ways())):
        cut, rewrites = divided(model, tmp_path / str(index), memory=50_000 * KB, max_params=10**6)
        assert not rewrites
        assert len(cut.partitions) == 1


def test_tiles_hand_their_overlap_on_unless_devices_are_to_share_them(tmp_path: Path) -> None:
    macs = {}
    for carry in (True, False):
        cut, rewrites = divided(chain(), tmp_path / str(carry), memory=500 * KB, carry=carry)
        assert ("carry=true" in rewrites[0]) is carry
        check_answers(cut, chain())
        macs[carry] = sum(part.macs or 0 for part in cut.partitions)
    whole, _ = divided(chain(), tmp_path / "whole")
    assert macs[True] == whole.partitions[0].macs  # nothing is computed twice
    assert macs[False] > macs[True]


def test_the_other_kind_of_tiles_is_taken_where_one_does_not_fit(tmp_path: Path) -> None:
    """Large kernels: what tiles hand on takes more memory than computing it twice."""
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], name="conv1", pads=[6] * 4),
        helper.make_node("Conv", ["c1", "k2"], ["c2"], name="conv2", pads=[6] * 4),
        helper.make_node("MaxPool", ["c2"], ["y"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
    ]
    shapes = weights(k1=(4, 1, 13, 13), k2=(4, 4, 13, 13))
    model = model_of(nodes, [floats("x", 1, 1, 64, 64)], [floats("y", 1, 4, 16, 16)], shapes)
    (tmp_path / "stage").mkdir()
    staged, measured = stage(save(model, tmp_path / "model.onnx"), tmp_path / "stage" / "in", "portable")
    whole = Choice(staged.model, dict(measured.sizes), staged.fused, Limits())
    cut, rewrites = divided(model, tmp_path / "cut", memory=smallest(whole, "peak_bytes"))
    assert "region=conv1" in rewrites[0]
    assert "carry" not in rewrites[0]
    check_answers(cut, model)


def test_both_limits_hold_together(tmp_path: Path) -> None:
    """The chain needs tiles for its maps, and the dense layer behind it rows for its parameters."""
    model = chain()
    model.graph.node.extend(
        [
            helper.make_node("Flatten", ["y"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "w"], ["z"], name="fc"),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(weights(w=(576, 100))["w"], "w"))
    del model.graph.output[:]
    model.graph.output.append(floats("z", 1, 100))
    cut, rewrites = divided(model, tmp_path, memory=450 * KB, max_params=5000)
    assert any("carry=true" in rewrite for rewrite in rewrites)
    assert any(rewrite.startswith("slice-dense{layer=fc,count=13}") for rewrite in rewrites), rewrites
    check_answers(cut, model)


def test_pieces_are_opened_where_their_weights_are_too_many_together(tmp_path: Path) -> None:
    """Five layers of 37 KB of weights each; a tile of all of them at once would hold 184 KB of weights."""
    names = ["x", *(f"c{index}" for index in range(5))]
    nodes = [
        helper.make_node("Conv", [names[i], f"k{i}"], [names[i + 1]], name=f"conv{i}", pads=[1] * 4) for i in range(5)
    ]
    nodes.insert(0, helper.make_node("Conv", ["image", "k"], ["x"], name="stem", pads=[1] * 4))
    shapes = weights(k=(32, 1, 3, 3), **{f"k{i}": (32, 32, 3, 3) for i in range(5)})
    nodes.append(helper.make_node("MaxPool", ["c4"], ["y"], name="pool", kernel_shape=[8, 8], strides=[8, 8]))
    model = model_of(nodes, [floats("image", 1, 1, 64, 64)], [floats("y", 1, 32, 8, 8)], shapes)
    cut, rewrites = divided(model, tmp_path, memory=900 * KB, max_params=10_000)
    assert any("open{" in rewrite for rewrite in rewrites), rewrites
    shards = [part.shard for part in cut.partitions if part.shard is not None]
    assert len({shard.layer for shard in shards}) > 1
    for shard in shards:
        like = [other for other in shards if other.layer == shard.layer]
        assert [other.index for other in like] == list(range(shard.count))
        assert [other.range[0] for other in like[1:]] == [other.range[1] for other in like[:-1]]
    check_answers(cut, model)


def test_a_refusal_says_what_would_do(tmp_path: Path) -> None:
    model = chain(16, 320)
    with pytest.raises(InfeasibleError, match=r"layer `conv2`.*cannot be sliced: .*pieces") as caught:
        divided(model, tmp_path / "small", memory=60 * KB)
    found = re.search(r"--memory (\d+)MB", caught.value.hint)
    assert found
    _, rewrites = divided(model, tmp_path / "least", memory=int(found[1]) * 10**6 - BASE_BYTES)
    assert rewrites


@pytest.mark.skipif(platform.machine() != "x86_64", reason="onnxruntime has its blocked layouts there")
def test_a_native_plan_that_cannot_fit_is_told_what_a_portable_one_needs(tmp_path: Path) -> None:
    path = save(chain(16, 320), tmp_path / "model.onnx")
    small = Request(memory_bytes=BASE_BYTES + 2000 * KB)
    with pytest.raises(InfeasibleError) as caught:
        compile_model(path, tmp_path / "native", Options(small, "native"))
    found = re.fullmatch(
        r".* --memory (\d+)MB; with --optimize portable,.* --memory (\d+)MB is enough", caught.value.hint
    )
    assert found
    assert int(found[2]) < int(found[1])
    staged, measured = stage(path, tmp_path / "stage", "portable")
    enough = Request(memory_bytes=int(found[2]) * 10**6)
    assert divide(staged.model, measured.sizes, staged.fused, enough).rewrites


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "lstm", "encoder-small"])
def test_reference_models_keep_their_smallest_budget(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    hyps_models.save(name, path)
    feeds = hyps_models.sample_inputs(name, batch=1)
    staged, measured = stage(path, tmp_path / "stage", "portable", feeds)
    whole = Choice(staged.model.clone(), dict(measured.sizes), staged.fused, Limits())
    least = smallest(whole, "peak_bytes")
    request = Request(memory_bytes=BASE_BYTES + least)
    division = divide(staged.model, measured.sizes, staged.fused, request)
    assert division.rewrites
    windows = [division.graph.window(*window) for window in division.windows]
    assert max(request.limits.needed_nbytes(window) for window in windows) <= least
    cut = emit_cut(staged, measured, division.graph, tmp_path / "plan", division.borders)
    made = cut.run(feeds)
    for output, expected in zip(cut.outputs, plain_session(path).run(None, dict(feeds)), strict=True):
        assert np.abs(made[output] - expected).max() <= 1e-5 * np.abs(expected).max()
