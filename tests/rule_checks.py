"""What each rule must keep: pieces are the spans of the whole, and pieces of a sum add up to it."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import key_of
from hyps_passes.division.rules import CONTRACTIONS

Data = st.DataObject
"""What draws: `@given(st.data())`."""


def numbers(data: Data, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Return seeded random numbers; integers fill a byte."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    if np.dtype(dtype).kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    bounds = np.iinfo(dtype) if np.dtype(dtype).itemsize == 1 else np.iinfo(np.int8)
    return np.asarray(rng.integers(bounds.min, bounds.max, shape, endpoint=True)).astype(dtype)


def some_shape(data: Data, least: int = 1, most: int = 4) -> tuple[int, ...]:
    """Return a random shape of `least` to `most` axes."""
    return tuple(data.draw(st.lists(st.integers(1, 5), min_size=least, max_size=most), "shape"))


def some_span(data: Data, size: int, grain: int = 1) -> tuple[int, int]:
    """Return first and past-the-last position of a random span, at multiples of `grain`."""
    start = data.draw(st.integers(0, size // grain - 1), "start")
    return start * grain, data.draw(st.integers(start + 1, size // grain), "stop") * grain


def assert_spans(data: Data, one: OneNode, axis: int | None = None, tolerance: float = 1e-5) -> None:
    """Check a random span of an axis, a random one if none is given."""
    whole = one.whole[one.outputs[0]]
    along = data.draw(st.integers(0, whole.ndim - 1), "axis") if axis is None else axis
    assert_span(one, along, *some_span(data, whole.shape[along]), tolerance=tolerance)


def assert_span(one: OneNode, axis: int, start: int, stop: int, *, tolerance: float = 1e-5) -> None:
    """Check the piece for one span: integers exactly, floats to `tolerance` of the largest; 0: bit for bit."""
    for name, made, expected in zip(
        one.outputs, one.made(axis, start, stop), one.expected(axis, start, stop), strict=True
    ):
        assert made.dtype == expected.dtype
        assert made.shape == expected.shape
        assert_close(made, expected, tolerance * largest(one.whole[name]))


def assert_sum(data: Data, one: OneNode, size: int, tolerance: float = 1e-5) -> None:
    """Check that the pieces between random edges of the sum of length `size` add up."""
    assert CONTRACTIONS[key_of(one.ir_node)].size(one.ir_node, one.facts) == size
    inner = data.draw(st.sets(st.integers(1, size - 1), max_size=3), "edges") if size > 1 else set()
    total, whole = one.summed([0, *sorted(inner), size]), one.whole[one.outputs[0]]
    assert total.shape == whole.shape
    assert_close(total, whole, tolerance * max(1.0, math.sqrt(size)) * max(1.0, largest(whole)))


def assert_close(made: Array, expected: Array, tolerance: float) -> None:
    """Check that integers are equal, and floats differ by at most `tolerance`."""
    if expected.dtype.kind != "f" or not tolerance:
        np.testing.assert_array_equal(made, expected)
    else:
        np.testing.assert_allclose(made, expected, rtol=0, atol=tolerance)


def largest(values: Array) -> float:
    """Return the largest absolute value that is finite, and never 0."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(np.abs(finite.astype(np.float64)).max(initial=1e-30))
