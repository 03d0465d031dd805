"""What a recurrent operator computes, read from its node: gates, directions, activations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
_DEFAULT_ACTIVATIONS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
    "DynamicQuantizeLSTM": ("Sigmoid", "Tanh", "Tanh"),
}
_DEFAULT_ALPHA = {"elu": 1.0, "hardsigmoid": 0.2, "leakyrelu": 0.01, "thresholdedrelu": 1.0}
_DEFAULT_BETA = {"hardsigmoid": 0.5}
_TAKES_ALPHA = frozenset({*_DEFAULT_ALPHA, "affine", "scaledtanh"})
_TAKES_BETA = frozenset({*_DEFAULT_BETA, "affine", "scaledtanh"})


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of the gates, with the numbers that the node gives it; None: its default, or it takes none."""

    name: str
    alpha: float | None = None
    beta: float | None = None

    @property
    def key(self) -> str:
        """The name in small letters: onnxruntime does not tell `tanh` from `Tanh`."""
        return self.name.lower()

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers to compute with, by the attribute of the operator of that name."""
        alpha = self.alpha if self.alpha is not None else _DEFAULT_ALPHA.get(self.key)
        beta = self.beta if self.beta is not None else _DEFAULT_BETA.get(self.key)
        return {name: value for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent node's gates, directions and activations."""

    kind: str
    gates: int
    hidden: int
    """Numbers in the state of one direction."""
    direction: str
    """`forward`, `reverse` or `bidirectional`."""
    activations: tuple[Activation, ...]
    """Of the forward direction, then of the reverse one."""

    @property
    def directions(self) -> int:
        """1, or 2 of a bidirectional node."""
        return 2 if self.direction == "bidirectional" else 1

    def of_direction(self, index: int) -> tuple[Activation, ...]:
        """Return the activations of one direction."""
        each = len(self.activations) // self.directions
        return self.activations[index * each : (index + 1) * each]

    def is_reverse(self, index: int) -> bool:
        """Return whether a direction goes from the last time step to the first."""
        return self.direction == "reverse" or index == 1


def is_recurrent(node: ir.Node) -> bool:
    """Return whether the node is one that `read_cell` knows."""
    return node.op_type in _GATES


def read_cell(node: ir.Node, hidden: int) -> Cell:
    """Return what the node computes; `hidden` is the size of its state, which its attribute need not say."""
    kind = node.op_type
    direction = _text(node, "direction") or "forward"
    directions = 2 if direction == "bidirectional" else 1
    given = node.attributes.get("activations")
    names = tuple(given.as_strings()) if given is not None else ()
    names = names or _DEFAULT_ACTIVATIONS[kind] * directions
    alphas, betas = iter(_floats(node, "activation_alpha")), iter(_floats(node, "activation_beta"))
    return Cell(kind, _GATES[kind], hidden, direction, tuple(_activations(names, alphas, betas)))


def activation_attributes(activations: tuple[Activation, ...]) -> Mapping[str, ir.Attr | None]:
    """Return the attributes that give a node these activations; None: without that attribute."""
    alphas = [a.alpha for a in activations if a.alpha is not None]
    betas = [a.beta for a in activations if a.beta is not None]
    return {
        "activations": ir.AttrStrings("activations", [a.name for a in activations]),
        "activation_alpha": ir.AttrFloat32s("activation_alpha", alphas) if alphas else None,
        "activation_beta": ir.AttrFloat32s("activation_beta", betas) if betas else None,
    }


def _activations(names: tuple[str, ...], alphas: Iterator[float], betas: Iterator[float]) -> Iterator[Activation]:
    """Yield each with its numbers: a function takes the next of a list only where it uses such a number."""
    for name in names:
        key = name.lower()
        alpha = next(alphas, None) if key in _TAKES_ALPHA else None
        beta = next(betas, None) if key in _TAKES_BETA else None
        yield Activation(name, alpha, beta)


def _text(node: ir.Node, name: str) -> str:
    attribute = node.attributes.get(name)
    return "" if attribute is None else attribute.as_string()


def _floats(node: ir.Node, name: str) -> tuple[float, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_floats())
