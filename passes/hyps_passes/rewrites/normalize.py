"""Brings any model into the one form that the cut graph and the emitter know."""

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as steps

from hyps.errors import ModelError


def normalize(model: ir.Model) -> ir.Model:
    """Rewrite the model in place and return it.

    Afterwards functions are inlined, nodes sorted, constants initializers (also those of nested graphs),
    initializers no inputs, every value and node named once in the whole model, and every output made by a node or
    given as an input.

    Raises:
        ModelError: the graph has a cycle.
    """
    try:
        result = Sequential(
            steps.InlinePass(),
            steps.RemoveInitializersFromInputsPass(),
            steps.TopologicalSortPass(),
            steps.NameFixPass(),
            steps.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            steps.LiftSubgraphInitializersToMainGraphPass(),
            steps.RemoveUnusedNodesPass(),
        )(model)
    except ValueError as error:
        raise ModelError(f"the graph cannot be put in order: {error}", code="E_GRAPH") from error
    graph = result.model.graph
    _give_outputs_a_node(graph)
    return result.model


def _give_outputs_a_node(graph: ir.Graph) -> None:
    """An output that is an initializer, or that stands twice, gets an `Identity` of its own."""
    seen: set[int] = set()
    for index, value in enumerate(graph.outputs):
        if id(value) in seen or value.is_initializer():
            name = str(value.name)
            node = ir.Node("", "Identity", [value], name=f"{name}.output{index}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            if value.is_initializer():
                graph.initializers.pop(name)
                value.name = f"{name}.weight"
                graph.initializers.add(value)
                node.outputs[0].name = name
            else:
                node.outputs[0].name = f"{name}.again{index}"
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(id(graph.outputs[index]))
