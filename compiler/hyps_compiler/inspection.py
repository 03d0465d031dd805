"""What `hypsc inspect` and the end of `hypsc compile` tell about a model or a plan, as values and as tables."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hyps.errors import printable
from hyps.formats.plan import Partition, Plan, SplitPoint
from hyps.formats.quantities import format_count, format_nbytes
from hyps.terminal import table
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.interop.reading import AnnotationRow, annotation_rows, show_annotations
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import measure
from hyps_compiler.output import scratch_folder
from hyps_compiler.partition import Request, divide
from hyps_compiler.quantizing_report import show_quantization
from hyps_compiler.stage import stage_model
from hyps_passes.graph import MODEL, CutGraph
from hyps_passes.searches import split_points


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a model, and the border behind it."""

    name: str
    kind: str
    nodes: int
    parameters: int
    weight_bytes: int
    macs: int | None
    output_shape: tuple[int | str | None, ...] | None
    """Of its largest output, open dimensions by name."""
    cut_tensors: tuple[str, ...]
    """What crosses the border behind it."""
    cut_bytes: int | None
    """At the assumed sizes; null where a size is unknown."""
    ratio: float | None
    """`cut_bytes` over the bytes of the model's input."""
    marks: tuple[str, ...]
    """`pooling`, `global pooling`, `strided convolution`, `natural`, `compressive`."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model as `hypsc inspect` shows it."""

    name: str
    parameters: int
    weight_bytes: int
    macs: int | None
    input_bytes: int | None
    assumed_dims: dict[str, int]
    layers: tuple[LayerRow, ...]
    split_points: tuple[SplitPoint, ...]
    note: str
    """Why sizes are unknown; empty when all are known."""
    annotations: tuple[AnnotationRow, ...] = ()
    """How the model itself says that it is to be divided."""


def inspect_model(
    model: str,
    request: Request,
    shapes: dict[str, tuple[int, ...]],
    *,
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES,
    converting: Converting = UNTRUSTED,
) -> ModelView:
    """Return the layers of a model, its own nodes grouped by what onnxruntime would fuse, and its split points.

    A tensor that the model computes may take `max_tensor_nbytes`.

    Raises:
        ModelError: the model cannot be read or onnxruntime refuses it.
        InfeasibleError: a layer exceeds the limits of `request` and cannot be sliced.
    """
    with scratch_folder() as folder:
        stage = folder / "stage"
        stage.mkdir()
        source = open_model(model, folder, max_tensor_nbytes=max_tensor_nbytes, converting=converting)
        staged = stage_model(source, stage, "none", request.tensors)
        measured = measure(staged.model, staged.path, shapes=shapes, feeds=None, max_tensor_nbytes=max_tensor_nbytes)
        division = divide(staged.model, measured.sizes, staged.fused, request)
        graph = division.graph
        inputs = [value.nbytes for value in graph.made_by.get(MODEL, ())]
        macs = [layer.macs for layer in graph.layers]
        weights = graph.window(0, len(graph.layers) - 1) if graph.layers else None
        return ModelView(
            name=source.name,
            parameters=weights.parameters if weights else 0,
            weight_bytes=weights.weight_bytes if weights else 0,
            macs=None if None in macs else sum(count or 0 for count in macs),
            input_bytes=None if None in inputs else sum(nbytes or 0 for nbytes in inputs),
            assumed_dims=measured.assumed_dims,
            layers=tuple(layer_rows(graph)),
            split_points=division.points,
            note=measured.problem,
            annotations=annotation_rows(source.path),
        )


def layer_rows(graph: CutGraph) -> list[LayerRow]:
    """Return the layers of a graph in running order, and what is known of the border behind each."""
    inputs = [value.nbytes for value in graph.made_by.get(MODEL, ())]
    total = 0 if None in inputs else sum(nbytes or 0 for nbytes in inputs)
    pooling = split_points.pooling_borders(graph)
    narrow = {point.border: point for point in split_points.bottlenecks(graph)}
    rows = []
    for layer in graph.layers:
        crossing = graph.borders[layer.index]
        sizes = [value.nbytes for value in crossing]
        nbytes = None if None in sizes else sum(size or 0 for size in sizes)
        marks = [pooling[layer.index]] if layer.index in pooling else []
        if layer.index in narrow:
            marks.append("compressive" if narrow[layer.index].is_compressive else "natural")
        made = graph.made_by.get(layer.index, ())
        largest = max(made, key=lambda value: value.nbytes or 0, default=None)
        rows.append(
            LayerRow(
                name=layer.name,
                kind=layer.kind,
                nodes=len(layer.nodes),
                parameters=layer.parameters,
                weight_bytes=layer.weight_bytes,
                macs=layer.macs,
                output_shape=_shape(largest.value.shape) if largest else None,
                cut_tensors=tuple(value.name for value in crossing),
                cut_bytes=nbytes,
                ratio=nbytes / total if total and nbytes is not None and crossing else None,
                marks=tuple(marks),
            )
        )
    return rows


def show_model(view: ModelView) -> str:
    """Return the view as text for people, 80 columns wide."""
    rows = [
        (
            row.name,
            _short_kind(row.kind),
            format_count(row.parameters),
            _dims(row.output_shape, view.assumed_dims),
            "?" if row.cut_bytes is None else format_nbytes(row.cut_bytes),
            "" if row.ratio is None else f"{row.ratio:.3g}",
            ",".join(_SHORT[mark] for mark in row.marks),
        )
        for row in view.layers
    ]
    headers = ("layer", "type", "params", "output", "cut", "ratio", "point")
    head = (
        f"{printable(view.name)}: {len(view.layers)} layers, {format_count(view.parameters)} parameters,"
        f" {format_nbytes(view.weight_bytes)} of weights"
    )
    if view.macs is not None:
        head += f", {format_count(view.macs)} MACs"
    lines = [head]
    if view.assumed_dims:
        lines.append(f"sizes assume {_assumed(view.assumed_dims)}")
    if view.note:
        lines.append(f"sizes are unknown: {view.note}")
    lines += show_annotations(view.annotations)
    layers = _fitted(rows, headers, "llrlrrl", 0)
    legend = [_LEGEND] if any(row.marks for row in view.layers) else []
    return "\n".join([*lines, "", layers, *legend, "", *show_points(view.split_points)])


def show_plan(plan: Plan) -> str:
    """Return all the plan's partitions and split points as text for people, 80 columns wide."""
    rows = [_partition_row(plan, part) for part in plan.partitions]
    return "\n".join([*_plan_head(plan), "", _partition_table(rows), "", *show_points(plan.split_points)])


def summarize_plan(plan: Plan, folder: str) -> str:
    """Return what matters of a plan that may have hundreds of partitions; `folder` is where the rest can be seen."""
    parts = plan.partitions
    shown = _most_telling(parts) if len(parts) > _MOST_PARTITIONS else range(len(parts))
    rows: list[tuple[str, ...]] = []
    previous = -1
    for index in shown:
        if index > previous + 1:
            rows.append(("…", "", "", f"{index - previous - 1} more", "", "", "", ""))
        rows.append(_partition_row(plan, parts[index]))
        previous = index
    points = plan.split_points
    listed = points if len(points) <= _MOST_POINTS else [p for p in points if p.chosen or p.kind == "mandatory"]
    if len(listed) > _MOST_POINTS:
        listed = [point for point in points if point.kind == "mandatory"]
    lines = [*_plan_head(plan), "", _partition_table(rows), "", *show_points(points, listed)]
    if len(rows) < len(parts) or len(listed) < len(points):
        lines.append(f"`hypsc inspect {folder}` shows all")
    return "\n".join([*lines, "", describe_plan(plan)])


def describe_plan(plan: Plan) -> str:
    """Return one sentence on how the model is divided."""
    if len(plan.partitions) == 1:
        limited = plan.memory_bytes is not None or plan.max_params is not None
        return f"the model {'fits' if limited else 'is left'} whole, in one partition"
    shards = [part.shard for part in plan.partitions if part.shard is not None]
    vertical = _plural(len(plan.partitions) - len(shards), "V-partition")
    if not shards:
        return vertical
    sliced = sorted({printable(shard.layer, 40) for shard in shards})
    more = f" and {len(sliced) - 3} more" if len(sliced) > 3 else ""
    return f"{vertical} and {_plural(len(shards), 'H-partition')}, of {', '.join(sliced[:3])}{more}"


def show_points(points: Sequence[SplitPoint], listed: Sequence[SplitPoint] | None = None) -> list[str]:
    """Return lines that count the split points and list those of `listed`, all when None."""
    if not points:
        return ["no split points"]
    rows = [
        (
            "*" if point.chosen else "",
            point.kind,
            point.after,
            "?" if point.nbytes is None else format_nbytes(point.nbytes),
            point.reason,
        )
        for point in (points if listed is None else listed)
    ]
    counts = {kind: sum(point.kind == kind for point in points) for kind in ("mandatory", "optional", "chosen")}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    cut = sum(point.chosen for point in points)
    mark = " (*)" if rows and cut else ""
    head = f"split points: {told}; cut at {cut or 'none'} of them{mark}"
    return [head, _fitted(rows, ("", "kind", "after layer", "bytes", "reason"), "lllrl", 2)] if rows else [head]


_MOST_PARTITIONS, _MOST_POINTS, _ENDS = 30, 15, 5
"""Rows in the summary, and how many are shown of each end and of the largest where there are more."""

_SPAN = " .. "
_KIND_CHARS = 13
_SHORT = {
    "pooling": "pool",
    "global pooling": "global",
    "strided convolution": "stride",
    "natural": "nat",
    "compressive": "comp",
}
_SUMS = "H+: a part of a sum, as large as the output; the others are parts of the output"
_LEGEND = "point: pooling, global pooling, strided convolution; natural, compressive ratio"


def _shape(shape: object) -> tuple[int | str | None, ...] | None:
    dims = getattr(shape, "dims", None)
    return None if dims is None else tuple(d if isinstance(d, int) else d.value for d in dims)


def _dims(shape: tuple[int | str | None, ...] | None, assumed: dict[str, int]) -> str:
    """Return a shape at the assumed sizes, with `?` for what they leave open."""
    if shape is None:
        return "?"
    sizes = (str(size if isinstance(size, int) else assumed.get(size or "", "?")) for size in shape)
    return "x".join(sizes) or "scalar"  # without spaces: they would take six characters from the layers' names


def _short_kind(kind: str) -> str:
    """Return a layer's operators: the first and the last where they are too many."""
    names = kind.split("+")
    told = kind if len(kind) <= _KIND_CHARS or len(names) < 3 else f"{names[0]}+…+{names[-1]}"
    return printable(told, _KIND_CHARS)


def _assumed(dims: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)} = {size}" for name, size in dims.items())


def _plan_head(plan: Plan) -> list[str]:
    head = (
        f"{printable(plan.model.name, 40)}: {_plural(len(plan.partitions), 'partition')},"
        f" {format_count(plan.model.parameters)} parameters, {format_nbytes(plan.model.weight_bytes)} of weights"
    )
    lines = [head, f"optimized: {plan.optimization}{f' to {plan.cpu_family}' if plan.cpu_family else ''}"]
    if plan.assumed_dims:
        lines.append(f"sizes assume {_assumed(plan.assumed_dims)}")
    return lines + ([] if plan.quantization is None else show_quantization(plan.quantization))


def _partition_table(rows: Sequence[Sequence[str]]) -> str:
    told = _fitted(rows, ("id", "kind", "layers", "names", "params", "weights", "peak", "sends"), "llrlrrrr", 3)
    return f"{told}\n{_SUMS}" if any(row[1].startswith("H+") for row in rows) else told


def _fitted(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str, column: int) -> str:
    """Return a table as wide as the terminal, in which names in `column` give up their middles, numbers nothing."""
    width = _terminal_width()
    others = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers)) if i != column]
    room = max(width - sum(others) - 2 * len(others), 12)
    fitted = [[_name(cell, room) if i == column else cell for i, cell in enumerate(row)] for row in rows]
    return table(fitted, headers, align, width)


def _terminal_width() -> int:
    """Return the columns of the terminal, also where a pager stands before it: 80 to 160, and 80 without one."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            return min(max(80, os.get_terminal_size(descriptor).columns), 160)
    return 80


def _name(text: str, room: int) -> str:
    """Return a name, or two with ` .. ` between them, in at most `room` characters."""
    first, *second = (printable(part, 200) for part in text.split(_SPAN, 1))
    if not second:
        return _shortened(first, room)
    room -= len(_SPAN)
    fair = room // 2  # what one does not need the other has
    left = _shortened(first, max(fair, room - len(second[0])))
    return f"{left}{_SPAN}{_shortened(second[0], room - len(left))}"


def _shortened(text: str, limit: int) -> str:
    """Return the text without its middle where it is too long: names of one model begin alike."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) * 2 // 3
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def _partition_row(plan: Plan, part: Partition) -> tuple[str, ...]:
    return (
        printable(part.id, 12),
        _kind(part),
        str(len(part.layers)),
        _names(part.layers),
        format_count(part.parameters),
        format_nbytes(part.weight_bytes),
        "?" if part.peak_memory_bytes is None else format_nbytes(part.peak_memory_bytes),
        _output_bytes(plan, part.outputs),
    )


def _kind(part: Partition) -> str:
    """Return `V`, `H 2/3`, or `H+ 2/3` of a part of a sum."""
    if part.shard is None:
        return "V"
    return f"H{'+' * (part.shard.merge == 'sum')} {part.shard.index + 1}/{part.shard.count}"


def _most_telling(parts: Sequence[Partition]) -> list[int]:
    """Return the positions of the first partitions, of the last, and of the largest."""
    largest = sorted(range(len(parts)), key=lambda i: (-(parts[i].peak_memory_bytes or parts[i].weight_bytes), i))
    return sorted({*range(_ENDS), *range(len(parts) - _ENDS, len(parts)), *largest[:_ENDS]})


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _names(layers: tuple[str, ...]) -> str:
    return _SPAN.join(dict.fromkeys((*layers[:1], *layers[-1:])))


def _output_bytes(plan: Plan, names: tuple[str, ...]) -> str:
    sizes = [plan.tensors[name].nbytes for name in names]
    return "?" if None in sizes else format_nbytes(sum(size or 0 for size in sizes))
