"""What a failed verification gives reduction to work on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path

from hyps.formats.plan import Plan
from hyps_compiler.measure import Feeds
from hyps_compiler.reduce import Suspect
from hyps_compiler.source import Source
from hyps_compiler.subgraphs import Model, load_model
from hyps_compiler.verify import Report, is_right


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a verification has looked at."""

    folder: Path
    """The plan folder."""
    plan: Plan
    source: Source
    staged: Path
    """The model in the form in which it was cut."""
    oracle: Model
    """The same, in which every border is a tensor."""
    requests: Sequence[Feeds]


def choose_suspect(scene: Scene, report: Report) -> Suspect | None:
    """Return the difference to reduce; None where there is none that can be shown outside the whole plan.

    The first partition that is wrong by itself comes before a border that differs in the plan's own run, and that
    before an output that only the worker's way of running, or the preparation for the cut, moves.
    """
    if report.faults:
        fault = report.faults[0]
        part = next(part for part in scene.plan.partitions if part.id == fault.partition)
        target = fault.outputs[0].tensor if fault.outputs else part.outputs[0]
        suspect = _suspect(scene, target, fault.request)
        return replace(suspect, is_right=partial(is_right, scene.plan, part), fails=bool(fault.failure))
    first = report.first()
    if first is not None:
        exact = first.tensor in report.must_be_identical
        rule = attrgetter("is_identical" if exact else "is_within_tolerance")
        return replace(_suspect(scene, first.tensor, first.request), is_right=rule)
    return _suspect_of_outputs(scene, report)


def _suspect_of_outputs(scene: Scene, report: Report) -> Suspect | None:
    for output in report.wrong_outputs():
        reasons = report.reasons.get(output.tensor)
        if reasons is None or reasons.running is None or reasons.preparation is None:
            continue
        if reasons.running >= reasons.preparation:
            return replace(_suspect(scene, output.tensor, output.request), level="default")
        suspect = _suspect(scene, output.tensor, output.request)
        return replace(suspect, whole=load_model(scene.source.path), parts=(load_model(scene.staged),), borders=())
    return None


def _suspect(scene: Scene, target: str, request: int) -> Suspect:
    """Return the partitions up to the one that makes `target`; what is wrong is what is beyond its tolerance."""
    parts = scene.plan.partitions
    last = next(index for index, part in enumerate(parts) if target in part.outputs)
    borders = [name for part in parts[: last + 1] for name in part.outputs if name in scene.oracle.makers]
    return Suspect(
        whole=scene.oracle,
        parts=tuple(load_model(scene.folder / part.file) for part in parts[: last + 1]),
        target=target,
        borders=tuple(name for name in borders if name != target),
        request=scene.requests[request],
        is_right=attrgetter("is_within_tolerance"),
    )
