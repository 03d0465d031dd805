"""Rules of convolutions: spatial tiles with their halo, output channels, groups; and their sum over input channels."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from hyps_passes.division.reading import integer, operand, required, text
from hyps_passes.division.rule import Contraction, Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span
from hyps_passes.division.windows import window_attributes, windows_of


@dataclass(frozen=True, slots=True)
class Convolution:
    """The rule of one convolution operator, by the places of its inputs."""

    data: int = 0
    weight: int = 1
    companions: tuple[int, ...] = ()
    """Bias, scales and zero points, each with one entry for all output channels or one for each."""
    residual: int | None = None
    """What is added to the sum, of the output's shape."""

    def __call__(self, node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
        """Return the piece for a span of the batch, of the output channels or of a spatial axis."""
        spatial = first_spatial_axis(node)
        kernel = facts.shape(required(node, self.weight))[2:]
        if axis == 0:
            return Piece(self._parts(node, axis, span, span))
        if not spatial <= axis < spatial + len(kernel):
            return self._channels(node, axis, span, facts)
        windows = windows_of(node, facts, required(node, self.data), kernel, first_axis=spatial)
        read, windows[axis - spatial] = windows[axis - spatial].over_any(span)
        return Piece(self._parts(node, axis, read, span), window_attributes(windows))

    def _parts(self, node: ir.Node, axis: int, read: Span, made: Span) -> dict[int, Part]:
        return {self.data: Part(axis, read), **self._added(node, axis, made)}

    def _added(self, node: ir.Node, axis: int, made: Span) -> dict[int, Part]:
        if self.residual is None or operand(node, self.residual) is None:
            return {}
        return {self.residual: Part(axis, made)}

    def _channels(self, node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
        channels = facts.shape(node.outputs[0])[axis]
        parts = {self.weight: Part(0, span), **channel_parts(node, self.companions, channels, span, facts)}
        parts.update(self._added(node, axis, span))
        groups = integer(node, "group", 1)
        if groups == 1:
            return Piece(parts)
        whole = groups_of(span, channels // groups)
        width = facts.shape(required(node, self.weight))[1]
        parts[self.data] = Part(axis, Span(whole.start * width, whole.stop * width))
        return Piece(parts, {"group": ir.AttrInt64("group", len(whole))})


@dataclass(frozen=True, slots=True)
class InputChannels:
    """The sum of a convolution over its input channels; the bias and what else is added go with the first piece."""

    data: int = 0
    weight: int = 1
    bias: int | None = None
    residual: int | None = None
    weight_axis: int = 1
    """That of the weight's input channels."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Return the input channels.

        Raises:
            IndivisibleError: they are divided into groups, or the fused activation needs more than the sum.
        """
        groups = integer(node, "group", 1)
        if groups > 1:
            raise IndivisibleError(f"{node.op_type} sums over the channels of each of its {groups} groups apart")
        self.tail(node)
        return facts.shape(required(node, self.weight))[self.weight_axis]

    def piece(self, node: ir.Node, span: Span, index: int, facts: Facts) -> Piece:
        """Return the convolution of some input channels, without activation."""
        parts = {self.data: Part(1, span), self.weight: Part(self.weight_axis, span)}
        added = frozenset(i for i in (self.bias, self.residual) if i is not None)
        plain: dict[str, ir.Attr | None] = {"activation": None, "activation_params": None}
        return Piece(parts, plain, absent=frozenset() if index == 0 else added)

    def tail(self, node: ir.Node) -> tuple[tuple[Key, Mapping[str, ir.Attr]], ...]:
        """Return the activation that was fused into the convolution.

        Raises:
            IndivisibleError: it takes more than one input.
        """
        activation = text(node, "activation")
        if not activation:
            return ()
        names = _ACTIVATION_PARAMETERS.get(activation)
        if names is None:
            raise IndivisibleError(f"its fused {activation} takes more than the sum")
        values = node.attributes.get("activation_params")
        numbers = () if values is None else values.as_floats()
        attributes = {name: ir.AttrFloat32(name, number) for name, number in zip(names, numbers, strict=False)}
        return ((("", activation), attributes),)


class Rounded:
    """The sum of a quantized convolution, which is rounded to 8 bits before pieces of it could be added."""

    def size(self, node: ir.Node, facts: Facts) -> int:
        """Refuse.

        Raises:
            IndivisibleError: always.
        """
        raise IndivisibleError(f"{node.op_type} rounds its sum to 8 bits, so that parts of it do not add up")

    def piece(self, node: ir.Node, span: Span, index: int, facts: Facts) -> Piece:
        """Refuse.

        Raises:
            IndivisibleError: always.
        """
        raise IndivisibleError(f"{node.op_type} rounds its sum to 8 bits, so that parts of it do not add up")

    def tail(self, node: ir.Node) -> tuple[tuple[Key, Mapping[str, ir.Attr]], ...]:
        """Return nothing: no sum comes before it."""
        return ()


_ACTIVATION_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Fused activations that are operators of one input, and what their numbers are."""


def first_spatial_axis(node: ir.Node) -> int:
    """Return 2, or 1 where the channels are the last axis."""
    return 1 if integer(node, "channels_last", 0) else 2


def channel_parts(node: ir.Node, indices: tuple[int, ...], channels: int, span: Span, facts: Facts) -> dict[int, Part]:
    """Return the parts of inputs that have one entry per channel; one entry for all is read whole."""
    shapes = {index: facts.shape(operand(node, index)) for index in indices if operand(node, index) is not None}
    return {index: Part(0, span) for index, shape in shapes.items() if shape == (channels,)}


def groups_of(span: Span, width: int) -> Span:
    """Return the groups of `width` channels whose channels the span has: one, in part or whole, or several whole ones.

    Raises:
        GrainError: the span has a part of a group and more.
    """
    groups = Span(span.start // width, -(-span.stop // width))
    if len(groups) > 1 and (span.start % width or span.stop % width):
        raise GrainError(width)
    return groups


_QUANTIZED = Convolution(weight=3, companions=(4, 5, 8))

RULES: Mapping[Key, Rule] = {
    ("", "Conv"): Convolution(companions=(2,)),
    ("", "ConvInteger"): Convolution(companions=(3,)),
    ("", "QLinearConv"): _QUANTIZED,
    ("com.microsoft", "FusedConv"): Convolution(companions=(2,), residual=3),
    ("com.microsoft", "QLinearConv"): _QUANTIZED,
}

CONTRACTIONS: Mapping[Key, Contraction] = {
    ("", "Conv"): InputChannels(bias=2),
    ("", "ConvInteger"): InputChannels(),
    ("", "QLinearConv"): Rounded(),
    ("com.microsoft", "FusedConv"): InputChannels(bias=2, residual=3),
    ("com.microsoft", "QLinearConv"): Rounded(),
}
