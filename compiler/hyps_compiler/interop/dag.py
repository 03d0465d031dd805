"""The nodes of a graph as they depend on each other, and stages for all of them from those that some were given."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from hyps.errors import printable
from hyps_compiler.interop.wanted import Moved
from hyps_compiler.ordering import order, read_names
from hyps_compiler.walk import initializer_names


@dataclass(frozen=True, slots=True)
class Dag:
    """Nodes by their position in the file."""

    nodes: tuple[NodeProto, ...]
    sequence: tuple[int, ...]
    """In an order in which they can run."""
    needs: tuple[frozenset[int], ...]
    reads: tuple[frozenset[str], ...]
    """Names that each node reads, those that its nested graphs capture included."""
    readers: tuple[tuple[int, ...], ...]
    maker: Mapping[str, int]
    constants: frozenset[int]
    """Nodes that compute from weights alone: whoever needs one has a copy, so that they are in no stage."""

    def name(self, index: int) -> str:
        """Return what to call a node in a message."""
        node = self.nodes[index]
        return printable(node.name or next(filter(None, node.output), "") or node.op_type)

    def stage_of_tensors(self, stages: Mapping[int, int]) -> dict[str, int]:
        """Return the stage of each tensor by its maker's."""
        return {name: stages[i] for name, i in self.maker.items() if i in stages}

    def crossing(self, stages: Mapping[int, int]) -> tuple[str, ...]:
        """Return the tensors that a node of another stage reads, in the order of the file."""
        found = {
            name
            for index, stage in stages.items()
            for name in self.reads[index]
            if stages.get(self.maker.get(name, index), stage) != stage
        }
        return tuple(name for node in self.nodes for name in node.output if name in found)


def read_dag(graph: GraphProto) -> Dag:
    """Return the nodes of a graph that has passed `check_model`."""
    sequence, needs = order(graph)
    reads = tuple(frozenset(read_names(node)) for node in graph.node)
    readers: list[list[int]] = [[] for _ in graph.node]
    for index, makers in enumerate(needs):
        for maker in makers:
            readers[maker].append(index)
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    given, outputs = initializer_names(graph), {value.name for value in graph.output}
    constants: set[int] = set()
    for index in sequence:
        node = graph.node[index]
        is_fed = all(name in given or made.get(name, -1) in constants for name in reads[index])
        has_source = bool(reads[index]) or node.op_type == "Constant"  # others without inputs draw random numbers
        if is_fed and has_source and outputs.isdisjoint(node.output):
            constants.add(index)
    return Dag(
        nodes=tuple(graph.node),
        sequence=tuple(sequence),
        needs=tuple(map(frozenset, needs)),
        reads=reads,
        readers=tuple(map(tuple, readers)),
        maker=made,
        constants=frozenset(constants),
    )


def spread(
    dag: Dag, given: Mapping[int, int], *, following: Collection[int] = ()
) -> tuple[dict[int, int], tuple[Moved, ...]]:
    """Return a stage for every node but the constants such that no edge leads back, and what had to move for it.

    1. A node runs in the latest of the stages it was given and those of the nodes that it needs.
    2. One without a stage of its own, behind none that has, runs in the earliest stage that needs it.
    3. What nothing tells anything of runs in the first stage.

    Args:
        dag: the nodes.
        given: stages of some of them.
        following: nodes that rather run with what reads them.
    """
    stages: dict[int, int] = {}
    running = [index for index in dag.sequence if index not in dag.constants]
    for index in running:  # 1.
        known = [stages[maker] for maker in dag.needs[index] if maker in stages]
        known += [given[index]] if index in given else []
        if known:
            stages[index] = max(known)
    first = min(stages.values(), default=0)
    for index in reversed(running):  # 2. and 3.
        if index not in stages or (index in following and dag.readers[index]):
            stages[index] = min((stages[reader] for reader in dag.readers[index]), default=first)
    moved = tuple(
        Moved(dag.name(index), given[index], stages[index])
        for index in running
        if index in given and index not in following and stages[index] != given[index]
    )
    return stages, moved
