"""A region in its model: its nodes, what they hand out, and whether they can be taken out together."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from hyps_passes import ops
from hyps_passes.division.region import Region
from hyps_passes.division.rule import Facts, IndivisibleError
from hyps_passes.layers import CUT, SHARD, constant_nodes, node_inputs


@dataclass(frozen=True, slots=True)
class Scene:
    """A region, looked up in a model that stays as it is."""

    region: Region
    nodes: tuple[ir.Node, ...]
    """In running order."""
    members: frozenset[ir.Node]
    """The same."""
    last: ir.Node
    behind: tuple[ir.Node, ...]
    """Other nodes that stand between them and need what they make, in running order."""
    constants: frozenset[ir.Node]
    """The model's nodes that compute from constants alone."""
    facts: Facts

    def inside(self, value: ir.Value) -> bool:
        """Return whether a node of the region makes the value."""
        return value.producer() in self.members

    def is_constant(self, value: ir.Value) -> bool:
        """Return whether the value is the same in every request."""
        return value.is_initializer() or value.producer() in self.constants

    def is_output(self, value: ir.Value) -> bool:
        """Return whether something outside the region needs a value that it makes."""
        return value.is_graph_output() or any(use.node not in self.members for use in value.uses())


def find_scene(model: ir.Model, region: Region, sizes: Mapping[str, tuple[int, ...]]) -> Scene:
    """Return the region's scene.

    Raises:
        IndivisibleError: the nodes cannot be taken out of the model together, or hold what must not be computed twice.
        ValueError: a node is not there.
    """
    by_name = {str(node.name): node for node in model.graph}
    missing = [name for name in region.nodes if name not in by_name]
    if missing or not region.nodes:
        raise ValueError(f"no nodes {missing} in the model")
    constants = constant_nodes(model.graph)
    members = {by_name[name] for name in region.nodes} - constants
    last = by_name[region.nodes[-1]]
    for node in members:
        _check_node(node)
        if all(value.is_initializer() or value.producer() in constants for value in node_inputs(node)):
            raise IndivisibleError(f"`{node.name}` computes from constants alone")
        if any(CUT in value.meta and use.node in members for value in node.outputs for use in value.uses()):
            raise IndivisibleError(f"the model is cut behind `{node.name}`")
    if last not in members or any(use.node in members for value in last.outputs for use in value.uses()):
        raise IndivisibleError(f"`{last.name}` is not the last node of the region")
    if not any(value.uses() or value.is_graph_output() for value in last.outputs):
        raise IndivisibleError(f"nothing needs `{last.name}`")
    order = list(model.graph)
    nodes = tuple(node for node in order if node in members)
    facts = Facts(ops.Shapes(dict(sizes)), model.graph.opset_imports.get("", 0))
    return Scene(region, nodes, frozenset(members), last, _behind(order, members), frozenset(constants), facts)


def _check_node(node: ir.Node) -> None:
    if SHARD in node.meta:
        raise IndivisibleError(f"`{node.name}` is part of an H-partition already")
    if ops.is_random(node):
        raise IndivisibleError(f"`{node.name}` is random")
    if ops.subgraphs(node):
        raise IndivisibleError(f"`{node.name}` holds a nested graph")


def _behind(order: list[ir.Node], members: set[ir.Node]) -> tuple[ir.Node, ...]:
    """Return the nodes between the region's first and last that need what it makes.

    Raises:
        IndivisibleError: the region needs one of them in turn.
    """
    behind: list[ir.Node] = []
    needed: set[int] = set()
    left = len(members)
    for node in order:
        reads = node_inputs(node)
        depends = any(id(value) in needed for value in reads)
        if node in members:
            if depends:
                raise IndivisibleError(f"`{node.name}` needs what nodes outside the region make of it")
            left -= 1
        elif depends or any(value.producer() in members for value in reads):
            behind.append(node)
            needed.update(id(value) for value in node.outputs)
        if not left:
            return tuple(behind)
    raise AssertionError("every member is in the graph")
