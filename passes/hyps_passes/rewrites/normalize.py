"""Brings any model into the one form that the cut graph and the emitter know."""

import onnx_ir as ir
from onnx_ir.passes import PassBase, PassError, Sequential
from onnx_ir.passes import common as steps

from hyps.errors import ModelError, printable
from hyps_passes import ops

_INITIALIZERS_ARE_NO_INPUTS = 4
"""The first IR version in which an initializer need not be an input as well."""


def normalize(model: ir.Model) -> ir.Model:
    """Rewrite the model in place and return it.

    Afterwards functions are inlined, nodes sorted, constants initializers (also those of nested graphs),
    initializers no inputs, nodes that nobody needs gone, every value and node named once in its scope, and every output
    made by a node or given as an input.

    Raises:
        ModelError: the graph has a cycle, or a constant is damaged.
    """
    _run(model, steps.InlinePass(), steps.RemoveInitializersFromInputsPass(), steps.TopologicalSortPass())
    model.ir_version = max(model.ir_version, _INITIALIZERS_ARE_NO_INPUTS)
    _remove_dead_nodes(model.graph)
    _run(
        model,
        steps.NameFixPass(),
        steps.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        steps.LiftSubgraphInitializersToMainGraphPass(),
        steps.RemoveUnusedNodesPass(),
    )
    _give_outputs_a_node(model.graph)
    return model


def _run(model: ir.Model, *passes: PassBase) -> None:
    try:
        Sequential(*passes)(model)
    except (PassError, ValueError) as error:
        reason = printable(str(error.__cause__ or error), 200)
        raise ModelError(f"the graph cannot be put in order: {reason}", code="E_GRAPH") from error


def _remove_dead_nodes(graph: ir.Graph | ir.Function) -> None:
    """Remove nodes that nobody needs, and with them what their nested graphs capture.

    `RemoveUnusedNodesPass` leaves a value alone that only a graph nested in a removed node used.
    """
    for node in reversed(list(graph)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            for nested in ops.subgraphs(node):
                _remove_dead_nodes(nested)
        else:
            _release_captures(node)
            graph.remove(node, safe=True)


def _release_captures(node: ir.Node) -> None:
    for nested in ops.subgraphs(node):
        for inner in nested:
            _release_captures(inner)
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)


def _give_outputs_a_node(graph: ir.Graph) -> None:
    """An output that is an initializer gets an `Identity` of its own; a value may be an output twice."""
    made: dict[int, ir.Value] = {}
    for index, value in enumerate(graph.outputs):
        if id(value) in made:
            graph.outputs[index] = made[id(value)]
        elif value.is_initializer():
            name = str(value.name)
            node = ir.Node("", "Identity", [value], name=f"{name}.output{index}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.initializers.pop(name)
            value.name = f"{name}.weight"
            graph.initializers.add(value)
            node.outputs[0].name = name
            graph.append(node)
            graph.outputs[index] = made[id(value)] = node.outputs[0]
