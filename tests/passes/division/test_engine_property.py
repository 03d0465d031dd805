"""Random networks, divided at random: the pieces together are the whole, and nothing is computed twice by `carry`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cut_fixtures import Array
from engine_fixtures import Divided, Net, divided, prepared, sizes_of
from hyps_passes.division.engine import extent
from hyps_passes.division.region import Region
from hyps_passes.division.rule import IndivisibleError

Draw = st.DrawFn
CLOSE = 1e-5
"""The largest difference, relative to the largest value: pieces of a product may be added in another order.

Values are about 1 or more; where they cancel to less, what was added up counts."""


def assert_close(whole: dict[str, Array], pieces: dict[str, Array]) -> None:
    assert set(whole) == set(pieces)
    for name, value in whole.items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(pieces[name], value, rtol=0, atol=CLOSE * scale)


@dataclass
class Growing:
    """A network of feature maps in the making: `maps` are those that later layers may use, the last one first."""

    net: Net
    shape: tuple[int, ...]
    """Of the current map: batch, channels, spatial sizes."""
    maps: list[str]
    earlier: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    outputs: set[str] = field(default_factory=set)

    @property
    def current(self) -> str:
        return self.maps[-1]

    def grow(self, value: str, shape: tuple[int, ...]) -> None:
        self.maps.append(value)
        self.earlier.append((value, shape))
        self.shape = shape


def _convolve(draw: Draw, made: Growing) -> None:
    """Any kernel, stride, dilation, padding and groups that fit the map."""
    sizes, channels = made.shape[2:], made.shape[1]
    kernel, stride, dilation, before, after, out = [], [], [], [], [], []
    for size in sizes:
        most = min(4, size)
        kernel.append(draw(st.integers(1, most)))
        dilation.append(draw(st.integers(1, 2)) if kernel[-1] > 1 and 2 * (kernel[-1] - 1) < size else 1)
        stride.append(draw(st.sampled_from([1, 1, 1, 2, 3])))
        before.append(draw(st.integers(0, 2)))
        after.append(draw(st.integers(0, 2)))
        reach = (kernel[-1] - 1) * dilation[-1] + 1
        out.append((size + before[-1] + after[-1] - reach) // stride[-1] + 1)
    group = draw(st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0]))
    filters = group * draw(st.integers(1, 3))
    inputs = [made.current, made.net.weight(filters, channels // group, *kernel)]
    inputs += [made.net.weight(filters)] if draw(st.booleans()) else []
    value = made.net.add(
        "Conv", *inputs, group=group, strides=stride, dilations=dilation, pads=before + after, kernel_shape=kernel
    )
    made.grow(value, (made.shape[0], filters, *out))


def _same(draw: Draw, made: Growing) -> None:
    """A convolution that keeps the map's size, so that something earlier can be added to it."""
    channels = made.shape[1]
    kernel = [2 * draw(st.integers(0, 1)) + 1 for _ in made.shape[2:]]
    pads = [size // 2 for size in kernel] * 2
    value = made.net.add("Conv", made.current, made.net.weight(channels, channels, *kernel), pads=pads)
    made.grow(value, made.shape)


def _pool(draw: Draw, made: Growing) -> None:
    op_type = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel = [draw(st.integers(1, min(3, size))) for size in made.shape[2:]]
    strides = [draw(st.integers(1, 2)) for _ in kernel]
    pads = [draw(st.integers(0, k - 1)) for k in kernel] * 2
    out = [
        (size + 2 * pad - k) // stride + 1
        for size, k, stride, pad in zip(made.shape[2:], kernel, strides, pads, strict=False)
    ]
    value = made.net.add(op_type, made.current, kernel_shape=kernel, strides=strides, pads=pads)
    made.grow(value, (*made.shape[:2], *out))


def _elementwise(draw: Draw, made: Growing) -> None:
    op_type = draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu", "Tanh", "Mul", "Add", "BatchNormalization"]))
    channels, rank = made.shape[1], len(made.shape)
    inputs = [made.current]
    if op_type in ("Mul", "Add"):
        kept = draw(st.integers(0, rank - 1))
        inputs.append(made.net.weight(*(size if axis >= max(kept, 1) else 1 for axis, size in enumerate(made.shape))))
    if op_type == "BatchNormalization":
        inputs += [made.net.weight(channels) for _ in range(3)] + [made.net.constant(np.ones(channels, np.float32))]
    made.grow(made.net.add(op_type, *inputs), made.shape)


def _residual(draw: Draw, made: Growing) -> None:
    fitting = [name for name, shape in made.earlier[:-1] if shape == made.shape]
    if not fitting:
        _same(draw, made)
        fitting = [name for name, shape in made.earlier[:-1] if shape == made.shape]
    made.grow(made.net.add("Add", draw(st.sampled_from(fitting)), made.current), made.shape)


def _concatenated(draw: Draw, made: Growing) -> None:
    fitting = [(name, shape) for name, shape in made.earlier if shape[2:] == made.shape[2:]]
    name, shape = draw(st.sampled_from(fitting))
    value = made.net.add("Concat", made.current, name, axis=1)
    made.grow(value, (made.shape[0], made.shape[1] + shape[1], *made.shape[2:]))


def _side_output(draw: Draw, made: Growing) -> None:
    """The map leaves the region and goes on in it; or a reader outside has it at half the size."""
    if draw(st.booleans()) and made.current != "x":
        made.outputs.add(made.current)
    else:
        kernel = [1] * len(made.shape[2:])
        made.outputs.add(made.net.add("MaxPool", made.current, kernel_shape=kernel, strides=[2] * len(kernel)))


STEPS: tuple[Callable[[Draw, Growing], None], ...] = (
    _convolve, _convolve, _same, _pool, _elementwise, _elementwise, _residual, _concatenated, _side_output,
)  # fmt: skip


@st.composite
def networks(draw: Draw) -> Growing:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    sizes = tuple(draw(st.integers(4, 14 if rank < 3 else 7)) for _ in range(rank))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), *sizes)
    made = Growing(
        Net({"x": (shape[0] if draw(st.booleans()) else "N", *shape[1:])}, seed=draw(st.integers(0, 99))), shape, ["x"]
    )
    made.earlier.append(("x", shape))
    for _ in range(draw(st.integers(1, 8))):
        draw(st.sampled_from(STEPS))(draw, made)
    if made.current == "x":
        made.grow(made.net.add("Relu", "x"), shape)
    made.outputs.add(made.current)
    return made


