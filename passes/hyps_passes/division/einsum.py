"""Rules of Einsum: along every letter of the output, and the sum over a letter that is not in it."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from hyps_passes.division.reading import required, text
from hyps_passes.division.rule import Contraction, Facts, IndivisibleError, Key, Part, Piece, Rule, Span


def divide_einsum(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece for a span of one letter of the output: that span of each operand that has the letter."""
    operands, output = _terms(node)
    return Piece(parts=_along(node, operands, output[axis], span, facts))


class _Sum:
    """The sum over the letter that is longest of those that the output does not have."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Return the length of the sum."""
        return self._letter(node, facts)[1]

    def piece(self, node: ir.Node, span: Span, index: int, facts: Facts) -> Piece:
        """Return the products of a span of the letter."""
        operands, _ = _terms(node)
        return Piece(parts=_along(node, operands, self._letter(node, facts)[0], span, facts))

    def tail(self, node: ir.Node) -> tuple[tuple[Key, Mapping[str, ir.Attr]], ...]:
        """Return nothing: no activation is fused into it."""
        return ()

    @staticmethod
    def _letter(node: ir.Node, facts: Facts) -> tuple[str, int]:
        operands, output = _terms(node)
        sizes: dict[str, int] = {}
        for index, term in enumerate(operands):
            for letter, size in zip(term, facts.shape(required(node, index)), strict=True):
                sizes[letter] = max(size, sizes.get(letter, 1))
        summed = {letter: size for letter, size in sizes.items() if letter not in output}
        if not summed:
            raise IndivisibleError("Einsum sums nothing")
        return max(summed.items(), key=lambda item: (item[1], item[0]))


def _terms(node: ir.Node) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output.

    Raises:
        IndivisibleError: axes are not named by letters, or named twice in one term.
    """
    equation = text(node, "equation").replace(" ", "")
    if "." in equation:
        raise IndivisibleError("Einsum has axes without letters")
    left, arrow, output = equation.partition("->")
    operands = left.split(",")
    if not arrow:
        output = "".join(letter for letter in sorted(set(left) - {","}) if left.count(letter) == 1)
    if any(len(set(term)) < len(term) for term in (*operands, output)):
        raise IndivisibleError("Einsum takes a diagonal")
    return operands, output


def _along(node: ir.Node, operands: Sequence[str], letter: str, span: Span, facts: Facts) -> dict[int, Part]:
    found = {}
    for index, term in enumerate(operands):
        axis, value = term.find(letter), required(node, index)
        if axis < 0:
            continue
        if facts.shape(value)[axis] == 1:  # onnxruntime lets it broadcast, where the model's maker meant it or not
            raise IndivisibleError(f"input {index} of Einsum has one position along `{letter}`")
        found[index] = Part(axis, span)
    return found


_KEY: Key = ("", "Einsum")

RULES: Mapping[Key, Rule] = {_KEY: divide_einsum}

CONTRACTIONS: Mapping[Key, Contraction] = {_KEY: _Sum()}
