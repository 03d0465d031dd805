"""Finds how a model file says that it is to be divided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from hyps.errors import ModelError, UsageError, printable
from hyps.formats.quantities import counted
from hyps_compiler.interop import annotations, olive
from hyps_compiler.interop.annotations import Configuration, read_configurations
from hyps_compiler.interop.dag import Dag, read_dag, spread
from hyps_compiler.interop.sharding import wanted_shards
from hyps_compiler.interop.wanted import Wanted
from hyps_compiler.partition import ANNOTATIONS, Request
from hyps_compiler.source import read_proto

_NO_ANNOTATIONS = "`hypsc annotate` writes them; `hypsc inspect` shows those of a model"


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """One set of annotations of a model, for `hypsc inspect`."""

    name: str
    """What `--configuration` calls it."""
    format: str
    """`onnx` or `olive`."""
    num_devices: int | None
    devices: tuple[str, ...]
    stages: tuple[int, ...]
    """Those that nodes are given, ascending."""
    nodes: int
    """Which are given a stage."""
    shardings: int
    """Nodes with a tensor that is divided."""
    moved: int
    """Nodes that cannot run in the stage they are given: it comes before what they need."""
    problem: str = ""
    """Why it cannot be used; empty: it can be."""


def read_wanted(path: Path, name: str | None) -> Wanted:
    """Return how the model in a file, which has been checked, is to be divided by its own annotations.

    Device configurations come first, Olive's assignments where there are none.

    Args:
        path: of the file.
        name: of the configuration, or `split_assignments` for Olive's; None: the only one.

    Raises:
        ModelError: it has none, or none of that name, or several and none is named; or what it has is wrong.
    """
    model = read_proto(path)
    dag = read_dag(model.graph)
    if name is None or name != olive.KEY:
        found = read_configurations(model, dag)
        if found or name is not None:
            return _wanted(model, dag, _chosen(found, name))
    if not olive.has_assignments(model):
        what = f"no metadata `{olive.KEY}`" if name else "no annotations that say where to cut it"
        raise ModelError(f"the model has {what}", _NO_ANNOTATIONS, "E_ANNOTATION")
    return _useful(olive.wanted_by_olive(model, dag))


def follow_annotations(request: Request, path: Path) -> Request:
    """Return the request with what the model's annotations say, where it asks for them.

    Raises:
        UsageError: it names a configuration and does not ask to follow it.
        ModelError: as of `read_wanted`.
    """
    if ANNOTATIONS not in request.cuts:
        if request.configuration is not None:
            raise UsageError("--configuration is about --cut annotations", "give both or neither")
        return request
    return replace(request, wanted=read_wanted(path, request.configuration))


def annotation_rows(path: Path) -> tuple[AnnotationRow, ...]:
    """Return what annotations the model in a file has; what is wrong with them is told, not raised."""
    model = read_proto(path)
    dag = read_dag(model.graph)
    rows: list[AnnotationRow] = []
    if annotations.has_annotations(model):
        try:
            rows += [_configuration_row(dag, found) for found in read_configurations(model, dag)]
        except ModelError as error:
            rows.append(AnnotationRow("", "onnx", None, (), (), 0, 0, 0, error.message))
    if olive.has_assignments(model):
        try:
            wanted, given = olive.wanted_by_olive(model, dag), olive.given_stages(model, dag)
        except ModelError as error:
            rows.append(AnnotationRow(olive.KEY, "olive", None, (), (), 0, 0, 0, error.message))
        else:
            stages = tuple(sorted(set(given.values())))
            rows.append(AnnotationRow(olive.KEY, "olive", None, (), stages, len(given), 0, len(wanted.moved)))
    return tuple(rows)


def show_annotations(rows: Sequence[AnnotationRow]) -> list[str]:
    """Return a line for each set of annotations, for people."""
    return [f"annotations: {_shown(row)}" for row in rows]


def _shown(row: AnnotationRow) -> str:
    name = f"configuration `{printable(row.name, 40)}`" if row.format == "onnx" else f"Olive's `{row.name}`"
    if row.problem:
        return f"{name if row.name else 'those of several devices'} cannot be used: {row.problem}"
    told = [name]
    if row.num_devices is not None:
        names = ", ".join(printable(device, 20) for device in row.devices[:4])
        more = ", ..." if len(row.devices) > 4 else ""
        told.append(f"{counted(row.num_devices, 'device')}{f' ({names}{more})' if names else ''}")
    if row.stages:
        told.append(f"{counted(len(row.stages), 'stage')} ({row.stages[0]} to {row.stages[-1]}) of {_nodes(row.nodes)}")
    if row.shardings:
        told.append(f"{_nodes(row.shardings)} divided")
    if row.moved:
        told.append(f"{_nodes(row.moved)} before what they need, which will run later")
    return ", ".join(told)


def _nodes(number: int) -> str:
    return counted(number, "node")


def _configuration_row(dag: Dag, found: Configuration) -> AnnotationRow:
    return AnnotationRow(
        name=found.name,
        format="onnx",
        num_devices=found.num_devices,
        devices=found.devices,
        stages=tuple(sorted(set(found.stages.values()))),
        nodes=len(found.stages),
        shardings=sum(any(one.axes for one in of_node) for of_node in found.shardings.values()),
        moved=len(spread(dag, _running(dag, found))[1]),
    )


def _running(dag: Dag, found: Configuration) -> dict[int, int]:
    return {index: stage for index, stage in found.stages.items() if index not in dag.constants}


def _chosen(found: tuple[Configuration, ...], name: str | None) -> Configuration:
    names = ", ".join(f"`{printable(one.name, 40)}`" for one in found[:8])
    if name is None:
        if len(found) > 1:
            raise ModelError(
                f"the model has {len(found)} device configurations: {names}",
                "say which with --configuration NAME",
                "E_ANNOTATION",
            )
        return found[0]
    for one in found:
        if one.name == name:
            return one
    has = f"it has {names}" if found else _NO_ANNOTATIONS
    raise ModelError(f"the model has no device configuration `{printable(name)}`", has, "E_ANNOTATION")


def _wanted(model: ModelProto, dag: Dag, found: Configuration) -> Wanted:
    given = _running(dag, found)
    shards = wanted_shards(model, dag, found)
    origin = f"configuration `{printable(found.name, 40)}`"
    if not given and not shards:
        raise ModelError(
            f"device {origin} gives no node a pipeline stage, nor divides one", _NO_ANNOTATIONS, "E_ANNOTATION"
        )
    stages, moved = spread(dag, given)
    return _useful(
        Wanted(
            origin,
            dag.stage_of_tensors(stages),
            dag.crossing(stages),
            moved,
            shards,
            found.num_devices,
            found.devices,
            found.devices_of_stages(),
        )
    )


def _useful(wanted: Wanted) -> Wanted:
    """Refuse stages of which none is left once every node runs behind what it needs."""
    if wanted.moved and len(set(wanted.stage_of.values())) == 1:
        first = wanted.moved[0]
        raise ModelError(
            f"{wanted.origin} leaves nothing to cut: node `{first.node}` is in stage {first.wanted} and needs what"
            f" stage {first.stage} makes",
            "number the stages in the order in which they run",
            "E_ANNOTATION",
        )
    return wanted
