"""What a failed verification gives reduction to work on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path

from hyps.formats.plan import Partition, Plan
from hyps_compiler.compare import Difference
from hyps_compiler.measure import Feeds
from hyps_compiler.narrow import Place, with_inner_parts
from hyps_compiler.oracle import Oracle
from hyps_compiler.reduce import Suspect
from hyps_compiler.source import Source
from hyps_compiler.subgraphs import load_model
from hyps_compiler.verify import Fault, Report, is_right


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a verification has looked at."""

    folder: Path
    """The plan folder."""
    plan: Plan
    source: Source
    staged: Path
    """The model in the form in which it was cut."""
    oracle: Oracle
    """The same, in which every border is a tensor."""
    requests: Sequence[Feeds]


def choose_suspect(scene: Scene, report: Report, places: Sequence[Place]) -> Suspect | None:
    """Return the difference to reduce; None where there is none that can be shown outside the whole plan.

    The first partition that is wrong by itself comes before a border that differs in the plan's own run, and that
    before an output that only the worker's way of running, or the preparation for the cut, moves.
    """
    if report.faults:
        return _suspect_of_fault(scene, report.faults[0], places[0])
    first = report.first()
    if first is not None:
        suspect = _suspect(scene, report.made_by[first.tensor], first.tensor, first.request)
        return replace(suspect, is_right=partial(_is_right_as, report, first.tensor))
    return _suspect_of_outputs(scene, report)


def _is_right_as(report: Report, border: str, difference: Difference) -> bool:
    """Return whether a tensor on the way to a border is as right as the border must be."""
    return report.is_right(replace(difference, tensor=border))


def _suspect_of_fault(scene: Scene, fault: Fault, place: Place) -> Suspect:
    """Return what is wrong in a partition; where onnxruntime fails on it, perhaps what differs before it fails."""
    part = next(part for part in scene.plan.partitions if part.id == fault.partition)
    differs_before = bool(fault.failure) and place.difference is not None and place.tensor in scene.oracle.makers
    if fault.seen_in:
        part = next(part for part in scene.plan.partitions if part.id == fault.seen_in)
    border = fault.outputs[0].tensor if fault.seen_in else place.border
    suspect = _suspect(scene, part.id, place.tensor if differs_before else border, fault.request)
    partition = load_model(scene.folder / part.file)
    suspect = replace(suspect, whole=with_inner_parts(scene.oracle, partition, part.shard))
    fails = bool(fault.failure) and not differs_before
    untold = [name for name in part.inputs if name not in scene.oracle.makers]
    judge = partial(_is_right_made_of, scene.plan, part, untold)
    return replace(suspect, is_right=judge, fails=fails)


def _is_right_made_of(plan: Plan, part: Partition, untold: Sequence[str], difference: Difference) -> bool:
    return is_right(plan, part, difference, untold)


def _suspect_of_outputs(scene: Scene, report: Report) -> Suspect | None:
    for output in report.wrong_outputs():
        reasons = report.reasons.get(output.tensor)
        if reasons is None or reasons.running is None or reasons.preparation is None:
            continue
        suspect = _suspect(scene, report.made_by[output.tensor], output.tensor, output.request)
        if reasons.running >= reasons.preparation:
            return replace(suspect, level="default")
        return replace(suspect, whole=load_model(scene.source.path), parts=(load_model(scene.staged),), borders=())
    return None


def _suspect(scene: Scene, maker: str, target: str, request: int) -> Suspect:
    """Return the partitions up to the one that makes `target`; what is wrong is what is beyond its tolerance."""
    last = next(index for index, part in enumerate(scene.plan.partitions) if part.id == maker)
    parts = scene.plan.partitions[: last + 1]
    borders = [name for part in parts for name in part.outputs if name in scene.oracle.makers]
    return Suspect(
        whole=scene.oracle,
        parts=tuple(load_model(scene.folder / part.file) for part in parts),
        target=target,
        borders=tuple(name for name in borders if name != target),
        request=scene.requests[request],
        is_right=attrgetter("is_within_tolerance"),
    )
