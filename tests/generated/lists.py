"""Recipes of sequences, optionals and maps: values that are no tensors, and do not travel between partitions."""

from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import ValueInfoProto, helper

from generated.grower import Grower, Recipe
from generated.nested import loop_inputs, truth, unsized
from generated.values import FLOAT, Array, Input, Shape, Tensor, sizes

Made = list[Tensor]
ML = "ai.onnx.ml"


def _parts(g: Grower) -> Made | None:
    """A tensor split into a sequence, one of its parts, and all of them joined again."""
    x = g.pick(2)
    if x is None or not x.has_fixed(1):
        return None
    parts = g.op("SplitToSequence", [x.name], (), axis=1, keepdims=1)
    joined = g.op("ConcatFromSequence", [parts.name], x.shape, axis=1)
    first = g.op("SequenceAt", [parts.name, g.scalar(0)], (x.shape[0], 1))
    _perhaps_output(g, parts, None)
    return [joined, first]


def _built(g: Grower) -> Made:
    """A sequence built up, shortened and counted."""
    x = g.any()
    made = g.op("SequenceConstruct", [x.name, g.same(x).name], ())
    if g.choose(2):
        made = g.op("SequenceInsert", [made.name, x.name, *([g.scalar(0)] if g.choose(2) else [])], ())
    if g.choose(2):
        made = g.op("SequenceErase", [made.name], ())
    else:
        empty = g.op("SequenceEmpty", [], (), dtype=T.FLOAT)
        made = g.op("SequenceInsert", [empty.name, g.op("SequenceAt", [made.name, g.scalar(-1)], x.shape).name], ())
    count = g.op("SequenceLength", [made.name], (), T.INT64)
    _perhaps_output(g, made, None)
    last = g.op("SequenceAt", [made.name, g.scalar(-1)], x.shape)
    g.features.add("a scalar value")
    return [count, g.op("Neg", [last.name], x.shape)]


def _given(g: Grower) -> Made:
    """A sequence that the request brings."""
    shape: Shape = (g.batch, 4)
    name = f"in{len(g.inputs)}"

    def make(batch: int, rng: np.random.Generator) -> list[Array]:
        return [rng.standard_normal(sizes(shape, batch)).astype(np.float32) for _ in range(batch + 1)]

    g.add_input(Input(name, helper.make_tensor_sequence_value_info(name, FLOAT, list(shape)), make, is_open=True))
    g.features.add("a sequence is an input")
    return [g.op("SequenceAt", [name, g.scalar(0)], shape)]


def _carried(g: Grower) -> Made:
    """A loop that carries a sequence, and captures what it puts there."""
    x = g.any()
    empty = g.op("SequenceEmpty", [], (), dtype=T.FLOAT)
    nodes = [
        helper.make_node("SequenceInsert", ["list", x.name], ["longer"]),
        helper.make_node("Identity", ["go"], ["still"]),
    ]
    kind = helper.make_tensor_sequence_value_info("list", FLOAT, None)
    longer = helper.make_tensor_sequence_value_info("longer", FLOAT, None)
    inputs = [*loop_inputs("go", "unused")[:2], kind]
    body = helper.make_graph(nodes, "body", inputs, [truth("still"), longer])
    g.used.add(x.name)
    made = g.op("Loop", [g.scalar(2), "", empty.name], (), body=body)
    _perhaps_output(g, made, None)
    g.features.add("a loop carries a sequence")
    return [g.op("ConcatFromSequence", [made.name], (2, *x.shape), axis=0, new_axis=1)]


def _mapped(g: Grower) -> Made:
    """Each element of a sequence through a graph, by a function of the standard itself."""
    x = g.any()
    parts = g.op("SequenceConstruct", [x.name, g.same(x).name], ())
    nodes = [helper.make_node("Relu", ["item"], ["mapped"])]
    body = helper.make_graph(nodes, "body", [unsized("item")], [unsized("mapped")])
    made = g.op("SequenceMap", [parts.name], (), body=body)
    return [g.op("ConcatFromSequence", [made.name], (2, *x.shape), axis=0, new_axis=1)]


def _perhaps_output(g: Grower, made: Tensor, shape: Shape | None) -> None:
    if g.choose(2):
        g.outputs.append(helper.make_tensor_sequence_value_info(made.name, FLOAT, shape))
        g.features.add("a sequence is an output")


