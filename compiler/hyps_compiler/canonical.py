"""Gives a graph that onnxruntime has optimized the same names and order in every run.

What onnxruntime adds is numbered by a counter and listed in an order that both follow the addresses of its hash tables.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush

from onnx import GraphProto, ModelProto, NodeProto

_COUNTED = re.compile(r"(^|_)token_\d+$|^reorder$")
"""The first of a kind has no number."""
_BLOCKED = "_nchwc"
"""What onnxruntime calls a node that it has given a blocked layout: the value that the node made, and this."""


def make_canonical(proto: ModelProto, made: Mapping[str, str]) -> None:
    """Rename and reorder in place; outputs and initializers that the model had keep their names.

    Args:
        proto: what onnxruntime saved; its functions are inlined.
        made: the values that the original model's nodes make, to the nodes' names, in the order of its file.
    """
    graph = proto.graph
    nodes = _ordered(graph, {name: index for index, name in enumerate(made)})
    names = _new_names(graph, nodes)
    for node in nodes:
        value = node.name.removesuffix(_BLOCKED)
        if value != node.name and made.get(value):
            node.name = made[value]
    del graph.node[:]
    graph.node.extend(nodes)
    _rename(graph, names)
    initializers = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _ordered(graph: GraphProto, place: Mapping[str, int]) -> list[NodeProto]:
    """Return the nodes in running order: those of the model as its file has them, added ones behind what they read."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer[name] for name in _reads(node) if name in producer} for node in graph.node]
    readers: list[list[int]] = [[] for _ in graph.node]
    for index, sources in enumerate(needs):
        for source in sources:
            readers[source].append(index)
    keys: dict[int, tuple[int, int, str, str]] = {}
    left = [len(sources) for sources in needs]
    ready: list[tuple[tuple[int, int, str, str], int]] = []

    def release(index: int) -> None:
        node = graph.node[index]
        own = [place[name] for name in node.output if name in place]
        behind = max((keys[source][0] for source in needs[index]), default=-1)
        keys[index] = (min(own), 0, "", "") if own else (behind, 1, node.op_type, _stable(node))
        heappush(ready, (keys[index], index))

    for index, count in enumerate(left):
        if count == 0:
            release(index)
    ordered = []
    while ready:
        _, index = heappop(ready)
        ordered.append(graph.node[index])
        for reader in readers[index]:
            left[reader] -= 1
            if left[reader] == 0:
                release(reader)
    return ordered


def _stable(node: NodeProto) -> str:
    """Return the names around the node that do not change from run to run."""
    return " ".join(name for name in (*node.input, *node.output) if name and not _COUNTED.search(name))


def _new_names(graph: GraphProto, nodes: Sequence[NodeProto]) -> dict[str, str]:
    """Return new names for what is named by a counter: values after what they are made of, weights after their use."""
    taken = {name for node in nodes for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    weights = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}

    def name_after(old: str, wish: str) -> None:
        if old and old not in names and _COUNTED.search(old):
            names[old] = _free(wish, taken)

    for node in nodes:
        first = next((names.get(name, name) for name in node.input if name and name not in weights), "model")
        for index, output in enumerate(node.output):
            name_after(output, f"{first}.{node.op_type}" + (f".{index}" if index else ""))
        if _COUNTED.search(node.name) or node.name == node.op_type:
            node.name = names.get(node.output[0], node.output[0]) + f".{node.op_type}"
        for index, name in enumerate(node.input):
            if name in weights:
                name_after(name, f"{names.get(node.output[0], node.output[0])}.input{index}")
    return names


def _free(wish: str, taken: set[str]) -> str:
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}.{count}"
    taken.add(name)
    return name


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for nested in _nested(node):
            _rename(nested, names)
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _reads(node: NodeProto) -> set[str]:
    """Return the names that the node and its nested graphs read, what they make themselves included."""
    names = set(node.input)
    for nested in _nested(node):
        names.update(value.name for value in nested.output)
        for inner in nested.node:
            names |= _reads(inner)
    return names


def _nested(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
