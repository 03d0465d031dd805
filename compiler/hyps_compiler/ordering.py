"""An order in which the nodes of a graph can run. Files need not be sorted: onnxruntime sorts them itself."""

from collections.abc import Iterator

from onnx import NodeProto

from hyps_compiler.walk import Body, graphs_in, initializer_names


def order(body: Body) -> tuple[list[int], list[set[int]]]:
    """Return the indices of nodes in an order in which they can run, and the indices of those that each one needs.

    Nodes that need their own output, and those behind them, are not in the order.
    """
    makers = {name: index for index, node in enumerate(body.node) for name in node.output if name}
    needs = [{makers[name] for name in read_names(node) if name in makers} for node in body.node]
    waiting = [len(made) for made in needs]
    readers: list[list[int]] = [[] for _ in body.node]
    for index, made in enumerate(needs):
        for maker in made:
            readers[maker].append(index)
    sequence = [index for index, count in enumerate(waiting) if not count]
    for ready in sequence:  # grows as it is walked
        for reader in readers[ready]:
            waiting[reader] -= 1
            if not waiting[reader]:
                sequence.append(reader)
    return sequence, needs


def read_names(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that its nested graphs capture included."""
    yield from filter(None, node.input)
    for graph in graphs_in(node):
        inner = {value.name for value in graph.input} | initializer_names(graph)
        inner.update(name for child in graph.node for name in child.output)
        for child in graph.node:
            yield from (name for name in read_names(child) if name not in inner)
        yield from (value.name for value in graph.output if value.name not in inner)
