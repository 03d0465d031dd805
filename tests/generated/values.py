"""What a generated model is made of: tensors with types and open dimensions, choices, and requests for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

Array = NDArray[Any]
Choose = Callable[[int], int]
"""`choose(n)` is a number from 0 to n - 1: drawn by hypothesis, or by a seeded generator."""

Dim = int | str
Shape = tuple[Dim, ...]
BATCH = "N"

FLOAT = TensorProto.FLOAT
_WORDS = ("a", "B", "", "Wörter", "zwei Worte", "12", "-0.5", "the")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph that is being grown; a word in its shape is an open dimension."""

    name: str
    shape: Shape
    of: int = FLOAT
    """Its element type, one of TensorProto's numbers."""

    @property
    def info(self) -> ValueInfoProto:
        """Its declaration."""
        return helper.make_tensor_value_info(self.name, self.of, list(self.shape))

    @property
    def is_empty(self) -> bool:
        """Whether it has no element, whatever the request."""
        return 0 in self.shape

    @property
    def has_rows(self) -> bool:
        """Whether it has rows in every request that has: not as many as some values say."""
        return bool(self.shape) and (isinstance(self.shape[0], int) or self.shape[0] == BATCH)

    def size(self, axis: int = 1) -> int:
        """Return a fixed dimension."""
        found = self.shape[axis]
        assert isinstance(found, int)
        return found

    def has_fixed(self, axis: int) -> bool:
        """Return whether the dimension is the same in every request."""
        return isinstance(self.shape[axis], int)


@dataclass(frozen=True)
class Input:
    """An input of the model and how a request fills it."""

    name: str
    info: ValueInfoProto
    make: Callable[[int, np.random.Generator], Any]
    """Returns a value for a batch of that size."""
    is_open: bool = False
    """Whether requests may differ in its shape."""


def chooser(seed: int) -> Choose:
    """Return choices made by a seeded generator."""
    rng = np.random.default_rng(seed)
    return lambda count: int(rng.integers(count))


def sizes(shape: Shape, batch: int) -> tuple[int, ...]:
    """Return the sizes in a request; every open dimension differs where the batch does."""
    return tuple(dim if isinstance(dim, int) else batch if dim == BATCH else batch + 1 for dim in shape)


def tensor_input(tensor: Tensor, below: int = 5) -> Input:
    """Return an input that requests fill with seeded random elements: normal floats, integers from 0 to `below`."""

    def make(batch: int, rng: np.random.Generator) -> Array:
        return random_elements(tensor.of, sizes(tensor.shape, batch), rng, below)

    return Input(tensor.name, tensor.info, make, any(isinstance(dim, str) for dim in tensor.shape))


def random_elements(of: int, shape: tuple[int, ...], rng: np.random.Generator, below: int = 5) -> Array:
    """Return seeded random elements of the type."""
    if of == TensorProto.STRING:
        return np.array(_WORDS, dtype=object)[rng.integers(0, len(_WORDS), shape)]
    kind = helper.tensor_dtype_to_np_dtype(of)
    if kind.kind in "iub":
        return rng.integers(0, 2 if kind.kind == "b" else below, shape).astype(kind)
    return rng.standard_normal(shape).astype(kind)


def floats(name: str, *shape: Dim | None) -> ValueInfoProto:
    """Return a declaration of a float tensor."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
