"""Walks all that a model holds, wherever a stranger may have hidden it; nothing here calls itself."""

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

Body = GraphProto | FunctionProto
"""What has nodes."""


def bodies(model: ModelProto) -> Iterator[tuple[Body, int]]:
    """Yield every graph and function, and the graphs nested in them with how deep they lie; 0 are the outermost."""
    yield from inside(*outermost(model))


def outermost(model: ModelProto) -> list[Body]:
    """Return the graphs and functions that lie in no node."""
    training = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    return [model.graph, *training, *model.functions]


def inside(*outer: Body) -> Iterator[tuple[Body, int]]:
    """Yield the bodies and the graphs nested in them, with how deep these lie."""
    waiting = [(body, 0) for body in reversed(outer)]
    while waiting:
        body, depth = waiting.pop()
        yield body, depth
        nested = [graph for attribute in _attributes(body) for graph in _graphs(attribute)]
        waiting += [(graph, depth + 1) for graph in reversed(nested)]


def graphs_in(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that are attributes of the node."""
    for attribute in node.attribute:
        yield from _graphs(attribute)


def initializer_names(graph: GraphProto) -> set[str]:
    """Return the names of the graph's weights, sparse ones included."""
    return {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor, the halves of sparse ones included."""
    for body, _ in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.initializer
        for attribute in _attributes(body):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for sparse in sparse_tensors(model):
        yield from (sparse.values, sparse.indices)


def sparse_tensors(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Yield every sparse tensor."""
    for body, _ in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.sparse_initializer
        for attribute in _attributes(body):
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.sparse_tensors


def _attributes(body: Body) -> Iterator[AttributeProto]:
    if isinstance(body, FunctionProto):
        yield from body.attribute_proto
    nodes: Iterable[NodeProto] = body.node
    for node in nodes:
        yield from node.attribute


def _graphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    """Yield the graphs in an attribute, whatever type it claims to be of."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs
