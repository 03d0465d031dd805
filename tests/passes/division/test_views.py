"""Spans of operators that rearrange, bit for bit against the whole in onnxruntime."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import GrainError, IndivisibleError
from rule_checks import Data, assert_span, assert_spans, numbers, some_shape, some_span

_EXACT = 0.0


def _one(
    op_type: str,
    feeds: Array | Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    used: Sequence[str] = (),
    **attributes: Any,
) -> OneNode:
    """Return a node that takes the feeds (an array alone is `x`), then the constants, in order."""
    fed = {"x": feeds} if isinstance(feeds, np.ndarray) else dict(feeds)
    node = helper.make_node(op_type, [*fed, *(constants or {})], outputs, **attributes)
    return OneNode(node, fed, dict(constants or {}), {"": opset}, used)


def _int64(*values: int) -> Array:
    return np.asarray(values, np.int64)


def _assert_some_span(data: Data, one: OneNode) -> None:
    """Check a random span of a random axis, at the grain that the rule asks for; a refusal must be about mixed axes."""
    whole = one.whole["y"]
    axis = data.draw(st.integers(0, whole.ndim - 1), "axis")
    size, grain, reason = whole.shape[axis], 1, ""
    try:
        one.piece(axis, 0, 1)
    except GrainError as error:
        grain = error.grain
    except IndivisibleError as error:
        reason = error.reason
    assert (size % grain, reason in ("", _mixed(one, axis))) == (0, True)
    if not reason:
        assert_span(one, axis, *some_span(data, size, grain), tolerance=_EXACT)


def _mixed(one: OneNode, axis: int) -> str:
    return f"axis {axis} of {one.ir_node.op_type} is mixed with others"


def _regrouped(data: Data, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return another shape of as many elements: axes merged, split, ones added and removed."""
    dims: list[int] = []
    for size in shape:
        if len(dims) > 0 and data.draw(st.booleans(), "merge"):
            dims[-1] *= size
        else:
            dims.append(size)
    split: list[int] = []
    for size in dims:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        outer: int = data.draw(st.sampled_from(divisors), "split")
        is_split = outer not in (1, size) or data.draw(st.booleans(), "one")
        split += [outer, size // outer] if is_split else [size]
    return tuple(split)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_reshape_maps_spans_of_whole_split_and_merged_axes(data: Data) -> None:
    shape = some_shape(data)
    target = list(_regrouped(data, shape))
    kind = data.draw(st.sampled_from(["numbers", "free", "copied"]), "entries")
    at = data.draw(st.integers(0, len(target) - 1), "at")
    if kind == "free":
        target[at] = -1
    elif at < len(shape) and target[at] == shape[at]:
        target[at] = 0
    x = numbers(data, shape)

    _assert_some_span(data, _one("Reshape", x, {"s": _int64(*target)}))


@pytest.mark.parametrize(
    ("shape", "target", "axis", "grain"),
    [
        ((2, 3, 12), (0, 0, 4, 3), 2, 1),
        ((2, 3, 4, 5), (0, 0, 20), 2, 5),
        ((2, 3, 4, 5), (0, 0, -1), 2, 5),
        ((2, 1, 6), (2, 6), 1, 1),
        ((2, 6), (2, 1, 3, 2), 2, 1),
    ],
)
def test_heads_are_split_and_merged(shape: tuple[int, ...], target: tuple[int, ...], axis: int, grain: int) -> None:
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    one = _one("Reshape", x, {"s": _int64(*target)})

    if grain > 1:
        with pytest.raises(GrainError) as caught:
            one.piece(axis, 0, 1)
        assert caught.value.grain == grain
    assert_span(one, axis, grain, 2 * grain, tolerance=_EXACT)


def test_the_inner_of_two_merged_axes_is_refused() -> None:
    x = np.zeros((2, 12), np.float32)
    one = _one("Reshape", x, {"s": _int64(2, 4, 3)})

    with pytest.raises(IndivisibleError, match="mixed"):
        one.piece(2, 0, 1)


def _opened(one: OneNode, source: list[int | str], output: list[int | str]) -> OneNode:
    value = one.ir_node.inputs[0]
    assert value is not None
    value.shape, one.ir_node.outputs[0].shape = ir.Shape(source), ir.Shape(output)
    return one


@pytest.mark.parametrize(
    ("source", "output", "axis", "is_possible"),
    [
        (["n", "s", 12], ["n", "s", 4, 3], 2, True),
        (["n", "s", 12], ["ns", 4, 3], 1, True),
        ([1, 4, "s", 3], [4, "s", 3], 0, True),
        ([1, 12, "s"], [1, 4, 3, "s"], 1, True),
        (["n", 6], [6, "n"], 0, False),
    ],
)
def test_open_sizes_that_happen_to_be_one_do_not_mislead(
    source: list[int | str], output: list[int | str], axis: int, is_possible: bool
) -> None:
    old, new = ([dim if isinstance(dim, int) else 1 for dim in dims] for dims in (source, output))
    x = np.zeros(old, np.float32)
    one = _opened(_one("Reshape", x, {"s": _int64(*new)}), source, output)

    if is_possible:
        assert_span(one, axis, 1, 3, tolerance=_EXACT)
    else:
        with pytest.raises(IndivisibleError, match="mixed"):
            one.piece(axis, 1, 3)


def test_a_computed_shape_is_written_down_where_numbers_can_tell_it() -> None:
    feeds = {"x": np.zeros((2, 5, 12), np.float32), "s": _int64(2, 5, 4, 3)}
    one = _opened(_one("Reshape", feeds), ["n", "s", 12], ["n", "s", 4, 3])
    assert list(one.piece(2, 1, 3).constants[1].numpy()) == [0, 0, 2, 3]

    one = _opened(_one("Reshape", feeds), ["n", "s", 12], [None, "t", 4, 3])  # type: ignore[list-item]  # an open size without a name
    with pytest.raises(IndivisibleError, match="computed"):
        one.piece(2, 1, 3)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_flatten_keeps_its_outer_axes_in_whole_multiples(data: Data) -> None:
    shape = some_shape(data)
    axis = data.draw(st.integers(-len(shape), len(shape)), "axis of Flatten")

    _assert_some_span(data, _one("Flatten", numbers(data, shape), axis=axis))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_unsqueeze_and_squeeze_move_axes(data: Data) -> None:
    shape = some_shape(data, most=3)
    rank = len(shape) + 2
    added = sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=2, max_size=2), "added"))
    axes = [axis - rank if data.draw(st.booleans(), "negative") else axis for axis in added]
    is_old = data.draw(st.booleans(), "axes as attribute")
    given_axes: dict[str, Any] = {"axes": axes} if is_old and min(axes) >= 0 else {}
    constants = {} if given_axes else {"a": _int64(*axes)}
    opset = 11 if given_axes else 17
    wider = _one("Unsqueeze", numbers(data, shape), constants, opset=opset, **given_axes)
    back = _one("Squeeze", wider.whole["y"], constants, opset=opset, **given_axes)

    axis = data.draw(st.sampled_from([index for index in range(rank) if index not in added]), "axis")
    assert_span(wider, axis, *some_span(data, wider.whole["y"].shape[axis]), tolerance=_EXACT)
    assert_spans(data, back, tolerance=_EXACT)
    with pytest.raises(IndivisibleError, match="one position"):
        wider.piece(added[0], 0, 1)