def _optional(g: Grower) -> Made:
    """Wrapped and unwrapped."""
    x = g.any()
    wrapped = g.op("Optional", [x.name], ())
    if g.choose(2):
        g.outputs.append(_optional_info(wrapped.name, None))
        g.features.add("an optional is an output")
    there = g.op("OptionalHasElement", [wrapped.name], (), T.BOOL)
    g.features.add("a scalar value")
    return [there, g.op("OptionalGetElement", [wrapped.name], x.shape)]


def _nothing(g: Grower) -> Made:
    """An optional without an element."""
    kind = helper.make_tensor_type_proto(FLOAT, None)
    wrapped = g.op("Optional", [], (), type=kind)
    g.outputs.append(_optional_info(wrapped.name, None))
    g.features.update(("an optional is an output", "an optional is empty"))
    return [g.op("OptionalHasElement", [wrapped.name], (), T.BOOL)]


def _optional_given(g: Grower) -> Made:
    """An optional that the request brings or not: what is computed depends on it."""
    x = g.any()
    shape: Shape = (g.batch, 4)
    name = f"in{len(g.inputs)}"
    is_there = g.choose(2)

    def make(batch: int, rng: np.random.Generator) -> Array | None:
        return rng.standard_normal(sizes(shape, batch)).astype(np.float32) if is_there else None

    g.add_input(Input(name, _optional_info(name, shape), make, is_open=g.batch == "N"))
    g.features.add("an optional is an input" if is_there else "an optional input is empty")
    there = g.op("OptionalHasElement", [name], (), T.BOOL)
    then = [
        helper.make_node("OptionalGetElement", [name], ["element"]),
        helper.make_node("ReduceMax", ["element"], ["t"], keepdims=0),
    ]
    other = [helper.make_node("ReduceMax", [x.name], ["e"], keepdims=0)]
    branches = [
        helper.make_graph(nodes, "branch", [], [unsized(output)]) for nodes, output in ((then, "t"), (other, "e"))
    ]
    g.used.update((name, x.name))
    g.features.add("a scalar value")
    return [g.op("If", [there.name], (), then_branch=branches[0], else_branch=branches[1])]


def _optional_info(name: str, shape: Shape | None) -> ValueInfoProto:
    tensor = helper.make_tensor_type_proto(FLOAT, None if shape is None else list(shape))
    return helper.make_value_info(name, helper.make_optional_type_proto(tensor))


def _zipped(g: Grower) -> Made | None:
    """Scores with their labels: a sequence of maps, as classifiers give."""
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 15)
    if x is None:
        return None
    count = x.size()
    text = bool(g.choose(2))
    labels: dict[str, Any] = {"classlabels_int64s": list(range(count))}
    if text:
        labels = {"classlabels_strings": [f"label {index}" for index in range(count)]}
    made = g.op("ZipMap", [x.name], (), domain=ML, **labels)
    info = ValueInfoProto(name=made.name)
    pairs = info.type.sequence_type.elem_type.map_type
    pairs.key_type = T.STRING if text else T.INT64
    pairs.value_type.tensor_type.elem_type = T.FLOAT
    g.outputs.append(info)
    g.features.add("a map is an output")
    return []


def _vectorized(g: Grower) -> Made:
    """A map that the request brings, as numbers."""
    name = f"in{len(g.inputs)}"
    info = ValueInfoProto(name=name)
    text = bool(g.choose(2))
    info.type.map_type.key_type = T.STRING if text else T.INT64
    info.type.map_type.value_type.tensor_type.elem_type = T.FLOAT
    info.type.map_type.value_type.tensor_type.shape.SetInParent()

    def make(batch: int, rng: np.random.Generator) -> dict[Any, float]:
        values = np.round(rng.standard_normal(3).astype(np.float32), 3)
        return dict(zip(("a", "c", "b") if text else (0, 2, 1), map(float, values), strict=True))

    g.add_input(Input(name, info, make))
    g.features.add("a map is an input")
    if text:
        return [g.op("DictVectorizer", [name], (1, 2), domain=ML, string_vocabulary=["b", "a"])]
    return [g.op("CastMap", [name], (1, 3), domain=ML, cast_to="TO_FLOAT", map_form="DENSE")]


RECIPES = {
    "list-built": Recipe(_built, since=11),
    "list-carried": Recipe(_carried, since=13),
    "list-given": Recipe(_given, since=11),
    "list-mapped": Recipe(_mapped, since=17),
    "list-of-parts": Recipe(_parts, since=11),
    "map-given": Recipe(_vectorized),
    "map-output": Recipe(_zipped),
    "optional": Recipe(_optional, since=15),
    "optional-empty": Recipe(_nothing, since=15),
    "optional-given": Recipe(_optional_given, since=15),
}
