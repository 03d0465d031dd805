"""Bytes that onnxruntime's CPU kernels take beside inputs and outputs, and which outputs lie where an input lay.

Found by counting what single nodes of random shapes allocate, with onnxruntime 1.31 and weights that are not packed.
The reasons are those of its matrix library: a convolution lays its patches out as a matrix, quantized products are
summed in 32 bits before they are narrowed, half-precision operators without a kernel are computed in single precision.
"""

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from hyps_passes.ops import Shapes

THREADS = 4
"""Threads that the figures are for: some kernels have a block of their own for each."""

PARTITION_NBYTES = 128 * 1024
"""What running a partition takes beside weights, activations and kernels: its session, and pages not filled.

Measured: 40 to 110 kB in 400 partitions of ten networks."""

_CONV_BLOCK_NBYTES = 64 * 1024
_PANEL_NBYTES = 24 * 1024
"""What one thread of an integer product packs at a time."""
_CACHE_NBYTES = 2 * 2**20
"""The second-level cache by which attention chooses its blocks; a smaller one makes them smaller."""
_CUBIC_NBYTES = 48
_GRID_NBYTES = 56
_POINTER_NBYTES = 8

ALIASES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""The output is the input under another shape: no bytes move, unless it is an output of the partition."""

_IN_PLACE = frozenset(
    """
    Celu Clip Elu HardSigmoid LeakyRelu Relu Selu Sigmoid Softplus Softsign Tanh ThresholdedRelu Trilu
    """.split()
)
"""Element by element, and registered as working in place; `Add` and its like are not, nor are most others."""

_HALF_KERNELS = frozenset(
    """
    Cast Clip Concat ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND Identity If
    LayerNormalization Loop Max Min Reshape Scan ScatterElements ScatterND Shape SimplifiedLayerNormalization Size Slice
    SpaceToDepth Split Squeeze Tile Transpose Unsqueeze
    """.split()
)
"""What has a kernel for half precision on CPUs. All others are given their inputs in single precision."""

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_TEXT_NBYTES = 32
"""Of a text's handle; what its characters take beyond that nobody knows beforehand."""


def workspace_bytes(node: ir.Node, shapes: Shapes, threads: int = THREADS) -> int:
    """Return the most bytes that running the node takes beside its inputs and outputs; 0 where a size is unknown.

    Never less than measured, but for a few kilobytes that every run takes; weights are taken as they are, not packed.
    """
    reckon = _WORKSPACES.get(node.op_type)
    own = 0 if reckon is None else reckon(_Node(node, shapes, threads))
    return _in_single_precision(node, shapes, own) if _is_half_without_kernel(node) else own


def overwritten_input(node: ir.Node, shapes: Shapes) -> int | None:
    """Return the index of the input whose memory the node's first output takes over where nothing else needs it."""
    if not node.inputs or node.inputs[0] is None or _is_half_without_kernel(node):
        return None
    if node.op_type in ALIASES or node.op_type in _IN_PLACE:
        return 0
    source, made = node.inputs[0], node.outputs[0]
    if node.op_type in ("Softmax", "LogSoftmax"):
        return None if _Node(node, shapes, 1).is_softmax_transposed else 0
    return 0 if node.op_type == "Cast" and source.dtype == made.dtype else None


