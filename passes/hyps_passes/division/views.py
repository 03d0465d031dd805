"""Rules of operators that rearrange: reshapes, transpositions, slices, concatenations."""

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from hyps_passes.division.reading import (
    broadcast_part,
    constant_integers,
    integer,
    integers,
    is_used,
    list_of,
    parts,
    required,
    shape_constant,
)
from hyps_passes.division.rule import Facts, GrainError, IndivisibleError, Key, Part, Piece, Rule, Span

Dim = int | str | None
"""A size, the name of an open one, or an open one without a name."""


def divide_reshape(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Reshape: an axis that comes from one axis of the input, whole or split or merged.

    The new shape is written down again with the length of the span in place of the axis's size.
    """
    source, output = required(node, 0), node.outputs[0]
    part = view_part(node, axis, span, facts)
    target = list(_target(node, source, output, facts))
    for index, size in enumerate(target):
        # an entry 0 is the input's size there, which is no longer the whole one
        if size == 0 and index == part.axis and index != axis:
            target[index] = facts.shape(output)[index]
    target[axis] = len(span)
    return Piece(parts={0: part}, constants={1: shape_constant(target)})


def divide_flat(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Flatten, which needs no new attributes."""
    return Piece(parts={0: view_part(node, axis, span, facts)})


def divide_squeeze(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Squeeze."""
    shape = facts.shape(node.inputs[0])
    axes = list_of(node, "axes", 1, facts)
    gone = {index for index, size in enumerate(shape) if size == 1} if axes is None else {a % len(shape) for a in axes}
    kept = [index for index in range(len(shape)) if index not in gone]
    return Piece(parts={0: Part(kept[axis], span)})


def divide_unsqueeze(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an Unsqueeze."""
    rank = len(facts.shape(node.outputs[0]))
    added = {index % rank for index in list_of(node, "axes", 1, facts) or ()}
    if axis in added:
        raise IndivisibleError(f"axis {axis} of Unsqueeze has one position")
    return Piece(parts={0: Part(axis - sum(index < axis for index in added), span)})


def divide_transpose(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Transpose."""
    rank = len(facts.shape(node.outputs[0]))
    order = integers(node, "perm") or tuple(reversed(range(rank)))
    return Piece(parts={0: Part(order[axis], span)})


def divide_expand(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an Expand: fewer copies, or a part of the input where nothing is copied."""
    rank = len(facts.shape(node.outputs[0]))
    target = list(_expanded(node, facts))
    own = axis - (rank - len(target))
    if own >= 0:
        target[own] = len(span)
    found = parts({0: broadcast_part(node.inputs[0], rank, axis, span, facts)})
    return Piece(parts=found, constants={1: shape_constant(target)})


def view_part(node: ir.Node, axis: int, span: Span, facts: Facts) -> Part:
    """Return the span of the first input that holds the same elements, in the same order, as a span of the output.

    Raises:
        IndivisibleError: no span of one axis does.
        GrainError: one does for spans of whole multiples.
    """
    source, output = required(node, 0), node.outputs[0]
    old, new = facts.shape(source), facts.shape(output)
    before = math.prod(new[:axis])
    # axes of one position in front share their outer size with the axis itself: the last one counts
    found = [index for index in range(len(old)) if math.prod(old[:index]) == before]
    if not found or 0 in old or not _holds_always(_dims(source, old), found[-1], _dims(output, new), axis):
        raise IndivisibleError(f"axis {axis} of {node.op_type} is mixed with others")
    own = found[-1]
    inner, whole = math.prod(new[axis + 1 :]), math.prod(old[own + 1 :])
    grain = whole // math.gcd(inner, whole)
    if grain >= new[axis] > 1:
        raise IndivisibleError(f"axis {axis} of {node.op_type} is mixed with others")
    if span.start % grain or span.stop % grain:
        raise GrainError(grain)
    return Part(own, Span(span.start * inner // whole, span.stop * inner // whole))


def _dims(value: ir.Value, shape: Sequence[int]) -> tuple[Dim, ...]:
    """Return what is known of the sizes in every request; of values without a stated shape, what they are now."""
    if value.shape is None:
        return tuple(shape)
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape.dims)


def _holds_always(old: Sequence[Dim], own: int, new: Sequence[Dim], axis: int) -> bool:
    """Return whether axis `axis` comes from axis `own` whatever the open sizes are.

    The outer sizes of both are equal now. They are in every request
    1. if all sizes from both axes on are fixed, because the rest of equally many elements is equal too;
    2. if the outer sizes are fixed, and both axes are of one fixed size or the same open ones follow them.
    """
    inner_open = [sorted(str(dim) for dim in dims if not isinstance(dim, int)) for dims in (old[own:], new[axis:])]
    if inner_open == [[], []]:
        return True
    outer_fixed = all(isinstance(dim, int) for dim in (*old[:own], *new[:axis]))
    alike = isinstance(old[own], int) and old[own] == new[axis]
    return outer_fixed and (alike or (inner_open[0] == inner_open[1] and "None" not in inner_open[0]))


def _target(node: ir.Node, source: ir.Value, output: ir.Value, facts: Facts) -> tuple[int, ...]:
    """Return the shape that a Reshape is given, or one that means the same where it is computed."""
    constant = facts.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if constant is not None:
        target = tuple(int(size) for size in constant.reshape(-1))
        if 0 in target and integer(node, "allowzero"):
            raise IndivisibleError("Reshape to an empty tensor")
        return target
    return _described(node, _dims(source, facts.shape(source)), _dims(output, facts.shape(output)), copied=0, free=-1)


def _expanded(node: ir.Node, facts: Facts) -> tuple[int, ...]:
    constant = facts.constant(node.inputs[1])
    if constant is not None:
        return tuple(int(size) for size in constant.reshape(-1))
    source, output = required(node, 0), node.outputs[0]
    new = _dims(output, facts.shape(output))
    old = _dims(source, facts.shape(source))
    return _described(node, (*[None] * (len(new) - len(old)), *old), new, copied=1, free=None)


def _described(
    node: ir.Node, old: Sequence[Dim], new: Sequence[Dim], *, copied: int, free: int | None
) -> tuple[int, ...]:
    """Return a shape in numbers for one that is computed.

    Args:
        node: whose shape it is.
        old: sizes of the input.
        new: sizes of the output.
        copied: the entry for an open size that the input has at the same place.
        free: the entry for another open size, of which there may be one; None: there may be none.

    Raises:
        IndivisibleError: more sizes are open than numbers can tell.
    """
    target: list[int] = []
    for index, dim in enumerate(new):
        if isinstance(dim, int):
            target.append(dim)
        elif dim is not None and index < len(old) and old[index] == dim:
            target.append(copied)
        elif free is not None and free not in target:
            target.append(free)
        else:
            raise IndivisibleError(f"the shape of {node.op_type} is computed")
    return tuple(target)


def divide_concat(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Concat: the same span of all, or of those that the span reaches into."""
    along = integer(node, "axis") % len(facts.shape(node.outputs[0]))
    if axis != along:
        return Piece(parts={index: Part(axis, span) for index in range(len(node.inputs))})
    start, found, absent = 0, {}, set()
    for index, value in enumerate(node.inputs):
        size = facts.shape(value)[axis]
        inside = Span(max(span.start - start, 0), min(span.stop - start, size))
        if inside.start >= inside.stop:
            absent.add(index)
        else:
            found[index] = Part(axis, inside)
        start += size
    return Piece(parts=found, absent=frozenset(absent))


def divide_split(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Split: along another axis, or of its only output that is used."""
    along = integer(node, "axis") % len(facts.shape(node.inputs[0]))
    if axis != along:
        return Piece(parts={0: Part(axis, span)})
    used = [index for index, output in enumerate(node.outputs) if is_used(output)]
    if len(used) > 1:
        raise IndivisibleError(f"Split makes {len(used)} tensors along axis {axis}, of which each needs its own part")
    given = list_of(node, "split", 1, facts)
    if given is None:
        raise IndivisibleError(f"Split makes equal parts along axis {axis}")
    start = sum(given[: used[0]])
    part = Part(axis, Span(start + span.start, start + span.stop))
    sizes = [len(span) if index == used[0] else 0 for index in range(len(given))]
    if "split" in node.attributes:
        return Piece(parts={0: part}, attributes={"split": ir.AttrInt64s("split", sizes)})
    return Piece(parts={0: part}, constants={1: shape_constant(sizes)})


def divide_slice(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Slice: along another axis, or every so many of a part of its own."""
    source = required(node, 0)
    shape = facts.shape(source)
    axes = list_of(node, "axes", 3, facts)
    if axes is None:
        axes = tuple(range(len(list_of(node, "starts", 1, facts) or ())))
    axes = tuple(index % len(shape) for index in axes)
    if axis not in axes:
        return Piece(parts={0: Part(axis, span)})
    own = axes.index(axis)
    starts, ends = (list(list_of(node, name, index, facts) or ()) for name, index in (("starts", 1), ("ends", 2)))
    steps = list_of(node, "steps", 4, facts)
    step = 1 if steps is None else steps[own]
    if source.shape is not None and not facts.is_fixed(source, axis):
        raise IndivisibleError(f"Slice takes positions of axis {axis}, whose size is open")
    first, _, _ = slice(starts[own], ends[own], step).indices(shape[axis])
    edges = (first + span.start * step, first + (span.stop - 1) * step)
    part = Part(axis, Span(min(edges), max(edges) + 1))
    starts[own], ends[own] = (0, _FAR) if step > 0 else (-1, -_FAR)
    if "starts" in node.attributes:
        given = {"starts": ir.AttrInt64s("starts", starts), "ends": ir.AttrInt64s("ends", ends)}
        return Piece(parts={0: part}, attributes=given)
    return Piece(parts={0: part}, constants={1: _like(node, 1, starts), 2: _like(node, 2, ends)})


def _like(node: ir.Node, index: int, numbers: Sequence[int]) -> ir.TensorProtocol:
    """Return a list of the type that the input has: all bounds of a Slice have one type."""
    dtype = required(node, index).dtype or ir.DataType.INT64
    return ir.tensor(list(numbers), dtype=dtype)


def divide_tile(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of a Tile: a part of what is not repeated, or fewer repetitions."""
    size = facts.shape(node.inputs[0])[axis]
    repeats = constant_integers(node, 1, facts)
    if repeats is None:
        raise IndivisibleError("Tile repeats a number of times that is not given")
    if repeats[axis] == 1:
        return Piece(parts={0: Part(axis, span)})
    if size > 1 and (span.start % size or span.stop % size):
        raise GrainError(size)
    counts = [len(span) // size if index == axis else count for index, count in enumerate(repeats)]
    return Piece(constants={1: shape_constant(counts)})


def divide_same(node: ir.Node, axis: int, span: Span, facts: Facts) -> Piece:
    """Return the piece of an operator whose outputs are laid out as its first input, such as Identity."""
    training = facts.constant(node.inputs[2]) if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if node.op_type == "Dropout" and len(node.inputs) > 2 and (training is None or training.any()):
        raise IndivisibleError("Dropout that drops at random")
    return Piece(parts={0: Part(axis, span)})


_FAR = 2**31 - 1
"""Past the end of any axis, in 32 bits as well."""

RULES: Mapping[Key, Rule] = {
    ("", "Concat"): divide_concat,
    ("", "Dropout"): divide_same,
    ("", "Expand"): divide_expand,
    ("", "Flatten"): divide_flat,
    ("", "Identity"): divide_same,
    ("", "Reshape"): divide_reshape,
    ("", "Slice"): divide_slice,
    ("", "Split"): divide_split,
    ("", "Squeeze"): divide_squeeze,
    ("", "Tile"): divide_tile,
    ("", "Transpose"): divide_transpose,
    ("", "Unsqueeze"): divide_unsqueeze,
}