def test_squeeze_of_all_ones_keeps_the_others() -> None:
    one = _one("Squeeze", np.arange(12, dtype=np.float32).reshape(1, 3, 1, 4))

    assert_span(one, 1, 1, 3, tolerance=_EXACT)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_transpose_follows_its_order(data: Data) -> None:
    shape = some_shape(data)
    order: dict[str, Any] = (
        {"perm": data.draw(st.permutations(range(len(shape))), "perm")} if data.draw(st.booleans(), "given") else {}
    )

    assert_spans(data, _one("Transpose", numbers(data, shape), **order), tolerance=_EXACT)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_expand_copies_less_or_takes_a_part(data: Data) -> None:
    target = some_shape(data)
    kept = data.draw(st.integers(0, len(target)), "axes of the input")
    shape = [size if data.draw(st.booleans(), "same") else 1 for size in target[len(target) - kept :]]
    entries = list(target[data.draw(st.integers(0, len(target) - kept), "left out") :])
    offset = len(entries) - len(shape)
    entries = [
        1 if i >= offset and shape[i - offset] == entries[i] and data.draw(st.booleans(), "1") else entries[i]
        for i in range(len(entries))
    ]
    one = _one("Expand", numbers(data, tuple(shape)), {"s": _int64(*entries)})

    if one.whole["y"].ndim:
        assert_spans(data, one, tolerance=_EXACT)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_concat_takes_what_the_span_reaches(data: Data) -> None:
    shape = list(some_shape(data))
    along = data.draw(st.integers(0, len(shape) - 1), "axis of Concat")
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any), "sizes")
    feeds = {}
    for index, size in enumerate(sizes):
        shape[along] = size
        feeds[f"x{index}"] = numbers(data, tuple(shape))
    one = _one("Concat", feeds, axis=along - len(shape))

    assert_spans(data, one, tolerance=_EXACT)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_split_is_divided_along_other_axes_and_for_one_output(data: Data) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4), "sizes")
    shape = list(some_shape(data, most=3))
    along = data.draw(st.integers(0, len(shape) - 1), "axis of Split")
    shape[along] = sum(sizes)
    outputs = [f"y{index}" for index in range(len(sizes))]
    old = data.draw(st.booleans(), "sizes as attribute")
    extra: dict[str, Any] = {"axis": along, **({"split": sizes} if old else {})}
    opset = 11 if old else 17
    constants = {} if old else {"s": _int64(*sizes)}
    one = _one("Split", numbers(data, tuple(shape)), constants, opset=opset, outputs=outputs, **extra)

    others = [axis for axis in range(len(shape)) if axis != along]
    if others:
        axis = data.draw(st.sampled_from(others), "axis")
        assert_span(one, axis, *some_span(data, shape[axis]), tolerance=_EXACT)
    only = data.draw(st.integers(0, len(sizes) - 1), "used output")
    one = _one("Split", one.feeds, constants, opset=opset, outputs=outputs, used=[outputs[only]], **extra)
    _assert_only_output(data, one, only, along, sizes)