class _Node:
    """A node with the numbers that the formulas are about; an unknown shape counts as nothing."""

    def __init__(self, node: ir.Node, shapes: Shapes, threads: int) -> None:
        self.raw, self._shapes, self.threads = node, shapes, threads

    def shape(self, index: int) -> tuple[int, ...]:
        value = self.raw.inputs[index] if index < len(self.raw.inputs) else None
        return self._shapes(value) or ()

    @property
    def out(self) -> tuple[int, ...]:
        return self._shapes(self.raw.outputs[0]) or ()

    def elements(self, index: int) -> int:
        shape = self.shape(index)
        return math.prod(shape) if shape else 0

    def out_elements(self, index: int = 0) -> int:
        shape = self._shapes(self.raw.outputs[index]) if index < len(self.raw.outputs) else None
        return math.prod(shape) if shape else 0

    def has(self, index: int) -> bool:
        return index < len(self.raw.inputs) and self.raw.inputs[index] is not None

    @property
    def width(self) -> int:
        """Bytes of one element of the output, in single precision where it would be in half."""
        dtype = self.raw.outputs[0].dtype
        if dtype == ir.DataType.STRING:
            return _TEXT_NBYTES
        return 4 if dtype is None or dtype in _HALF else max(1, dtype.bitwidth // 8)

    def integer(self, name: str, default: int) -> int:
        attribute = self.raw.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def integers(self, name: str) -> tuple[int, ...]:
        attribute = self.raw.attributes.get(name)
        return () if attribute is None else tuple(attribute.as_ints())

    def text(self, name: str, default: str) -> str:
        attribute = self.raw.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    @property
    def is_softmax_transposed(self) -> bool:
        """Whether its axis has to be brought to the end first: since opset 13 it is one axis, not all from it on."""
        version = self.raw.version or _opset(self.raw)
        rank = len(self.shape(0))
        return version >= 13 and self.integer("axis", -1) not in (-1, rank - 1)


def _opset(node: ir.Node) -> int:
    graph = node.graph
    model_opset = graph.opset_imports.get("") if isinstance(graph, ir.Graph) else None
    return model_opset or 13


def _is_half_without_kernel(node: ir.Node) -> bool:
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    return bool(types & _HALF) and node.op_type not in _HALF_KERNELS


def _in_single_precision(node: ir.Node, shapes: Shapes, own: int) -> int:
    """Return the bytes of copies in single precision: of all inputs, and of the output until it is narrowed."""
    inputs = {id(value): value for value in node.inputs if value is not None and value.dtype in _HALF}.values()
    copied = 4 * sum(math.prod(shapes(value) or (0,)) for value in inputs)
    made = sum(math.prod(shapes(value) or (0,)) for value in node.outputs if value.dtype in _HALF)
    if node.op_type in _IN_PLACE:
        return max(copied, 4 * made)
    if node.op_type in ("Softmax", "LogSoftmax"):
        return copied + 2 * made
    return max(copied + own + 4 * made - 2 * made, 4 * made)  # the narrow output comes when the inputs' copies are gone


# Convolutions: `kernel` is the weight's shape, output channels first.


def _patches(node: _Node, source: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the positions of the output, the elements of one patch, and the output channels of one group."""
    groups = node.integer("group", 1)
    return math.prod(node.out[2:]), math.prod(kernel[1:]), kernel[0] // groups


def _is_pointwise(node: _Node, kernel: tuple[int, ...]) -> bool:
    plain = all(step == 1 for step in node.integers("strides")) and not any(node.integers("pads"))
    return plain and math.prod(kernel[2:]) == 1


def _convolution(node: _Node) -> int:
    kernel = node.shape(1)
    if not node.out or not kernel or _is_pointwise(node, kernel):
        return 0
    positions, patch, channels = _patches(node, node.shape(0), kernel)
    if channels > positions:  # all patches at once, then one product
        return 4 * positions * patch
    return _CONV_BLOCK_NBYTES * node.threads


def _transposed_convolution(node: _Node) -> int:
    source, kernel = node.shape(0), node.shape(1)
    return 4 * math.prod(kernel[1:]) * math.prod(source[2:]) if source and kernel else 0


def _integer_convolution(node: _Node) -> int:
    kernel = node.shape(1)
    if not node.out or not kernel or _is_pointwise(node, kernel):
        return 0
    positions, patch, _ = _patches(node, node.shape(0), kernel)
    return positions * patch + _PANEL_NBYTES * node.threads


def _quantized_convolution(node: _Node) -> int:
    """Channels last throughout: input and output turned around, sums in 32 bits, weights in their own order."""
    source, kernel, out = node.shape(0), node.shape(3), node.out
    if not source or not kernel or not out:
        return 0
    positions, patch, _ = _patches(node, source, kernel)
    made = math.prod(out[1:])
    total = math.prod(source[1:]) + made + 4 * made + math.prod(kernel)
    if kernel[1] == 1 and node.integer("group", 1) > 1:
        return total + _POINTER_NBYTES * positions * math.prod(kernel[2:])
    return total if _is_pointwise(node, kernel) else total + positions * patch


def _deformable_convolution(node: _Node) -> int:
    kernel = node.shape(1)
    return 8 * math.prod(node.out[2:]) * math.prod(kernel[1:]) if node.out and kernel else 0


# Products.


def _sums_in_32_bits(node: _Node) -> int:
    return 4 * node.out_elements()


def _quantized_gemm(node: _Node) -> int:
    return _sums_in_32_bits(node) + (node.elements(3) if node.integer("transB", 0) else 0)


def _dynamically_quantized(node: _Node) -> int:
    return node.elements(0) + _PANEL_NBYTES * node.threads


def _unpacked_blocks(node: _Node) -> int:
    return 4 * node.integer("K", 0) * node.integer("N", 0)


def _product(node: _Node) -> int:
    """Return what Eigen packs for integers; floating point goes in blocks that fit the stack."""
    kind = node.raw.inputs[0].dtype if node.raw.inputs[0] is not None else None
    is_integer = kind is not None and not kind.is_floating_point()
    return node.width * (node.elements(0) + node.elements(1)) if is_integer else 0


def _einsum(node: _Node) -> int:
    operands = [node.elements(index) for index in range(len(node.raw.inputs))]
    return 4 * (sum(operands) + max(operands, default=0) + 2 * node.out_elements())


# Recurrences: the products with the inputs of all steps are made first.


def _recurrent(gates: int) -> Callable[[_Node], int]:
    def reckon(node: _Node) -> int:
        source = node.shape(0)
        if len(source) != 3:
            return 0
        steps, batch, width = source
        hidden, directions = node.integer("hidden_size", 0), 1 + (node.text("direction", "") == "bidirectional")
        all_gates = 4 * steps * batch * gates * hidden
        turned = 4 * steps * batch * (width + hidden) if node.text("direction", "forward") != "forward" else 0
        states = 4 * batch * hidden * (4 + gates)
        return directions * (all_gates + states) + turned

    return reckon


def _plain_recurrent(node: _Node) -> int:
    source, hidden = node.shape(0), node.integer("hidden_size", 0)
    return 4 * hidden * source[1] * (source[0] + 2) if len(source) == 3 else 0


# Attention.


def _attention_packed(node: _Node) -> int:
    """Return the bytes of queries, keys and values, of the scores, and of the answer before heads are joined."""
    made = node.out_elements()
    if len(node.out) != 3:
        return 0
    batch, length, _ = node.out
    scores = batch * node.integer("num_heads", 1) * length * length
    return 4 * (3 * made + scores + made)


def _attention_separate(node: _Node) -> int:
    query, key = node.shape(0), node.shape(1)
    if len(query) != 3:
        return 0
    turned = node.elements(0) + (node.elements(1) + node.elements(2) if len(key) == 3 else 0)
    if any(node.has(index) for index in (4, 5, 6, 7)):  # masked, or with a past: all scores at once
        length = key[1] if len(key) == 3 else query[1]
        scores = query[0] * node.integer("num_heads", 1) * query[1] * length
        return 4 * (turned + node.out_elements() + scores)
    biased = 4 * node.out_elements() if node.has(3) else 0
    heads = node.integer("num_heads", 1)
    return 4 * turned + max(biased, _score_blocks(node, key[-2], query[2] // heads))


def _attention_grouped(node: _Node) -> int:
    query = node.shape(0)
    if len(query) != 3:
        return 0
    past = node.shape(3) if node.has(3) else ()
    length = max(query[1], past[2] if len(past) == 4 else 0)
    turned = node.elements(0) + node.elements(1) + node.elements(2)
    return 4 * turned + _score_blocks(node, length, node.out[2] // node.integer("num_heads", 1))


def _score_blocks(node: _Node, length: int, head: int) -> int:
    """Return the blocks of scores that each thread has of `length` keys, sums and a part of the answer with them."""
    keys = min(length, max(1, _CACHE_NBYTES // (16 * 2 * head)))
    queries = min(keys, 2 * head)
    return 4 * queries * (2 + keys + head) * node.threads


def _attention_standard(node: _Node) -> int:
    query, key = node.shape(0), node.shape(1)
    if len(query) not in (3, 4) or len(key) != len(query):
        return 0
    heads = query[1] if len(query) == 4 else node.integer("q_num_heads", 1)
    past = node.shape(4)
    length = key[-2] + (past[-2] if len(past) == 4 else 0)
    scores = query[0] * heads * query[-2] * length
    is_masked = node.has(3) or node.integer("is_causal", 0)
    return 4 * (scores + (query[-2] * length * max(1, query[0] if node.has(3) else 1) if is_masked else 0))


# The rest.


def _softmax(node: _Node) -> int:
    return 2 * node.width * node.elements(0) if node.is_softmax_transposed else 0


def _local_response(node: _Node) -> int:
    padded = math.prod(node.out[2:]) * (node.integer("size", 1) - 1) if len(node.out) > 2 else 0
    return 4 * (2 * node.out_elements() + padded)


def _resize(node: _Node) -> int:
    source, out = node.shape(0), node.out
    if len(source) != len(out) or len(out) < 2:
        return 0
    mode = node.text("mode", "nearest")
    if node.integer("antialias", 0) and mode != "nearest":
        return node.width * math.prod(out) // out[-2] * source[-2] + 8 * 1024
    return _CUBIC_NBYTES * source[-2] * out[-1] if mode == "cubic" else 0


def _sampled(node: _Node) -> int:
    return _GRID_NBYTES * math.prod(node.shape(1)[:-1]) if node.shape(1) else 0


def _times_output(factor: int) -> Callable[[_Node], int]:
    return lambda node: factor * node.width * node.out_elements()


def _sum_of_many(node: _Node) -> int:
    return node.width * node.out_elements() if len(node.raw.inputs) > 2 else 0


def _dequantized_input(node: _Node) -> int:
    return 4 * node.elements(0)


def _sorted(node: _Node) -> int:
    return 32 * node.elements(0)


def _narrowed(node: _Node) -> int:
    """Return what a copy of gains and offsets in single precision takes."""
    return 4 * (node.elements(1) + node.elements(2))


_WORKSPACES: Mapping[str, Callable[[_Node], int]] = {
    "Attention": lambda node: (
        _attention_packed(node) if node.raw.domain == "com.microsoft" else _attention_standard(node)
    ),
    "BiasGelu": _times_output(1),
    "Conv": lambda node: 0 if node.raw.domain == "com.microsoft.nchwc" else _convolution(node),
    "ConvInteger": _integer_convolution,
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _deformable_convolution,
    "DynamicQuantizeLSTM": lambda node: _recurrent(4)(node) + node.elements(0) + 16 * 1024,
    "DynamicQuantizeMatMul": _dynamically_quantized,
    "Einsum": _einsum,
    "FusedConv": _convolution,
    "GRU": _recurrent(3),
    "GridSample": _sampled,
    "GroupNormalization": _times_output(2),
    "GroupQueryAttention": _attention_grouped,
    "HardSwish": _times_output(1),
    "LRN": _local_response,
    "LSTM": _recurrent(4),
    "LayerNormalization": _narrowed,
    "LogSoftmax": _softmax,
    "MatMul": _product,
    "MatMulNBits": _unpacked_blocks,
    "Max": _sum_of_many,
    "Mean": _sum_of_many,
    "MeanVarianceNormalization": _times_output(3),
    "Min": _sum_of_many,
    "Mish": _times_output(1),
    "MultiHeadAttention": _attention_separate,
    "NonZero": _times_output(1),
    "QGemm": _quantized_gemm,
    "QLinearAveragePool": _dequantized_input,
    "QLinearConv": _quantized_convolution,
    "QLinearMatMul": _sums_in_32_bits,
    "RNN": _plain_recurrent,
    "Resize": _resize,
    "Softmax": _softmax,
    "Sum": _sum_of_many,
    "Unique": _sorted,
    "Where": _times_output(2),
}
"""By operator; what is not in here takes nothing worth counting."""
