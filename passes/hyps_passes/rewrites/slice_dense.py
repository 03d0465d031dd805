"""Slices a dense layer along its output rows into H-partitions that an ONNX `Concat` merges (thesis, section 3.2.4)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from hyps.formats.plan import Shard
from hyps_passes import ops
from hyps_passes.division.constants import slice_tensor
from hyps_passes.graph import Layer, can_cross, is_parameter
from hyps_passes.layers import SHARD

_GEMM_WITHOUT_BIAS = 11
_NEGATIVE_AXES = 11
"""Opsets from which Gemm needs no bias and Concat takes negative axes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a rewrite that might apply does not."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Operands:
    """Which inputs of an operator are divided along the output's last axis, and along which axis of their own."""

    weight: int
    axis: int
    companions: tuple[int, ...]
    """Bias, scales and zero points: divided where they have one entry for each output row."""
    companion_axis: int = -1


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A dense layer that can be sliced: its product, and the element-wise nodes that go with each slice."""

    layer: str
    product: ir.Node
    tail: tuple[ir.Node, ...]
    rows: int
    row_parameters: int
    """Parameters of one output row."""
    row_bytes: int
    """Weight bytes of one output row."""
    row_constant_bytes: int = 0
    """What the nodes between weight and product make for one output row."""


def find_dense(layer: Layer, *, fewest_rows: int = 2) -> DenseLayer | Refusal:
    """Return how the layer can be sliced, or why it cannot.

    It applies to `Gemm` and `MatMul` in every weight layout (onnxruntime's fused forms included) and to the quantized
    products `MatMulInteger`, `QLinearMatMul`, `QGemm`, `DynamicQuantizeMatMul`, `MatMulIntegerToFloat` and
    `MatMulNBits`, where

    1. the weight is constant: an initializer, or one behind `DequantizeLinear`, `Cast`, `Identity` or `Transpose`;
    2. it is a matrix (a stack of matrices is divided the same way along its last axis);
    3. it has at least `fewest_rows` output rows, none of which share the scale of a block;
    4. bias, scales and zero points of the product are constant too;
    5. all values inside the layer may travel between partitions: no sequences, no bfloat16.

    Bias, activation and other element-wise nodes behind it go with the slices as far as they work on each row.
    """
    if any(value.uses() and not can_cross(value) for node in layer.nodes for value in node.outputs):  # 5.
        return Refusal(layer.name, "values inside it cannot travel between partitions")
    products = [node for node in layer.nodes if ops.is_dense(node)]
    found: DenseLayer | None = None
    reason = f"{layer.kind} has no matrix product"
    for product in products:
        dense = _dense(layer, product, fewest_rows)
        if isinstance(dense, str):
            reason = dense
        elif found is None or dense.row_bytes * dense.rows > found.row_bytes * found.rows:
            found = dense
    return found or Refusal(layer.name, reason)


@dataclass(frozen=True, slots=True)
class SliceDense:
    """Rewrites one dense layer into `count` H-partitions of nearly equal rows and a `Concat`."""

    layer: str
    count: int

    name = "slice-dense"

    def __str__(self) -> str:
        return f"{self.name}{{layer={self.layer},count={self.count}}}"

    def apply(self, model: ir.Model, dense: DenseLayer, sizes: dict[str, tuple[int, ...]]) -> None:
        """Rewrite the model in place and add the sizes of the new tensors.

        Raises:
            ValueError: `count` is not between 2 and the layer's rows.
        """
        if not 2 <= self.count <= dense.rows:
            raise ValueError(f"{self.count} slices of {dense.rows} rows")
        graph, last = model.graph, (dense.product, *dense.tail)[-1]
        whole = last.outputs[0]
        pieces = []
        for index, (start, stop) in enumerate(row_ranges(dense.rows, self.count)):
            shard = Shard(layer=self.layer, axis=-1, index=index, count=self.count, range=(start, stop))
            nodes = _Slicer(model, dense, shard, sizes).nodes()
            graph.insert_before(last, nodes)
            pieces.append(nodes[-1].outputs[0])
        merge = _merge(model, pieces, whole, sizes)
        graph.insert_after(last, merge)
        whole.replace_all_uses_with(merge.outputs[0], replace_graph_outputs=True)
        merge.outputs[0].name, whole.name = whole.name, None
        for node in reversed((dense.product, *dense.tail)):
            graph.remove(node, safe=True)


def row_ranges(rows: int, count: int) -> list[tuple[int, int]]:
    """Return `count` ranges that tile `rows` rows in order, their lengths differing by one at most."""
    edges = [rows * index // count for index in range(count + 1)]
    return list(pairwise(edges))


def _operands(node: ir.Node) -> _Operands | None:
    transposed = -2 if _flag(node, "transB") else -1
    table = {
        "Gemm": _Operands(1, transposed, (2,)),
        "FusedGemm": _Operands(1, transposed, (2,)),
        "MatMul": _Operands(1, -1, ()),
        "FusedMatMul": _Operands(1, transposed, ()),
        "TransposeMatMul": _Operands(1, transposed, ()),
        "MatMulInteger": _Operands(1, -1, (3,)),
        "MatMulIntegerToFloat": _Operands(1, -1, (3, 5, 6)),
        "DynamicQuantizeMatMul": _Operands(1, -1, (2, 3, 4)),
        "QLinearMatMul": _Operands(3, -1, (4, 5)),
        "QGemm": _Operands(3, transposed, (4, 5, 6)),
        "MatMulNBits": _Operands(1, 0, (2, 3, 5), companion_axis=0),
    }
    return table.get(node.op_type)


def _dense(layer: Layer, product: ir.Node, fewest_rows: int) -> DenseLayer | str:
    operands = _operands(product)
    assert operands is not None
    weight = product.inputs[operands.weight]
    shape = None if weight is None else constant_shape(weight)
    if weight is None or shape is None or not _is_constant(weight):  # case 1
        return f"the weight of {product.op_type} is not constant"
    if len(shape) < 2:  # case 2
        return f"the weight of {product.op_type} is no matrix"
    rows = shape[operands.axis]
    if rows < fewest_rows:  # case 3
        return f"{product.op_type} has a single output row"
    if _rows_share_scales(weight, operands.axis):
        return f"the weight of {product.op_type} is quantized in blocks of several output rows"
    for index in operands.companions:  # case 4
        companion = _input(product, index)
        if companion is not None and not _is_constant(companion):
            return f"input {index} of {product.op_type} is not constant"
    if product.op_type == "FusedMatMul" and _flag(product, "transBatchB"):
        return "FusedMatMul with transBatchB"
    if product.op_type == "MatMulNBits" and len(product.inputs) > 4 and product.inputs[4] is not None:
        return "MatMulNBits with reordered columns"
    tail = _tail(layer, product, rows)
    divided = _divided(product, tail, rows)
    weights = list({id(w): w for value, axis in divided for w in _initializers(value, axis)}.values())
    made = {id(v): v for value, axis in divided for v in _made_of_constants(value, axis)}
    return DenseLayer(
        layer=layer.name,
        product=product,
        tail=tail,
        rows=rows,
        row_parameters=sum(_total(w) // rows for w in weights if is_parameter(w)),
        row_bytes=sum(-(-_nbytes(w) // rows) for w in weights),
        row_constant_bytes=sum(-(-_constant_nbytes(v) // rows) for v in made.values()),
    )


def _divided(product: ir.Node, tail: tuple[ir.Node, ...], rows: int) -> list[tuple[ir.Value, int]]:
    """Return the constants of which each slice takes its part, and the axis along which they are divided."""
    operands = _operands(product)
    assert operands is not None
    values = [(_input(product, operands.weight), operands.axis)]
    values += [
        (value, operands.companion_axis)
        for value in (_input(product, index) for index in operands.companions)
        if value is not None and _has_rows(product, value, rows)
    ]
    values += [(v, -1) for node in tail for v in node.inputs if v is not None and _is_divided(v, rows)]
    return [(value, axis) for value, axis in values if value is not None]


def _made_of_constants(value: ir.Value, axis: int) -> Iterator[ir.Value]:
    """Yield what is made on the way from the initializers to the constant `value`, as far as it is divided too."""
    node = value.producer()
    if value.is_initializer() or node is None:
        return
    yield value
    for source, along in _sources(node, axis):
        if source is not None and along is not None:
            yield from _made_of_constants(source, along)


def _initializers(value: ir.Value, axis: int) -> Iterator[ir.Value]:
    """Yield the initializers that must be divided so that the constant `value` is divided along `axis`."""
    node = value.producer()
    if value.is_initializer() or node is None:
        yield value
        return
    for source, along in _sources(node, axis):
        if source is not None and along is not None:
            yield from _initializers(source, along)


def _sources(node: ir.Node, axis: int) -> list[tuple[ir.Value | None, int | None]]:
    """Return the inputs of a node that makes a constant, and the axis along which each is divided; None: it is not."""
    output = constant_shape(node.outputs[0])
    assert output is not None
    rank = len(output)
    axis %= rank
    if node.op_type == "Transpose":
        return [(node.inputs[0], _permutation(node, rank)[axis])]
    if node.op_type != "DequantizeLinear":
        return [(node.inputs[0], axis), *((value, None) for value in node.inputs[1:])]
    return [(node.inputs[0], axis), *((value, _scale_axis(node, value, axis, rank)) for value in node.inputs[1:])]


def _scale_axis(node: ir.Node, scale: ir.Value | None, axis: int, rank: int) -> int | None:
    """Return the axis along which a scale or zero point is divided with a weight that is divided along `axis`."""
    shape = None if scale is None else constant_shape(scale)
    if not shape or _count(shape) == 1:
        return None
    if len(shape) > 1:
        return axis
    along = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return 0 if along % rank == axis else None


def _rows_share_scales(value: ir.Value, axis: int) -> bool:
    """Return whether a block of a blocked quantization reaches over several output rows."""
    node = value.producer()
    if value.is_initializer() or node is None:
        return False
    source, along = _sources(node, axis)[0]
    shape, scale = constant_shape(value), _input(node, 1)
    if node.op_type == "DequantizeLinear" and shape is not None and scale is not None:
        scales = constant_shape(scale)
        if scales is not None and len(scales) > 1 and scales[axis] != shape[axis]:
            return True
    return source is not None and along is not None and _rows_share_scales(source, along)


def _tail(layer: Layer, product: ir.Node, rows: int) -> tuple[ir.Node, ...]:
    """Return the nodes behind the product that work on each output row by itself."""
    members, value = set(layer.nodes), product.outputs[0]
    tail: list[ir.Node] = []
    followers = ops.UNARY_ELEMENTWISE | ops.BINARY_ELEMENTWISE | {"Cast", "QuantizeLinear", "DequantizeLinear"}
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].node not in members:
            return tuple(tail)
        node = uses[0].node
        others = [other for other in node.inputs if other is not None and other is not value]
        alone = [other for other in others if _is_constant(other)] == others and list(node.inputs).count(value) == 1
        if node.op_type not in followers or not alone or not all(_fits_rows(node, other, rows) for other in others):
            return tuple(tail)
        tail.append(node)
        value = node.outputs[0]


def _fits_rows(node: ir.Node, constant: ir.Value, rows: int) -> bool:
    shape = constant_shape(constant)
    if shape is None:
        return False
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _count(shape) == 1
    return _count(shape) == 1 or (shape[-1] in (1, rows) and all(size == 1 for size in shape[:-1]) and len(shape) <= 2)


class _Slicer:
    """Makes the nodes of one shard."""

    def __init__(self, model: ir.Model, dense: DenseLayer, shard: Shard, sizes: dict[str, tuple[int, ...]]) -> None:
        self.graph = model.graph
        self.opset = model.graph.opset_imports.get("", 0)
        self.dense = dense
        self.shard = shard
        self.sizes = sizes
        self.constants: list[ir.Node] = []
        self.parts: dict[tuple[int, int], ir.Value] = {}
        """Parts made so far, by the identity of the constant and the axis along which it is divided."""
        self.suffix = f"{shard.index}of{shard.count}"

    def nodes(self) -> list[ir.Node]:
        """Return the shard's nodes in running order; the last one's first output is the shard's."""
        product = self.dense.product
        made = [self._product(product)]
        value = product.outputs[0]
        for node in self.dense.tail:
            inputs = [
                made[-1].outputs[0]
                if v is value
                else v
                if v is None or not _is_divided(v, self.dense.rows)
                else self._part(v, -1)
                for v in node.inputs
            ]
            made.append(self._copy(node, inputs))
            value = node.outputs[0]
        return [*self.constants, *made]

    def _product(self, node: ir.Node) -> ir.Node:
        operands = _operands(node)
        assert operands is not None
        inputs = list(node.inputs)
        weight = inputs[operands.weight]
        assert weight is not None
        for index in operands.companions:
            companion = _input(node, index)
            if companion is not None and _has_rows(node, companion, self.dense.rows):
                inputs[index] = self._part(companion, operands.companion_axis)
        as_gemm = self._gemm_attributes(node, weight)
        if as_gemm is not None:
            inputs[operands.weight] = self._transposed_part(weight)
            return self._copy(node, inputs, op_type=as_gemm[0], attributes=as_gemm[1])
        inputs[operands.weight] = self._part(weight, operands.axis)
        attributes = dict(node.attributes)
        if node.op_type == "MatMulNBits":
            attributes["N"] = ir.AttrInt64("N", self._length)
        return self._copy(node, inputs, attributes=attributes)

    def _gemm_attributes(self, node: ir.Node, weight: ir.Value) -> tuple[str, dict[str, ir.Attr]] | None:
        """Return operator and attributes that take [out, in] weights, where the layer has [in, out] ones.

        Without prepacking such a product is up to twice as fast, measured.
        """
        left = node.inputs[0]
        plain = weight.is_initializer() and len(constant_shape(weight) or ()) == 2 and not _flag(node, "transB")
        if not plain or weight.dtype != ir.DataType.FLOAT:
            return None
        transposed = ir.AttrInt64("transB", 1)
        if node.op_type in ("Gemm", "FusedGemm"):
            return node.op_type, {**node.attributes, "transB": transposed}
        flat = left is not None and left.shape is not None and len(left.shape) == 2
        if node.op_type == "MatMul" and flat and self.opset >= _GEMM_WITHOUT_BIAS:
            return "Gemm", {"transB": transposed}
        return None

    @property
    def _length(self) -> int:
        return self.shard.range[1] - self.shard.range[0]

    def _part(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the shard's part of a constant; nodes between the initializer and the product are copied."""
        shape = constant_shape(value)
        assert shape is not None
        axis %= len(shape)
        key = (id(value), axis)
        if key not in self.parts:
            node = value.producer()
            self.parts[key] = (
                self._initializer(value, axis) if value.is_initializer() or node is None else self._made(node, axis)
            )
        return self.parts[key]

    def _made(self, node: ir.Node, axis: int) -> ir.Value:
        inputs = [
            value if value is None or along is None else self._part(value, along)
            for value, along in _sources(node, axis)
        ]
        copy = self._copy(node, inputs, axis=axis, of=f".{self.dense.product.outputs[0].name}")
        self.constants.append(copy)
        return copy.outputs[0]

    def _initializer(self, value: ir.Value, axis: int) -> ir.Value:
        assert value.const_value is not None
        blocks = value.const_value.shape.numpy()[axis] // self.dense.rows
        start, stop = (edge * blocks for edge in self.shard.range)
        return self._register(value, slice_tensor(value.const_value, axis, start, stop))

    def _transposed_part(self, value: ir.Value) -> ir.Value:
        start, stop = self.shard.range
        tensor = value.const_value
        assert tensor is not None

        def rows() -> ir.TensorProtocol:
            return ir.Tensor(np.ascontiguousarray(tensor.numpy()[:, start:stop].T))

        shape = ir.Shape([stop - start, tensor.shape.numpy()[0]])
        return self._register(value, ir.LazyTensor(rows, dtype=tensor.dtype, shape=shape, name=value.name))

    def _register(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        name = f"{value.name}.{self.suffix}"
        while name in self.graph.initializers:  # another layer with the same weight, divided in its own way
            name += "~"
        tensor.name = name
        part = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]  # a tensor's shape is a Shape
        self.graph.register_initializer(part)
        return part

    def _copy(
        self,
        node: ir.Node,
        inputs: Iterable[ir.Value | None],
        *,
        op_type: str = "",
        attributes: dict[str, ir.Attr] | None = None,
        axis: int = -1,
        of: str = "",
    ) -> ir.Node:
        """Return the node for the shard; `of` goes into its name where other layers may have a copy too."""
        copy = ir.Node(
            node.domain if not op_type or op_type == node.op_type else "",
            op_type or node.op_type,
            list(inputs),
            (attributes if attributes is not None else dict(node.attributes)).values(),
            num_outputs=len(node.outputs),
            name=f"{node.name or node.outputs[0].name}{of}.{self.suffix}",
        )
        copy.meta[SHARD] = self.shard
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = f"{old.name}{of}.{self.suffix}"
            new.type = old.type
            if old.shape is not None and len(old.shape):
                dims = list(old.shape.dims)
                dims[axis] = self._length
                new.shape = ir.Shape(dims)
            if self.sizes.get(str(old.name)):
                sizes = list(self.sizes[str(old.name)])
                sizes[axis] = self._length
                self.sizes[new.name] = tuple(sizes)
        return copy


def constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of a constant: of an initializer, or of what is made of one without changing its size."""
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    node = value.producer()
    if node is None or node.op_type not in _CONSTANT_STEPS or node.inputs[0] is None:
        return None
    shape = constant_shape(node.inputs[0])
    if shape is None or node.op_type != "Transpose":
        return shape
    return tuple(shape[axis] for axis in _permutation(node, len(shape)))


_CONSTANT_STEPS = ("Cast", "DequantizeLinear", "Identity", "Transpose")


def _is_constant(value: ir.Value) -> bool:
    if value.is_initializer():
        return True
    node = value.producer()
    known = node is not None and node.op_type in _CONSTANT_STEPS
    return known and all(v is None or _is_constant(v) for v in node.inputs)  # type: ignore[union-attr]  # known says so


def _is_divided(value: ir.Value, rows: int) -> bool:
    return _is_constant(value) and _last_size(value) == rows


def _has_rows(node: ir.Node, value: ir.Value, rows: int) -> bool:
    """Return whether a companion of the product has an entry for each output row, rather than one for all."""
    shape = constant_shape(value)
    if shape is None or not _is_constant(value):
        return False
    if node.op_type == "MatMulNBits":
        return bool(shape) and shape[0] % rows == 0
    return bool(shape) and shape[-1] == rows


def _merge(model: ir.Model, pieces: list[ir.Value], whole: ir.Value, sizes: dict[str, tuple[int, ...]]) -> ir.Node:
    rank = len(whole.shape) if whole.shape is not None else len(sizes.get(str(whole.name), ()))
    counts_back = model.graph.opset_imports.get("", 0) >= _NEGATIVE_AXES or not rank
    axis = ir.AttrInt64("axis", -1 if counts_back else rank - 1)
    merge = ir.Node("", "Concat", pieces, [axis], name=f"{whole.name}.merge")
    merge.outputs[0].type, merge.outputs[0].shape = whole.type, whole.shape
    return merge


def _permutation(node: ir.Node, rank: int) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and attribute.as_int() != 0


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _last_size(value: ir.Value) -> int | None:
    shape = constant_shape(value)
    return shape[-1] if shape else None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _constant_nbytes(value: ir.Value) -> int:
    shape = constant_shape(value)
    return 0 if shape is None or value.dtype is None else -(-_count(shape) * value.dtype.bitwidth // 8)


def _total(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.size


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes
