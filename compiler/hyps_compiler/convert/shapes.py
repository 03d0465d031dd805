"""Shapes that a user fixes, checked against those that a source declares."""

from collections.abc import Mapping

from hyps.errors import UsageError, printable
from hyps.formats.signature import shape_text

Shape = tuple[int | None, ...]
"""None in it: open."""


def fixed_shapes(declared: Mapping[str, Shape | None], wanted: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes to fix by input name, after a check.

    Args:
        declared: the shape of each input; None where its rank is unknown.
        wanted: the shapes to fix.

    Raises:
        UsageError: there is no such input, or the model cannot take that shape.
    """
    unknown = sorted(set(wanted) - set(declared))
    if unknown:
        listed = ", ".join(f"`{printable(name)}`" for name in declared)
        raise UsageError(f"the model has no input `{printable(unknown[0])}`; its inputs are {listed}")
    for name, shape in wanted.items():
        _check_shape(name, shape, declared[name])
    return dict(wanted)


def _check_shape(name: str, shape: Shape, declared: Shape | None) -> None:
    """Raise a UsageError unless `shape` is a case of an input's declared shape."""
    if declared is None:
        return
    pairs = zip(declared, shape, strict=False)
    if len(declared) != len(shape) or any(size not in (None, given) for size, given in pairs):
        raise UsageError(
            f"the input `{printable(name)}` cannot have the shape {shape_text(shape)}: the model takes"
            f" {shape_text(declared)}"
        )
