"""Transposes behind one another made into one, or into none."""

from collections.abc import Sequence

import onnx_ir as ir


def merge_transposes(graph: ir.Graph) -> bool:
    """Join each Transpose with the one before it; return whether there was any.

    (1) Two that undo each other go, unless the result is an output of the model. (2) Of others the second takes the
    first one's input. The first stays where somebody else reads it. (3) One that changes nothing goes likewise.
    """
    changed = False
    for node in list(graph):
        if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
            continue
        order = permutation(node)
        source = node.inputs[0]
        before = source.producer() if source is not None else None
        if source is None or order is None:
            continue
        first = permutation(before) if before is not None and before.op_type == "Transpose" else None
        origin = before.inputs[0] if before is not None and first is not None else None
        if first is not None and origin is not None:
            order = [first[axis] for axis in order]
        else:
            origin = source
        output = node.outputs[0]
        if order == sorted(order) and not output.is_graph_output():
            output.replace_all_uses_with(origin)  # (1), (3)
            graph.remove(node, safe=True)
            changed = True
        elif origin is not source:
            node.replace_input_with(0, origin)  # (2)
            node.attributes["perm"] = ir.AttrInt64s("perm", order)
            changed = True
    return changed


def permutation(node: ir.Node) -> Sequence[int] | None:
    """Return a Transpose's order of dimensions; None where the node does not say and the rank is unknown."""
    if "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    return list(reversed(range(len(source.shape))))
