"""Spans of fused attention: by heads, sequences and tokens, against the whole in onnxruntime."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import GrainError, IndivisibleError
from rule_checks import Data, assert_span, numbers, some_span

_MS: dict[str, Any] = {"domain": "com.microsoft"}
_BATCH, _TOKENS = 2, 5


def _assert_heads(data: Data, one: OneNode, axis: int, heads: int) -> None:
    """Check a random span of heads, and that spans between heads are refused."""
    size = one.whole["y"].shape[axis] // heads
    if heads == 1:
        with pytest.raises(IndivisibleError, match="one head"):
            one.piece(axis, 0, 1)
        return
    if size > 1:
        with pytest.raises(GrainError) as caught:
            one.piece(axis, 0, 1)
        assert caught.value.grain == size
    start, stop = some_span(data, heads)
    assert_span(one, axis, start * size, stop * size)


def _assert_rows(data: Data, one: OneNode, axis: int) -> None:
    assert_span(one, axis, *some_span(data, one.whole["y"].shape[axis]))


def _maybe(data: Data, what: str) -> bool:
    return bool(data.draw(st.booleans(), what))


def _node(op_type: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs, outputs, **attributes)


def _added(data: Data, heads: int, tokens: int, asked: int) -> Array:
    shape = (data.draw(st.sampled_from([1, _BATCH])), data.draw(st.sampled_from([1, heads])), tokens, asked)
    return numbers(data, shape)


def _masks(data: Data, tokens: int) -> Array:
    kind = data.draw(st.sampled_from(["lengths", "keys", "pairs"]), "mask")
    if kind == "lengths":
        return np.asarray([tokens, tokens - 2], np.int32)
    shape = (_BATCH, tokens) if kind == "keys" else (_BATCH, tokens, tokens)
    mask = np.ones(shape, np.int32)
    mask[..., -1] = 0
    return mask


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_attention_with_its_projection_is_divided_by_heads_and_sequences(data: Data) -> None:
    heads, size, value_size = (data.draw(st.integers(1, 4), name) for name in ("heads", "size", "value size"))
    is_given = _maybe(data, "sizes given")
    value_size = value_size if is_given else size
    widths = [heads * size, heads * size, heads * value_size]
    constants = {"w": numbers(data, (6, sum(widths))), "b": numbers(data, (sum(widths),))}
    feeds = {"x": numbers(data, (_BATCH, _TOKENS, 6))}
    if _maybe(data, "masked"):
        feeds["m"] = _masks(data, _TOKENS)
    if _maybe(data, "added"):
        feeds["a"] = _added(data, heads, _TOKENS, _TOKENS)
    given_sizes: dict[str, Any] = {"qkv_hidden_sizes": widths} if is_given else {}
    names = ["x", "w", "b", "m" if "m" in feeds else "", "", "a" if "a" in feeds else ""]
    one = OneNode(_node("Attention", names, num_heads=heads, **given_sizes, **_MS), feeds, constants)

    _assert_heads(data, one, 2, heads)
    _assert_rows(data, one, 0)
    with pytest.raises(IndivisibleError, match="all tokens"):
        one.piece(1, 0, 1)


def test_projections_that_are_computed_are_refused_by_heads() -> None:
    feeds = {"x": np.ones((2, 3, 4), np.float32), "w": np.ones((4, 12), np.float32)}
    constants = {"b": np.ones(12, np.float32)}
    one = OneNode(_node("Attention", ["x", "w", "b"], num_heads=2, **_MS), feeds, constants)

    with pytest.raises(IndivisibleError, match="`w`"):
        one.piece(2, 0, 2)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_quantized_attention_is_divided_by_heads_and_sequences(data: Data) -> None:
    heads, size = data.draw(st.integers(1, 4), "heads"), data.draw(st.integers(1, 4), "size")
    width = 3 * heads * size
    scale = (width,) if _maybe(data, "scale per column") else (1,)
    constants = {
        "w": numbers(data, (6, width), np.int8),
        "b": numbers(data, (width,)),
        "xs": np.asarray(0.02, np.float32),
        "ws": np.asarray(np.abs(numbers(data, scale)) / 50 + 0.001, np.float32),
        "xz": np.asarray(128, np.uint8),
        "wz": np.zeros(scale, np.int8),
    }
    feeds = {"x": numbers(data, (_BATCH, _TOKENS, 6), np.uint8)}
    if _maybe(data, "masked"):
        feeds["m"] = np.asarray([_TOKENS, _TOKENS - 2], np.int32)
    names = ["x", "w", "b", "xs", "ws", "m" if "m" in feeds else "", "xz", "wz"]
    one = OneNode(_node("QAttention", names, num_heads=heads, **_MS), feeds, constants)

    _assert_heads(data, one, 2, heads)
    _assert_rows(data, one, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_multi_head_attention_is_divided_by_heads_sequences_and_tokens(data: Data) -> None:
    heads, size, value_size = (data.draw(st.integers(1, 4), name) for name in ("heads", "size", "value size"))
    asked = data.draw(st.integers(3, 6), "tokens that are asked")
    is_apart = _maybe(data, "heads apart")
    value_size = size if is_apart else value_size
    feeds = {"q": numbers(data, (_BATCH, _TOKENS, heads * size))}
    for name, depth in (("k", size), ("v", value_size)):
        feeds[name] = numbers(data, (_BATCH, asked, heads * depth))
    if is_apart:
        for name in ("k", "v"):
            feeds[name] = feeds[name].reshape(_BATCH, asked, heads, -1).swapaxes(1, 2).copy()
    constants = {}
    if not is_apart and _maybe(data, "bias"):
        constants["b"] = numbers(data, (heads * (2 * size + value_size),))
    if _maybe(data, "masked"):
        feeds["m"] = np.where(np.arange(asked) < asked - 1, 1, 0).astype(np.int32) * np.ones((_BATCH, 1), np.int32)
    if _maybe(data, "added"):
        feeds["a"] = _added(data, heads, _TOKENS, asked)
    names = ["q", "k", "v", *(name if name in feeds or name in constants else "" for name in "bma")]
    one = OneNode(_node("MultiHeadAttention", names, num_heads=heads, **_MS), feeds, constants)

    _assert_heads(data, one, 2, heads)
    _assert_rows(data, one, 0)
    _assert_rows(data, one, 1)


def test_multi_head_attention_with_a_past_is_divided_by_heads_and_hands_out_its_keys_by_sequence() -> None:
    rng = np.random.default_rng(3)
    shapes = {"q": (2, 1, 8), "k": (2, 1, 8), "v": (2, 1, 8), "pk": (2, 4, 3, 2), "pv": (2, 4, 3, 2)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    node = _node("MultiHeadAttention", ["q", "k", "v", "", "", "", "pk", "pv"], ["y", "nk", "nv"], num_heads=4, **_MS)
    alone = OneNode(node, feeds, outputs=["y"])

    assert_span(alone, 2, 2, 6)
    assert_span(OneNode(node, feeds), 0, 1, 2)
    with pytest.raises(IndivisibleError, match="hands out keys and values"):
        OneNode(node, feeds).piece(2, 2, 6)


def test_tokens_that_see_only_those_before_them_stay_together() -> None:
    feeds = {name: np.ones((2, 3, 4), np.float32) for name in "qkv"}
    one = OneNode(_node("MultiHeadAttention", ["q", "k", "v"], num_heads=2, unidirectional=1, **_MS), feeds)

    with pytest.raises(IndivisibleError, match="before them"):
        one.piece(1, 0, 1)
    assert_span(one, 2, 0, 2)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_grouped_attention_is_divided_between_groups(data: Data) -> None:
    groups, members = data.draw(st.integers(1, 3), "groups"), data.draw(st.integers(1, 3), "members")
    heads, size = groups * members, 8
    has_past = _maybe(data, "past")
    tokens = 1 if has_past else _TOKENS
    feeds = {"q": numbers(data, (_BATCH, tokens, heads * size))}
    feeds |= {name: numbers(data, (_BATCH, tokens, groups * size)) for name in ("k", "v")}
    if has_past:
        feeds |= {name: numbers(data, (_BATCH, groups, 3, size)) for name in ("pk", "pv")}
    total = 4 if has_past else _TOKENS
    feeds["lengths"] = np.full(_BATCH, total - 1, np.int32)
    constants = {"total": np.asarray(total, np.int32)}
    past = ["pk", "pv"] if "pk" in feeds else ["", ""]
    names = ["q", "k", "v", *past, "lengths", "total"]
    attributes = {"num_heads": heads, "kv_num_heads": groups, "scale": 0.3}
    node = _node("GroupQueryAttention", names, ["y", "nk", "nv"], **attributes, **_MS)
    one = OneNode(node, feeds, constants, outputs=["y"])

    _assert_heads(data, one, 2, groups)
    _assert_rows(data, OneNode(node, feeds, constants), 0)
    with pytest.raises(IndivisibleError, match="before them"):
        one.piece(1, 0, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_standard_attention_is_divided_by_heads_sequences_and_tokens(data: Data) -> None:
    groups, members = data.draw(st.integers(1, 3), "groups"), data.draw(st.integers(1, 2), "members")
    heads, size, asked = groups * members, data.draw(st.integers(1, 4), "size"), data.draw(st.integers(2, 6), "asked")
    is_flat, is_causal = _maybe(data, "heads side by side"), _maybe(data, "causal")
    shapes = {
        "q": (_BATCH, heads, _TOKENS, size),
        "k": (_BATCH, groups, asked, size),
        "v": (_BATCH, groups, asked, size),
    }
    feeds = {name: numbers(data, shape) for name, shape in shapes.items()}
    counts: dict[str, Any] = {}
    if is_flat:
        counts = {"q_num_heads": heads, "kv_num_heads": groups}
        feeds = {name: value.swapaxes(1, 2).reshape(_BATCH, value.shape[2], -1) for name, value in feeds.items()}
    if _maybe(data, "masked"):
        ranks = [(_TOKENS, asked), (heads, _TOKENS, asked), (1, heads, _TOKENS, asked), (_BATCH, 1, _TOKENS, asked)]
        feeds["m"] = numbers(data, data.draw(st.sampled_from(ranks), "mask"))
    node = _node("Attention", list(feeds), is_causal=int(is_causal), **counts)
    one = OneNode(node, feeds, {}, {"": 23})

    if is_flat:
        _assert_heads(data, one, 2, groups)
    elif groups == 1:
        with pytest.raises(IndivisibleError, match="one group"):
            one.piece(1, 0, 1)
    else:
        start, stop = some_span(data, groups)
        assert_span(one, 1, start * members, stop * members)
    _assert_rows(data, one, 0)
    if is_causal:
        with pytest.raises(IndivisibleError, match="before them"):
            one.piece(1 if is_flat else 2, 0, 1)
    else:
        _assert_rows(data, one, 1 if is_flat else 2)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize("is_flat", [False, True])
def test_rotary_embeddings_are_divided_by_sequences_tokens_and_heads(domain: str, is_flat: bool) -> None:
    rng = np.random.default_rng(5)
    heads, size = 4, 6
    x = rng.standard_normal((_BATCH, heads, _TOKENS, size)).astype(np.float32)
    if is_flat:
        x = x.swapaxes(1, 2).reshape(_BATCH, _TOKENS, -1)
    tables = {name: rng.standard_normal((9, size // 2)).astype(np.float32) for name in ("c", "s")}
    positions = rng.integers(0, 9, (_BATCH, _TOKENS)).astype(np.int64)
    names = ["x", "p", "c", "s"] if domain else ["x", "c", "s", "p"]
    count: dict[str, Any] = {"num_heads": heads} if is_flat else {}
    node = _node("RotaryEmbedding", names, domain=domain, **count)
    one = OneNode(node, {"x": x, "p": positions}, tables, {"": 23, "com.microsoft": 1})

    assert_span(one, 0, 1, 2)
    assert_span(one, 1 if is_flat else 2, 2, 4)
    assert_span(one, *((2, size, 3 * size) if is_flat else (1, 1, 3)))
    with pytest.raises((GrainError, IndivisibleError)):
        one.piece(2 if is_flat else 3, 1, 2)


def test_rotary_embeddings_without_positions_take_their_part_of_the_tables() -> None:
    rng = np.random.default_rng(7)
    feeds = {"x": rng.standard_normal((2, 3, 4, 6)).astype(np.float32)}
    feeds |= {name: rng.standard_normal((2, 4, 3)).astype(np.float32) for name in ("c", "s")}
    one = OneNode(_node("RotaryEmbedding", ["x", "c", "s"]), feeds, {}, {"": 23})

    assert_span(one, 0, 1, 2)
    assert_span(one, 2, 1, 3)


def test_rotary_embeddings_that_count_tokens_are_divided_by_sequence_and_head() -> None:
    rng = np.random.default_rng(9)
    tables = {name: rng.standard_normal((9, 3)).astype(np.float32) for name in ("c", "s")}
    feeds: dict[str, Array] = {"x": rng.standard_normal((2, 3, 4, 6)).astype(np.float32)}
    feeds["p"] = np.asarray([2], np.int64)
    one = OneNode(_node("RotaryEmbedding", ["x", "p", "c", "s"], **_MS), feeds, tables)

    assert_span(one, 0, 1, 2)
    assert_span(one, 1, 1, 3)
    with pytest.raises(IndivisibleError, match="counts tokens"):
        one.piece(2, 0, 2)
