"""Facts about operators: which pool, which work element by element, how much they compute."""

import math
from collections.abc import Sequence

import onnx_ir as ir

STANDARD_DOMAINS = ("", "ai.onnx")

POOLING = {
    "AveragePool": "pooling",
    "LpPool": "pooling",
    "MaxPool": "pooling",
    "MaxRoiPool": "pooling",
    "NhwcMaxPool": "pooling",
    "QLinearAveragePool": "pooling",
    "GlobalAveragePool": "global pooling",
    "GlobalLpPool": "global pooling",
    "GlobalMaxPool": "global pooling",
    "QLinearGlobalAveragePool": "global pooling",
}
"""Operator to the kind of split point behind it (thesis, Algorithm 2), whatever its domain."""

STRIDED_CONVOLUTION = "strided convolution"

_CONVOLUTIONS = frozenset(
    {"Conv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv", "DeformConv"},
)

VIEWS = frozenset(
    """
    Cast CastLike Dropout Expand Flatten Identity Pad QuantizeLinear ReorderOutput Reshape Slice Squeeze Transpose
    Unsqueeze
    """.split()
)
"""They rearrange or convert what their first input made and belong with it."""

PREPARATIONS = frozenset({"DequantizeLinear", "ReorderInput"})
"""They get a tensor ready for the one that consumes it and belong with that."""

UNARY_ELEMENTWISE = frozenset(
    """
    Abs Celu Clip Elu Erf Exp FastGelu Gelu HardSigmoid HardSwish LeakyRelu Log Mish Neg QLinearLeakyRelu
    QLinearSigmoid QuickGelu Reciprocal Relu Selu Sigmoid Softplus Softsign Sqrt Swish Tanh ThresholdedRelu
    """.split()
)

BINARY_ELEMENTWISE = frozenset(
    {"Add", "BiasGelu", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "QLinearAdd", "QLinearMul", "Sub", "Sum"}
)

NORMALIZATIONS = frozenset({"BatchNormalization", "InstanceNormalization"})

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_DENSE = frozenset(
    """
    DynamicQuantizeMatMul FusedGemm FusedMatMul Gemm MatMul MatMulInteger MatMulIntegerToFloat MatMulNBits QGemm
    QLinearMatMul TransposeMatMul
    """.split()
)


def is_random(node: ir.Node) -> bool:
    """Return whether two runs of the node may differ, in its own or in a nested graph."""
    if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2):
        return True
    return any(is_random(inner) for graph in subgraphs(node) for inner in graph)


def is_pooling(node: ir.Node) -> bool:
    """Return whether the node pools (thesis, Algorithm 2)."""
    return node.op_type in POOLING


def is_strided_convolution(node: ir.Node) -> bool:
    """Return whether the node is a convolution whose stride makes its output smaller."""
    strides = node.attributes.get("strides")
    return node.op_type in _CONVOLUTIONS and strides is not None and any(stride > 1 for stride in strides.as_ints())


def is_dense(node: ir.Node) -> bool:
    """Return whether the node multiplies with a weight matrix."""
    return node.op_type in _DENSE


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs that the node holds (branches, loop bodies), in the order of its attributes."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


def macs(node: ir.Node, shapes: "Shapes") -> int:
    """Return the node's multiply-accumulates; operators without a matrix product count as none.

    Nested graphs count once, whatever the number of their trips.
    """
    out = shapes(node.outputs[0]) if node.outputs else None
    if out is None:
        return 0
    if node.op_type in _CONVOLUTIONS:
        return _convolution_macs(node, out, shapes)
    if node.op_type == "ConvTranspose":
        source, kernel = shapes(node.inputs[0]), shapes(node.inputs[1])
        return math.prod(source) * math.prod(kernel[1:]) if source and kernel else 0
    if node.op_type in _DENSE:
        return math.prod(out) * _inner_size(node, shapes)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        source = shapes(node.inputs[0])
        weights = [shapes(value) for value in node.inputs[1:3]]
        return math.prod(source[:2]) * sum(math.prod(w) for w in weights if w) if source else 0
    return 0


class Shapes:
    """Looks up concrete shapes: `shapes(value)` is a tuple of ints, or None where a size is unknown."""

    def __init__(self, sizes: dict[str, tuple[int, ...]]) -> None:
        self._sizes = sizes

    def __call__(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the concrete shape of `value`."""
        if value is None or value.name is None:
            return None
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return self._sizes.get(value.name)


def _convolution_macs(node: ir.Node, out: Sequence[int], shapes: Shapes) -> int:
    weights = node.inputs[3] if node.op_type == "QLinearConv" else node.inputs[1]
    kernel = shapes(weights)
    return math.prod(out) * math.prod(kernel[1:]) if kernel else 0


def _inner_size(node: ir.Node, shapes: Shapes) -> int:
    inner = node.attributes.get("K")
    if inner is not None:
        return inner.as_int()
    left = shapes(node.inputs[0])
    if not left:
        return 0
    transposed = node.attributes.get("transA")
    return left[0] if transposed is not None and transposed.as_int() else left[-1]
