"""Which slices and borders are chosen; what the refusals advise is true."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

from cut_fixtures import Array, stage
from hyps.errors import InfeasibleError, UsageError
from hyps_compiler.partition import (
    BASE_BYTES,
    SPARE_BYTES,
    Division,
    Request,
    divide,
    parse_cuts,
    smallest_max_params,
    smallest_memory,
)
from hyps_passes.layers import build_cut_graph
from hyps_passes.searches.chain import Limits
from model_fixtures import floats, grow, model_of, save

MB = 10**6


@dataclass
class Ready:
    """A staged model from which fresh copies are divided."""

    model: ir.Model
    sizes: dict[str, tuple[int, ...]]
    fused: frozenset[str]

    def divide(self, **request: Any) -> Division:
        return divide(self.model.clone(), dict(self.sizes), self.fused, Request(**request))


def ready(model: ModelProto, folder: Path) -> Ready:
    folder.mkdir(parents=True, exist_ok=True)
    staged, measured = stage(save(model, folder / "model.onnx"), folder / "stage")
    return Ready(staged.model, measured.sizes, staged.fused)


def network(widths: Sequence[int], *, batch: int = 2) -> ModelProto:
    """Return Conv, MaxPool, Conv with stride, Flatten and dense layers of the given widths with biases and Relu."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "k1": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "k2": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "k2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Flatten", ["c2"], ["f"]),
    ]
    last, size = "f", 64
    for index, width in enumerate(widths):
        weights[f"w{index}"] = rng.standard_normal((size, width)).astype(np.float32)
        weights[f"b{index}"] = rng.standard_normal(width).astype(np.float32)
        nodes += [
            helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"g{index}"], name=f"fc{index}"),
            helper.make_node("Relu", [f"g{index}"], [f"y{index}"]),
        ]
        last, size = f"y{index}", width
    return model_of(nodes, [floats("x", batch, 3, 16, 16)], [floats(last, batch, size)], weights)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return ready(network([100, 30, 10]), tmp_path_factory.mktemp("dense"))


def shards(division: Division) -> list[str]:
    return [layer.name for layer in division.graph.layers if layer.shard]


def mandatory(division: Division) -> list[str]:
    return [point.reason for point in division.points if point.kind == "mandatory"]


def test_a_model_that_fits_is_left_whole(dense: Ready) -> None:
    division = dense.divide(max_params=100_000)
    assert division.windows == [(0, len(division.graph.layers) - 1)]
    assert dense.divide().windows == division.windows


def test_only_layers_above_the_limit_are_sliced_into_the_fewest_slices(dense: Ready) -> None:
    """fc0 holds 64 x 100 + 100 parameters, 65 of them in each row; fc1 3030."""
    division = dense.divide(max_params=3250)
    assert shards(division) == ["fc0[1/2]", "fc0[2/2]"]
    assert mandatory(division) == ["around fc0", "around fc0"]
    assert len(shards(dense.divide(max_params=3249))) == 3
    assert len(division.windows) == 3 + 2
    division = dense.divide(max_params=3029)
    assert {name.split("[")[0] for name in shards(division)} == {"fc0", "fc1"}


def test_every_partition_keeps_the_limit(dense: Ready) -> None:
    for limit in (6500, 5000, 3029, 1500, 400, 250):
        division = dense.divide(max_params=limit)
        figures = [division.graph.window(first, last) for first, last in division.windows]
        assert max(window.parameters for window in figures) <= limit


def test_slices_are_partitions_of_their_own(dense: Ready) -> None:
    division = dense.divide(max_params=1000)
    for first, last in division.windows:
        inside = division.graph.layers[first : last + 1]
        assert len(inside) == 1 or not any(layer.shard for layer in inside)


def test_the_smallest_limit_for_parameters_is_true(dense: Ready) -> None:
    least = smallest_max_params(dense.model, dense.sizes, dense.fused)
    assert dense.divide(max_params=least).windows
    with pytest.raises(InfeasibleError) as caught:
        dense.divide(max_params=least - 1)
    assert f"--max-params {least}" in caught.value.hint


def test_the_smallest_limit_for_memory_is_true(dense: Ready) -> None:
    least = smallest_memory(dense.model, dense.sizes, dense.fused)
    assert dense.divide(memory_bytes=least).windows
    with pytest.raises(InfeasibleError) as caught:
        dense.divide(memory_bytes=least - 1)
    assert f"--memory {-(-(least + SPARE_BYTES) // MB)}MB" in caught.value.hint
    assert least > BASE_BYTES