def _a_division(data: st.DataObject, made: Growing, axis: int | None, *, carry: bool) -> Divided | None:
    """Return the network with a random run of nodes divided; None where that cannot be."""
    whole = made.net.proto(*sorted(made.outputs))
    model = prepared(whole)
    names = [str(node.name) for node in model.graph]
    first = data.draw(st.integers(0, len(names) - 1))
    stop = len(names) if axis is None else data.draw(st.integers(first + 1, len(names)))
    nodes = names[first:stop]
    try:
        found = extent(model, Region("region", tuple(nodes), axis, carry), sizes_of(model))
        count = data.draw(st.integers(2, min(found.most, 6)))
        cut = divided(whole, nodes, axis, count, carry=carry)
    except IndivisibleError as error:
        event(f"refused: {error.reason.split('`')[-1]}")
        return None
    event("divided")
    return cut


@settings(max_examples=120, deadline=None)
@given(networks(), st.data(), st.integers(-4, -1), st.booleans())
def test_divided_networks_of_feature_maps(made: Growing, data: st.DataObject, axis: int, carry: bool) -> None:
    cut = _a_division(data, made, axis, carry=carry)
    if cut is None:
        return
    assert_close(*cut.run(made.net.feeds()))
    before, after = cut.computed()
    assert not carry or all(after.get(op_type, 0) <= work for op_type, work in before.items())


@settings(max_examples=60, deadline=None)
@given(networks(), st.data(), st.booleans())
def test_divided_sums_over_channels(made: Growing, data: st.DataObject, carry: bool) -> None:
    made.outputs = {made.net.add("Conv", made.current, made.net.weight(3, made.shape[1], *[1] * len(made.shape[2:])))}
    cut = _a_division(data, made, None, carry=carry)
    if cut is not None:
        assert_close(*cut.run(made.net.feeds()))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_dense_layers_with_one_merge(data: st.DataObject, carry: bool, transposed: bool) -> None:
    """Any run of dense layers and activations whose last product's sum is divided."""
    batch, *widths = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=5))
    net = Net({"x": (batch if data.draw(st.booleans()) else "N", widths[0])}, seed=data.draw(st.integers(0, 99)))
    value = "x"
    for inner, width in pairwise(widths):
        shape = (width, inner) if transposed else (inner, width)
        value = net.add("Gemm", value, net.weight(*shape), net.weight(width), transB=int(transposed))
        value = net.add(data.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid"])), value)
    net.nodes.pop()
    value = net.nodes[-1].output[0]
    first = data.draw(st.integers(0, len(net.nodes) - 1))
    nodes = [node.name for node in net.nodes[first:]]
    size = widths[-2]
    if size > 1:
        cut = divided(net.proto(value), nodes, None, data.draw(st.integers(2, size)), carry=carry)
        assert_close(*cut.run(net.feeds()))


@settings(max_examples=25, deadline=None)
@given(st.data(), st.booleans())
def test_attention_of_any_shape(data: st.DataObject, carry: bool) -> None:
    """By heads, where they are an axis, by queries, and by what the last product makes; from any node on."""
    heads, width, tokens = (data.draw(st.integers(1, 4)) for _ in range(3))
    net = Net(
        {"x": (2 if data.draw(st.booleans()) else "N", tokens, heads * width)}, seed=data.draw(st.integers(0, 99))
    )
    value = _attention(net, heads, width, has_bias=data.draw(st.booleans()))
    axis = data.draw(st.sampled_from([None, -1, -2, -3]))
    nodes = [node.name for node in net.nodes][data.draw(st.integers(0, len(net.nodes) - 1)) :]
    whole = net.proto(value)
    model = prepared(whole)
    try:
        found = extent(model, Region("heads", tuple(nodes), axis, carry), sizes_of(model))
        cut = divided(whole, nodes, axis, data.draw(st.integers(2, found.most)), carry=carry)
    except IndivisibleError as error:
        event(f"refused: {error.reason.split('`')[-1]}")
        return
    event("divided")
    assert_close(*cut.run(net.feeds()))
    before, after = cut.computed()
    assert not carry or all(after.get(op_type, 0) <= work for op_type, work in before.items())


def _attention(net: Net, heads: int, width: int, *, has_bias: bool) -> str:
    size = heads * width

    def by_heads() -> str:
        product = net.add("MatMul", "x", net.weight(size, size))
        biased = net.add("Add", product, net.weight(size)) if has_bias else product
        return net.add("Transpose", net.add("Reshape", biased, net.constant([0, 0, heads, width])), perm=[0, 2, 1, 3])

    query, key, value = by_heads(), by_heads(), by_heads()
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), value)
    flat = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.constant([0, 0, size]))
    return net.add("MatMul", flat, net.weight(size, size))
