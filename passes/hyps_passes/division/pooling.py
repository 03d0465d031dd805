"""Rules of pooling: spatial tiles with their halo, channels, batch."""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from hyps_passes.division.convolution import first_spatial_axis
from hyps_passes.division.reading import integers, required
from hyps_passes.division.rule import Facts, IndivisibleError, Key, Part, Piece, Rule, Span
from hyps_passes.division.windows import Window, window_attributes, windows_of


def _pool(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a pooling that slides a window over its first input."""
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise IndivisibleError("its second output has positions in the whole input")
    kernel = integers(node, "kernel_shape") or ()
    spatial = 1 if node.op_type == "NhwcMaxPool" else first_spatial_axis(node)
    if not spatial <= axis < spatial + len(kernel):
        return Piece({0: Part(axis, span)})
    windows = windows_of(node, facts, required(node, 0), kernel, first_axis=spatial)
    read, window = windows[axis - spatial].over(span)
    windows[axis - spatial] = _short_of_all(window) if node.op_type == "QLinearAveragePool" else window
    return Piece({0: Part(axis, read)}, window_attributes(windows))


def _short_of_all(window: Window) -> Window:
    """Return the window with padding that it does not look at, where it looks at all of the axis.

    onnxruntime makes a global pooling of a quantized one that looks at everything, and rounds otherwise there.
    """
    looks_at_all = window.size == window.kernel > 1 and window.before == window.after == 0
    return replace(window, stride=window.kernel + 1, after=1) if looks_at_all else window


def _global(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a pooling over all of the spatial axes."""
    channels = len(facts.shape(node.inputs[0])) - 1 if first_spatial_axis(node) == 1 else 1
    if axis not in (0, channels):
        raise IndivisibleError(f"{node.op_type} needs all of axis {axis}")
    return Piece({0: Part(axis, span)})


RULES: Mapping[Key, Rule] = {
    ("", "AveragePool"): _pool,
    ("", "GlobalAveragePool"): _global,
    ("", "GlobalLpPool"): _global,
    ("", "GlobalMaxPool"): _global,
    ("", "LpPool"): _pool,
    ("", "MaxPool"): _pool,
    ("com.microsoft", "NhwcMaxPool"): _pool,
    ("com.microsoft", "QLinearAveragePool"): _pool,
    ("com.microsoft", "QLinearGlobalAveragePool"): _global,
}
