"""Random kernels that slide over random maps, and what must hold of the pieces of a node."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from hyps_passes.division.rule import GrainError

CLOSE = 1e-5
"""The largest difference of floats, relative to the largest value: the order of a sum may differ."""


@dataclass(frozen=True)
class Sliding:
    """A kernel, how it slides, and the map under it."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: dict[str, Any]

    @property
    def rank(self) -> int:
        """Spatial axes."""
        return len(self.sizes)


@st.composite
def slidings(draw: st.DrawFn, *, most_rank: int = 3, pools: bool = False, dilates: bool = True) -> Sliding:
    """Draw a kernel; pools pad by less than it, convolutions by anything, so that some positions see padding alone."""
    rank = draw(st.integers(1, most_rank))

    def per_axis(most: int, least: int = 1) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(least, most)] * rank))

    kernel, strides, room = per_axis(4 if rank < 3 else 3), per_axis(3), per_axis(9 if rank < 3 else 4, 0)
    automatic = draw(st.sampled_from(["NOTSET"] * 3 + ["VALID", "SAME_UPPER", "SAME_LOWER"]))
    dilations = per_axis(3) if dilates and not automatic.startswith("SAME") else (1,) * rank
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    most = [k - 1 if pools else extent + 1 for k, extent in zip(kernel, extents, strict=True)] * 2
    pads = [draw(st.integers(0, largest)) for largest in most] if automatic == "NOTSET" else [0] * 2 * rank
    if automatic.startswith("SAME"):  # onnxruntime refuses pools, and we convolutions, that pass over rows
        strides = tuple(min(stride, k + (not pools)) for stride, k in zip(strides, kernel, strict=True))
    sizes = tuple(max(1, extent - pads[axis] - pads[axis + rank]) + room[axis] for axis, extent in enumerate(extents))
    attributes: dict[str, Any] = {"strides": strides}
    if dilates:
        attributes["dilations"] = dilations
    attributes |= {"pads": pads} if automatic == "NOTSET" else {"auto_pad": automatic}
    return Sliding(sizes, kernel, attributes)


def node_of(
    operator: str,
    inputs: dict[str, Array],
    *,
    fed: int = 1,
    domain: str = "",
    opset: int = 17,
    **attributes: Any,
) -> OneNode:
    """Return a model of one node; its first `fed` inputs are fed, the others constants."""
    node = onnx.helper.make_node(operator, list(inputs), ["y"], name="one", domain=domain, **attributes)
    given = list(inputs.items())
    return OneNode(node, dict(given[:fed]), dict(given[fed:]), {"": opset, "com.microsoft": 1})


def numbers(draw: st.DrawFn) -> np.random.Generator:
    """Draw the seed of what a map holds."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Return normal floats, or integers of the whole range."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
    return rng.normal(size=shape).astype(dtype)


def edges(data: st.DataObject, length: int, grain: int = 1) -> list[int]:
    """Draw where an axis is cut: a first, a middle and a last piece, one of them of width one, and more."""
    units = length // grain
    one = data.draw(st.integers(0, units - 1))
    others = data.draw(st.sets(st.integers(0, units), max_size=2))
    return [unit * grain for unit in sorted({0, one, one + 1, units, *others})]


def check_spans(data: st.DataObject, one: OneNode, axis: int, *, exact: bool = False) -> None:
    """Hold the pieces of random spans that tile the axis against the whole."""
    length = one.whole[one.outputs[0]].shape[axis]
    for start, stop in pairwise(_allowed(one, axis, edges(data, length))):
        for made, expected in zip(one.made(axis, start, stop), one.expected(axis, start, stop), strict=True):
            whole = one.whole[one.outputs[0]]
            check_same(made, expected, whole, exact=exact)


def check_same(made: Array, expected: Array, whole: Array, *, exact: bool = False) -> None:
    """Hold a piece against a span of the whole: bit for bit, or within `CLOSE` of the largest value of the whole."""
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    if exact or made.dtype.kind != "f":
        np.testing.assert_array_equal(made, expected)
        return
    scale = np.abs(whole[np.isfinite(whole)]).max(initial=0) or 1
    close = CLOSE if made.dtype != np.float16 else 4e-3
    np.testing.assert_allclose(made / scale, expected / scale, rtol=0, atol=close)


def _allowed(one: OneNode, axis: int, cuts: list[int]) -> list[int]:
    """Return the edges, moved to the multiples that the rule insists on."""
    grain = _grain(one, axis, cuts)
    assert cuts[-1] % grain == 0
    moved = sorted({edge // grain * grain for edge in cuts})
    assert _grain(one, axis, moved) == 1
    return moved


def _grain(one: OneNode, axis: int, cuts: list[int]) -> int:
    """Return the grain that the rule asks for; 1: none."""
    try:
        for start, stop in pairwise(cuts):
            one.piece(axis, start, stop)
    except GrainError as error:
        return error.grain
    return 1