def test_both_limits_hold_together(dense: Ready) -> None:
    least = smallest_memory(dense.model, dense.sizes, dense.fused)
    division = dense.divide(max_params=2000, memory_bytes=least + 3000)
    windows = [division.graph.window(first, last) for first, last in division.windows]
    assert max(w.parameters for w in windows) <= 2000
    assert all(Limits(may_spill=True).needed_nbytes(window) <= least + 3000 - BASE_BYTES for window in windows)


def test_a_refusal_names_the_layer_and_the_reason(dense: Ready) -> None:
    with pytest.raises(
        InfeasibleError, match=r"layer `conv1` \(Conv\+Relu\).*cannot be sliced: .*pieces up to 4"
    ) as caught:
        dense.divide(max_params=2)
    assert re.search(r"--max-params \d+", caught.value.hint)
    assert caught.value.exit_status == 3


def test_a_row_that_is_too_large_is_divided_too_as_a_sum(dense: Ready, tmp_path: Path) -> None:
    rows = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        [floats("x", 1, 50)],
        [floats("y", 1, 4)],
        {"w": np.ones((50, 4), np.float32)},
    )
    model = ready(rows, tmp_path)
    assert model.divide(max_params=50).rewrites == ("slice-dense{layer=fc,count=4}",)
    assert model.divide(max_params=49).rewrites == ("divide{region=fc,axis=sum,count=5,carry=true}",)
    with pytest.raises(InfeasibleError, match="in any number of pieces up to 50") as caught:
        model.divide(max_params=3)
    assert caught.value.hint == "the smallest that would do is --max-params 4"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hints_are_true_for_random_models(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    grown = grow(lambda count: data.draw(st.integers(0, count - 1)), steps=data.draw(st.integers(2, 12)))
    try:
        model = ready(grown.model, tmp_path_factory.mktemp("grown"))
    except Exception:
        assume(False)
    least = smallest_max_params(model.model, model.sizes, model.fused)
    assume(least > 0)
    division = model.divide(max_params=least)
    assert max(division.graph.window(*window).parameters for window in division.windows) <= least
    with pytest.raises(InfeasibleError) as caught:
        model.divide(max_params=least - 1)
    assert caught.value.hint.endswith(f" {least}")
    memory = smallest_memory(model.model, model.sizes, model.fused)
    assert model.divide(memory_bytes=memory).windows
    with pytest.raises(InfeasibleError):
        model.divide(memory_bytes=memory - 1)


@pytest.mark.parametrize(
    ("word", "ends"),
    [
        ("pooling", ["pool1"]),
        ("strided", ["conv2"]),
        ("all", ["conv1", "pool1", "conv2", "fc0", "fc1"]),
        ("mandatory", []),
    ],
)
def test_cut_words(dense: Ready, word: str, ends: list[str]) -> None:
    division = dense.divide(cuts=(word,))
    assert [division.graph.layers[border].name for border in division.borders] == ends


def test_cuts_at_tensors(dense: Ready) -> None:
    division = dense.divide(tensors=("p1", "y0"))
    assert [division.graph.layers[border].name for border in division.borders] == ["pool1", "fc0"]
    assert dense.divide(tensors=("y2",)).borders == ()  # behind the last layer


def test_cuts_at_bottlenecks_are_smaller_than_the_input(dense: Ready) -> None:
    division = dense.divide(cuts=("bottleneck",))
    assert division.borders
    for border in division.borders:
        assert sum(value.nbytes or 0 for value in division.graph.borders[border]) < 2 * 3 * 16 * 16 * 4


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_an_exact_number_of_partitions(dense: Ready, count: int) -> None:
    assert len(dense.divide(partitions=count).windows) == count


def test_impossible_numbers_of_partitions(dense: Ready) -> None:
    with pytest.raises(InfeasibleError, match="the model has 6 layers") as caught:
        dense.divide(partitions=7)
    assert caught.value.hint == "give --partitions 6 or fewer"
    with pytest.raises(InfeasibleError, match="too few") as caught:
        dense.divide(partitions=2, cuts=("all",))
    assert caught.value.hint == "give --partitions 6 or more"


def test_points_are_told_once_each(dense: Ready) -> None:
    division = dense.divide(max_params=1000, cuts=("pooling",))
    kinds = [point.kind for point in division.points]
    assert kinds == sorted(kinds, key=["mandatory", "optional", "chosen"].index)
    pooled = [point for point in division.points if point.reason == "pooling"]
    assert [(point.tensors, point.chosen) for point in pooled] == [(("p1",), True)]
    optional = [point for point in dense.divide().points if point.kind == "optional"]
    assert not any(point.chosen for point in optional)


def test_dividing_leaves_what_is_too_fine_to_slice_alone(dense: Ready) -> None:
    """Parameters of the copy that a trial is made on do not reach the model."""
    before = len(list(dense.model.graph))
    smallest_max_params(dense.model, dense.sizes, dense.fused)
    assert len(list(dense.model.graph)) == before
    assert len(build_cut_graph(dense.model, dense.sizes, fused=dense.fused).layers) == 6


def test_words_and_tensors_are_told_apart() -> None:
    assert parse_cuts(["pooling", " conv/out ", "strided"]) == (("pooling", "strided"), ("conv/out",))
    assert parse_cuts(["t"]) == (("mandatory",), ("t",))
    with pytest.raises(UsageError, match="empty name"):
        parse_cuts(["a", " "])


@pytest.mark.parametrize("turned", [False, True])
def test_memory_counts_what_is_made_of_a_quantized_weight(turned: bool, tmp_path: Path) -> None:
    """A weight of one byte becomes one of four when the partition runs, sliced or not."""
    rng = np.random.default_rng(0)
    shape = (100, 64) if turned else (64, 100)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], axis=1 - turned),
        helper.make_node("Transpose", ["wd"], ["wt"]) if turned else helper.make_node("Identity", ["wd"], ["wt"]),
        helper.make_node("MatMul", ["x", "wt"], ["y"], name="fc"),
    ]
    weights: dict[str, Array] = {"w": rng.integers(-99, 99, shape).astype(np.int8), "s": np.full(100, 0.02, np.float32)}
    model = ready(model_of(nodes, [floats("x", 1, 64)], [floats("y", 1, 100)], weights), tmp_path)
    (whole,) = model.divide().windows
    needed = model.divide().graph.window(*whole).peak_bytes
    assert needed is not None
    assert needed >= 6400 + 2 * 4 * 6400
    least = smallest_memory(model.model, model.sizes, model.fused)
    assert least < BASE_BYTES + 3000
    for memory in (least, least + 5000, BASE_BYTES + needed - 1):
        division = model.divide(memory_bytes=memory)
        windows = [division.graph.window(*window) for window in division.windows]
        assert len(shards(division)) >= 2
        assert all(Limits(may_spill=True).needed_nbytes(window) <= memory - BASE_BYTES for window in windows)
    with pytest.raises(InfeasibleError):
        model.divide(memory_bytes=least - 1)


def test_activations_leave_memory_only_where_nothing_else_helps(tmp_path: Path) -> None:
    """Three maps wait while others are worked on: their bytes need not fit, where nothing can be divided."""
    names = ["x", "s0", "s1", "s2", "s3", "s4"]
    nodes = [helper.make_node("CumSum", [x, "axis"], [y], name=y) for x, y in pairwise(names)]
    for i in (3, 2, 1, 0):
        nodes.append(helper.make_node("Add", [f"u{i + 1}" if i < 3 else "s4", f"s{i}"], [f"a{i}"], name=f"add{i}"))
        nodes.append(helper.make_node("CumSum", [f"a{i}", "axis"], [f"u{i}"], name=f"u{i}"))
    model = ready(model_of(nodes, [floats("x", 1, 1000)], [floats("u0", 1, 1000)], {"axis": np.array(1)}), tmp_path)

    roomy, tight = model.divide(memory_bytes=BASE_BYTES + 24_100), model.divide(memory_bytes=BASE_BYTES + 16_100)

    assert roomy.rewrites == tight.rewrites == ()
    assert max(roomy.graph.window(*window).peak_bytes or 0 for window in roomy.windows) <= 24_100
    windows = [tight.graph.window(*window) for window in tight.windows]
    assert max(window.peak_bytes or 0 for window in windows) > 16_100
    assert all(Limits(may_spill=True).needed_nbytes(window) <= 16_100 for window in windows)


def test_what_does_not_fit_whole_is_cut_into_portions_that_can_be_kept(tmp_path: Path) -> None:
    heavy = ready(network([3000, 3000, 10]), tmp_path)
    available = 34_000_000
    division = heavy.divide(memory_bytes=BASE_BYTES + available)
    weights = [division.graph.window(*window).weight_bytes for window in division.windows]
    assert sum(weights) > available
    assert max(weights) <= available // 8
    assert heavy.divide(memory_bytes=BASE_BYTES + 2 * sum(weights)).borders == ()