def _assert_only_output(data: Data, one: OneNode, only: int, along: int, sizes: list[int]) -> None:
    start, stop = some_span(data, sizes[only])
    piece = one.piece(along, start, stop)

    first = sum(sizes[:only]) + start
    assert piece.parts[0].axis == along
    assert (piece.parts[0].span.start, piece.parts[0].span.stop) == (first, first + stop - start)
    assert_span(one, along, start, stop, tolerance=_EXACT)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_slice_takes_every_so_many_of_a_part(data: Data) -> None:
    shape = list(some_shape(data, most=3))
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1), "axes"))
    starts, ends, steps = [], [], []
    for axis in axes:
        shape[axis] = data.draw(st.integers(1, 12), "size")
        step = data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]), "step")
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, shape[axis] - 1)] * 2), "bounds"))
        start, end = (first, last + 1) if step > 0 else (last, first - 1 if first else -99)
        starts.append(start - shape[axis] if data.draw(st.booleans(), "from the end") else start)
        ends.append(end if end < shape[axis] else 99)
        steps.append(step)
    dtype = data.draw(st.sampled_from([np.int32, np.int64]), "bounds' type")
    constants = {
        "starts": np.asarray(starts, dtype),
        "ends": np.asarray(ends, dtype),
        "axes": np.asarray(axes, dtype),
        "steps": np.asarray(steps, dtype),
    }
    x = numbers(data, tuple(shape))
    one = _one("Slice", x, constants)

    assert_spans(data, one, tolerance=_EXACT)


def test_slice_of_old_opsets_has_its_bounds_as_attributes() -> None:
    x = np.arange(40, dtype=np.float32).reshape(4, 10)
    one = _one("Slice", x, opset=9, starts=[-8], ends=[9], axes=[1])

    assert_span(one, 1, 2, 5, tolerance=_EXACT)
    assert_span(one, 0, 2, 4, tolerance=_EXACT)


def test_slice_of_an_open_axis_is_refused_along_it() -> None:
    x = np.zeros((2, 10, 4), np.float32)
    one = _one("Slice", x, {"starts": _int64(-4), "ends": _int64(99), "axes": _int64(1)})
    one = _opened(one, [2, "s", 4], [2, 4, 4])

    with pytest.raises(IndivisibleError, match="open"):
        one.piece(1, 0, 2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tile_repeats_less_or_takes_a_part(data: Data) -> None:
    shape = some_shape(data)
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)), "repeats")

    _assert_some_span(
        data,
        _one("Tile", numbers(data, shape), {"r": _int64(*repeats)}),
    )


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_identity_and_dropout_keep_what_they_get(data: Data) -> None:
    x = numbers(data, some_shape(data))

    assert_spans(data, _one("Identity", x), tolerance=_EXACT)
    one = _one("Dropout", x, {"r": np.asarray(np.float32(0.5)), "t": np.asarray(False)})
    assert_spans(data, one, tolerance=_EXACT)


def test_dropout_that_drops_is_refused() -> None:
    x = np.zeros((2, 3), np.float32)
    constants = {"r": np.asarray(np.float32(0.5)), "t": np.asarray(True)}
    one = _one("Dropout", x, constants)

    with pytest.raises(IndivisibleError, match="random"):
        one.piece(0, 0, 1)
