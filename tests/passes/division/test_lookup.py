"""Spans of table look-ups, bit for bit against the whole in onnxruntime."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import IndivisibleError
from rule_checks import Data, assert_span, assert_spans, numbers, some_shape, some_span

_MS: dict[str, Any] = {"domain": "com.microsoft"}
_TYPES = (np.float32, np.float16, np.int8, np.uint8)


def _indices(data: Data, shape: tuple[int, ...], size: int) -> Array:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    return np.asarray(rng.integers(-size, size, shape), data.draw(st.sampled_from([np.int32, np.int64]), "type"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gather_is_divided_by_index_and_beside_its_axis(data: Data) -> None:
    table = numbers(data, some_shape(data, most=3), data.draw(st.sampled_from(_TYPES), "type"))
    along = data.draw(st.integers(0, table.ndim - 1), "axis of Gather")
    indices = _indices(data, some_shape(data, least=0, most=3), table.shape[along])
    node = helper.make_node("Gather", ["t", "i"], ["y"], axis=along - table.ndim)
    one = OneNode(node, {"i": indices}, {"t": table})

    if one.whole["y"].ndim:
        assert_spans(data, one, tolerance=0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_gather_elements_stays_in_place_beside_its_axis(data: Data) -> None:
    table = numbers(data, some_shape(data, most=3))
    along = data.draw(st.integers(0, table.ndim - 1), "axis")
    shape = list(data.draw(st.tuples(*[st.integers(1, size) for size in table.shape]), "shape of the indices"))
    shape[along] = data.draw(st.integers(1, 6), "indices")
    indices = _indices(data, tuple(shape), table.shape[along])
    one = OneNode(helper.make_node("GatherElements", ["t", "i"], ["y"], axis=along), {"t": table, "i": indices})

    assert_spans(data, one, tolerance=0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_gather_of_tuples_is_divided_by_tuple_and_by_what_they_name(data: Data) -> None:
    table = numbers(data, some_shape(data, least=2, most=4))
    batch = data.draw(st.integers(0, table.ndim - 1), "batch axes")
    length = data.draw(st.integers(1, table.ndim - batch), "length of a tuple")
    outer = (*table.shape[:batch], *some_shape(data, least=0, most=2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    sizes = table.shape[batch : batch + length]
    indices = np.stack([rng.integers(0, size, outer) for size in sizes], axis=-1).astype(np.int64)
    node = helper.make_node("GatherND", ["t", "i"], ["y"], batch_dims=batch)
    one = OneNode(node, {"t": table, "i": indices})

    if one.whole["y"].ndim:
        assert_spans(data, one, tolerance=0)


def test_tables_in_blocks_of_few_bits_are_divided_by_index() -> None:
    rng = np.random.default_rng(4)
    constants: dict[str, Array] = {
        "t": rng.integers(0, 255, (6, 16)).astype(np.uint8),
        "s": rng.standard_normal((6, 2)).astype(np.float32),
    }
    node = helper.make_node("GatherBlockQuantized", ["t", "i", "s"], ["y"], block_size=16, **_MS)
    one = OneNode(node, {"i": rng.integers(0, 6, (3, 4))}, constants)

    assert_span(one, 0, 1, 3, tolerance=0)
    assert_span(one, 1, 2, 3, tolerance=0)
    with pytest.raises(IndivisibleError, match="by index only"):
        one.piece(2, 0, 1)


def _embeddings(data: Data, used: list[str], *, positions: bool) -> OneNode:
    batch, length, width = 3, 4, 5
    feeds = {
        "ids": np.abs(_indices(data, (batch, length), 7)).astype(np.int32) % 7,
        "types": np.abs(_indices(data, (batch, length), 2)).astype(np.int32) % 2,
    }
    tables = {name: numbers(data, (rows, width)) for name, rows in (("w", 7), ("p", 9), ("s", 2))}
    scales = {"g": numbers(data, (width,)), "b": numbers(data, (width,))}
    mask = {"m": np.asarray([[1] * 4, [1] * 3 + [0], [1, 1, 0, 0]], np.int32)}
    rows = data.draw(st.sampled_from([1, batch]), "rows of positions")
    places = {"o": np.tile(np.arange(length, dtype=np.int32)[::-1], (rows, 1))} if positions else {}
    names = [*feeds, *tables, *scales, *mask, *places]
    node = helper.make_node("EmbedLayerNormalization", names, ["y", "count"], **_MS)
    return OneNode(node, {**feeds, **mask, **places}, {**tables, **scales}, outputs=used)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_embeddings_are_divided_by_sequence_and_by_token(data: Data) -> None:
    one = _embeddings(data, ["y"], positions=data.draw(st.booleans(), "positions given"))

    assert_span(one, 0, *some_span(data, 3), tolerance=0)
    assert_span(one, 1, *some_span(data, 4), tolerance=0)
    with pytest.raises(IndivisibleError, match="all of axis 2"):
        one.piece(2, 0, 1)


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_embeddings_that_count_tokens_are_divided_by_sequence_alone(data: Data) -> None:
    one = _embeddings(data, ["y", "count"], positions=False)

    assert_span(one, 0, 1, 3, tolerance=0)
    with pytest.raises(IndivisibleError, match="whole sequences"):
        one.piece(1, 0, 2)
