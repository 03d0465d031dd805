"""Rules of MatMulNBits: a product with a matrix whose columns are quantized in blocks of a few bits."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from hyps_passes.division.reading import integer, operand, required
from hyps_passes.division.rule import Contraction, Facts, GrainError, IndivisibleError, Key, Part, Piece, Span

_WEIGHT, _SCALES, _ZEROS, _ORDER, _BIAS = 1, 2, 3, 4, 5


def divide_nbits(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece for a span of columns (rows of the packed matrix) or of rows."""
    rank = len(facts.shape(node.outputs[0]))
    if axis != rank - 1:
        return Piece(parts={0: Part(axis, span)})
    columns = integer(node, "N")
    found = {_WEIGHT: Part(0, span)}
    for index in (_SCALES, _ZEROS, _BIAS):
        value = operand(node, index)
        if value is None:
            continue
        each = facts.shape(value)[0] // columns
        found[index] = Part(0, Span(span.start * each, span.stop * each))
    return Piece(parts=found, attributes={"N": ir.AttrInt64("N", len(span))})


class _Blocks:
    """The sum over the inner axis, cut between blocks."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Return the length of the inner axis."""
        if operand(node, _ORDER) is not None:
            raise IndivisibleError("MatMulNBits takes its input in another order")
        return integer(node, "K")

    def piece(self, node: ir.Node, span: Span, index: int, facts: Facts) -> Piece:
        """Return the product over some blocks; they begin at whole bytes of the packed zero points."""
        inner, block = self.size(node, facts), integer(node, "block_size")
        zeros = operand(node, _ZEROS)
        is_packed = zeros is not None and zeros.dtype == ir.DataType.UINT8
        grain = block * (8 // math.gcd(8, integer(node, "bits", 4)) if is_packed else 1)
        if span.start % grain or (span.stop % grain and span.stop != inner):
            if grain >= inner or inner % grain:
                raise IndivisibleError(f"MatMulNBits has no {inner // grain} whole groups of blocks")
            raise GrainError(grain)
        blocks = Span(span.start // block, -(-span.stop // block))
        found = {0: Part(len(facts.shape(node.inputs[0])) - 1, span), _WEIGHT: Part(1, blocks)}
        constants: dict[int, ir.TensorProtocol] = {}
        self._divide(node, _SCALES, blocks, facts, found, constants)
        if zeros is not None:
            per_byte = 8 // integer(node, "bits", 4) if is_packed else 1
            packed = Span(blocks.start // per_byte, -(-blocks.stop // per_byte))
            self._divide(node, _ZEROS, packed, facts, found, constants)
        absent = frozenset({_BIAS}) if index and operand(node, _BIAS) is not None else frozenset[int]()
        attributes = {"K": ir.AttrInt64("K", len(span))}
        return Piece(parts=found, attributes=attributes, constants=constants, absent=absent)

    def tail(self, node: ir.Node) -> tuple[tuple[Key, Mapping[str, ir.Attr]], ...]:
        """Return nothing: no activation is fused into it."""
        return ()

    @staticmethod
    def _divide(
        node: ir.Node,
        index: int,
        span: Span,
        facts: Facts,
        found: dict[int, Part],
        constants: dict[int, ir.TensorProtocol],
    ) -> None:
        """Take entries `span` of each column: a span of the second axis, or of a list every so many."""
        value = required(node, index)
        if len(facts.shape(value)) > 1:
            found[index] = Part(1, span)
            return
        tensor = value.const_value
        if tensor is None:
            raise IndivisibleError(f"input {index} of MatMulNBits is computed")
        columns = integer(node, "N")
        constants[index] = ir.LazyTensor(
            _every(tensor, columns, span), dtype=tensor.dtype, shape=ir.Shape([columns * len(span)]), name=tensor.name
        )


def _every(tensor: ir.TensorProtocol, columns: int, span: Span) -> Callable[[], ir.TensorProtocol]:
    def entries() -> ir.TensorProtocol:
        part = tensor.numpy().reshape(columns, -1)[:, span.start : span.stop]
        return ir.Tensor(np.ascontiguousarray(part).reshape(-1), dtype=tensor.dtype)

    return entries


NBITS_CONTRACTION: Contraction = _Blocks()

NBITS: Key = ("com.microsoft", "MatMulNBits")
