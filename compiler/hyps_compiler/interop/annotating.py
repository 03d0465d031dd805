"""Writes a plan's borders and placement into a copy of its model, as annotations that other tools read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from hyps.adapters.plan_files import PLAN_FILE, check_files, read_plan
from hyps.errors import ModelError, OutputError, printable
from hyps.formats.plan import Plan
from hyps.formats.quantities import counted
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.interop import olive
from hyps_compiler.interop.annotations import drop_annotations, write_configuration
from hyps_compiler.interop.dag import Dag, read_dag
from hyps_compiler.interop.planned import Planned, planned
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.output import check_apart, check_output_file, output_file, scratch_folder
from hyps_compiler.snapshot import Stamp, copy, unchanged
from hyps_compiler.source import Source, read_proto
from hyps_compiler.walk import initializer_names

Format = Literal["onnx", "olive"]

_WEIGHTS_ARE_NO_INPUTS = 4
"""The first IR version in which weights need not be inputs as well; where they are, a request may replace them."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """A model with a plan's annotations."""

    path: Path
    format: Format
    configurations: tuple[str, ...]
    """Names of the device configurations; none in Olive's format."""
    devices: tuple[tuple[str, ...], ...]
    """Of each configuration."""
    stages: int
    nodes: int
    """That have a stage."""
    divided: tuple[str, ...]
    """Names of the nodes that are divided."""
    copied: tuple[str, ...]
    """Files of weights that were copied beside it."""
    untold: tuple[str, ...]
    """What the annotations cannot say."""


def annotate_model(
    model: str,
    folder: Path,
    output: Path,
    format: Format = "onnx",  # noqa: A002  # what the option is called
    *,
    force: bool = False,
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES,
    converting: Converting = UNTRUSTED,
) -> Annotated:
    """Write the model that a plan was made from once more, with the plan in it.

    Weights that lie in files of their own stay there; a copy elsewhere gets copies of these files beside it.

    Args:
        model: the model file or `zoo:NAME`.
        folder: of the plan.
        output: the ONNX file to write.
        format: `onnx`: a device configuration for each of the plan's variants; `olive`: split assignments.
        force: whether existing files may be replaced.
        max_tensor_nbytes: most bytes that one tensor may take that the model computes.
        converting: how to convert the model first, if it is no ONNX file.

    Raises:
        PlanError: there is no plan, or it is wrong or altered.
        ModelError: the model cannot be read, or is another one than the plan's.
        OutputError: a file exists, cannot be written, or is one of the model's or the plan's.
    """
    plan = read_plan(folder)
    check_files(folder, plan)
    check_apart(output, model, folder / PLAN_FILE, *(folder / part.file for part in plan.partitions))
    check_output_file(output, force=force)
    with scratch_folder() as scratch:
        source = open_model(model, scratch, max_tensor_nbytes=max_tensor_nbytes, converting=converting)
        if source.sha256 != plan.model.sha256:
            raise _another_model(model, plan)
        with unchanged(source.stamps):
            data = _data_files(source, output, force=force)
            made = read_proto(source.path)
            dag = read_dag(made.graph)
            parts = {part.id: read_proto(folder / part.file) for part in plan.partitions}
            told = planned(plan, parts, made, dag)
            if not told.stage_of:
                raise _another_model(model, plan)
            WRITERS[format](made, plan, told, dag)
            for taken, target in data:
                with output_file(target) as beside:
                    copy(taken, beside)
            with output_file(output) as beside:
                beside.write_bytes(made.SerializeToString(deterministic=True))
    is_onnx = format == "onnx"
    return Annotated(
        path=output,
        format=format,
        configurations=tuple(one.name for one in made.configuration),
        devices=tuple(tuple(one.device) for one in made.configuration),
        stages=len(set(told.stages.values())),
        nodes=len(told.stages),
        divided=tuple(dag.name(one.index) for one in told.divided) if is_onnx else (),
        copied=tuple(os.fspath(target) for _, target in data),
        untold=(*told.untold, *([] if is_onnx or not told.divided else ["Olive's format divides no layer"])),
    )


def show_annotated(annotated: Annotated) -> str:
    """Return what was written, for people."""
    stages = f"{counted(annotated.stages, 'stage')}, {counted(annotated.nodes, 'node')}"
    lines = []
    for name, devices in zip(annotated.configurations, annotated.devices, strict=True):
        shown = ", ".join(printable(device, 30) for device in devices)
        lines.append(f"annotated: configuration `{printable(name, 40)}`, {stages}, on {shown}")
    if not lines:
        lines.append(f"annotated: `{olive.KEY}`, {stages}")
    if annotated.divided:
        shown = ", ".join(f"`{name}`" for name in annotated.divided[:3])
        more = f" and {len(annotated.divided) - 3} more" if len(annotated.divided) > 3 else ""
        lines.append(f"divided:   {shown}{more}")
    lines += [f"not said:  {sentence}" for sentence in annotated.untold]
    lines += [f"copied:    {printable(name, 200)}" for name in annotated.copied]
    return "\n".join([*lines, f"wrote:     {printable(os.fspath(annotated.path), 200)}"])


def _write_onnx(model: ModelProto, plan: Plan, told: Planned, dag: Dag) -> None:
    """Replace what annotations the model has by a configuration for each variant."""
    configurations = [told.configuration(plan, variant, dag) for variant in plan.variants]
    _clear(model)
    if model.ir_version < _WEIGHTS_ARE_NO_INPUTS:
        weights = initializer_names(model.graph)
        inputs = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    for configuration in configurations:
        write_configuration(model, configuration)


def _write_olive(model: ModelProto, _plan: Plan, told: Planned, _dag: Dag) -> None:
    """Replace what annotations the model has by split assignments."""
    _clear(model)
    olive.write_assignments(model, told.stages)


WRITERS: dict[Format, Callable[[ModelProto, Plan, Planned, Dag], None]] = {"onnx": _write_onnx, "olive": _write_olive}
"""By the word of `--format`."""


def _clear(model: ModelProto) -> None:
    """Remove all annotations: what an earlier plan said does not hold beside this one."""
    drop_annotations(model)
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != olive.KEY]
    del model.metadata_props[:]
    for key, value in others:
        model.metadata_props.add(key=key, value=value)


def _data_files(source: Source, output: Path, *, force: bool) -> list[tuple[Stamp, Path]]:
    """Return the files of weights to copy, and where to; none where the model stays in its folder.

    Raises:
        OutputError: one would replace another file, or cannot be written.
    """
    found = []
    for taken in source.stamps[1:]:
        target = output.parent / taken.path.relative_to(source.stamps[0].path.parent)
        if target.exists() and not target.is_symlink() and target.samefile(taken.path):
            continue
        if os.path.abspath(target) == os.path.abspath(output):
            raise OutputError(
                f"`{printable(os.fspath(output), 200)}` is also the name of the model's file of weights",
                "give another name with `-o`",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        check_output_file(target, force=force)
        found.append((taken, target))
    return found


def _another_model(model: str, plan: Plan) -> ModelError:
    return ModelError(
        f"the plan was made from another model than `{printable(model)}`",
        f"give the file of `{printable(plan.model.name)}` that it was compiled from; of another format, convert it with"
        " `hypsc convert` and compile that",
    )
