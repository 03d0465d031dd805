"""Whether a request's tensors are those that a plan declares: names, element types and shapes, no bytes."""

import math
from collections.abc import Collection, Mapping, Sequence

from hyps.errors import TensorError, printable
from hyps.formats.plan import NamedTensor


def check_names(expected: Sequence[NamedTensor], given: Collection[str], what: str = "input") -> None:
    """Make sure that exactly the `expected` tensors are `given`.

    Raises:
        TensorError: one is unknown or missing; says which there are.
    """
    names = [tensor.name for tensor in expected]
    listed = ", ".join(f"`{printable(name, 60)}`" for name in names[:8]) + (", ..." if len(names) > 8 else "")
    hint = f"the {what}s are {listed}" if names else f"there are no {what}s"
    unknown = [name for name in given if name not in names]
    if unknown:
        raise TensorError(f"there is no {what} `{printable(unknown[0])}`", hint)
    missing = [name for name in names if name not in given]
    if missing:
        raise TensorError(f"{what} `{printable(missing[0])}` is missing", hint)


def check_outputs(expected: Sequence[NamedTensor], wanted: Sequence[str]) -> None:
    """Make sure that every name in `wanted` is an output.

    Raises:
        TensorError: one is not; says which there are.
    """
    names = {tensor.name for tensor in expected}
    for name in wanted:
        if name not in names:
            check_names(expected, [name], "output")


def check_tensor(expected: NamedTensor, dtype: str, shape: Sequence[int], dims: dict[str, int]) -> None:
    """Make sure that a tensor of `dtype` and `shape` can be the `expected` one.

    `dims` has the sizes that symbolic dimensions got from the request's other tensors, and takes this one's.

    Raises:
        TensorError: another element type, rank or dimension; says what was expected and what came.
    """
    name = printable(expected.name)
    if dtype != expected.dtype:
        raise TensorError(f"`{name}` must be {expected.dtype} and is {printable(dtype)}")
    if expected.shape is None:
        return
    if len(shape) != len(expected.shape) or not all(map(_fits, shape, expected.shape)):
        raise TensorError(f"`{name}` must have the shape {shape_text(expected.shape)} and has {shape_text(shape)}")
    for size, dim in zip(shape, expected.shape, strict=True):
        if isinstance(dim, str) and dims.setdefault(dim, size) != size:
            raise TensorError(f"`{name}` has {size} for dimension `{printable(dim)}`, which is {dims[dim]} elsewhere")


def assumed_shapes(inputs: Sequence[NamedTensor], dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the inputs' shapes at the sizes that the plan was made for; without those that are not all known.

    Args:
        inputs: the model's.
        dims: `Plan.assumed_dims`.
    """
    shapes = {}
    for tensor in inputs:
        sizes = [
            size if isinstance(size, int) else dims.get(size or f"{tensor.name}:{axis}")
            for axis, size in enumerate(tensor.shape or ())
        ]
        if tensor.shape is not None and None not in sizes:
            shapes[tensor.name] = tuple(size for size in sizes if size is not None)
    return shapes


def growth(shape: Sequence[int], assumed: Sequence[int]) -> float:
    """Return how much larger a tensor is along all the axes along which it is larger than assumed; 1 at least.

    What is smaller along others makes up for nothing: scores of attention grow with the square of one axis.
    """
    pairs = zip(shape, assumed, strict=True) if len(shape) == len(assumed) else ()
    return math.prod(max(1.0, size / max(1, known)) for size, known in pairs)


def shape_text(shape: Sequence[int | str | None]) -> str:
    """Return a shape for people: `batch x 3 x 224 x 224`, `scalar`; `?` where a dimension is unknown."""
    return " x ".join("?" if dim is None else printable(str(dim), 40) for dim in shape) or "scalar"


def _fits(size: int, dim: int | str | None) -> bool:
    return size == dim if isinstance(dim, int) else size >= 0
