"""Initial states of recurrent layers that are zero, which is what they are without being given."""

import numpy as np
import onnx_ir as ir

from hyps_compiler.convert.clean_constants import constant

_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
"""Which inputs of a layer are initial states."""

_MOVERS = {"Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Tile", "Slice"}
"""Operators whose result holds nothing but elements of their first input."""


def drop_zero_states(graph: ir.Graph) -> bool:
    """Take zero initial states away from recurrent layers; return whether there were any."""
    changed = False
    for node in graph:
        for index in _STATES.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            if index < len(node.inputs) and node.inputs[index] is not None and _is_zero(node.inputs[index]):
                node.replace_input_with(index, None)
                changed = True
    return changed


def _is_zero(value: ir.Value | None) -> bool:
    """Return whether all elements of a value are zero, whatever its shape."""
    known = constant(value)
    if known is not None:
        return not np.any(known)
    node = value.producer() if value is not None else None
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _MOVERS:
        return _is_zero(node.inputs[0])
    if node.op_type == "Concat":
        return all(_is_zero(part) for part in node.inputs)
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    return False
