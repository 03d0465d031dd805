"""What a plan's partitions really take: each is loaded and run alone in a fresh process, its resident set watched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from hyps.core.residency import tasks_of
from hyps.formats.plan import Partition, Plan
from hyps_compiler.arrays import write_npz
from hyps_compiler.children import run_child

Way = Literal["streamed", "mapped", "kept"]
"""How partitions are run: weights read into memory (mapped where there is no form), mapped, or laid out for speed."""

MEASURED_BEYOND_NBYTES = 1_000_000
"""What a measurement may find beyond what was reckoned: a session, whole pages, and what measuring may be off by."""

_STEP_NBYTES = 64 * 1024


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition raises the resident set while it is loaded and run, all tensors alive meanwhile included."""

    id: str
    rises_nbytes: tuple[int, ...]
    """The peak, each time that it was run. The first time counts the code that was read for it, later ones do not."""
    anonymous_nbytes: int
    """What of it is private memory right after the run."""
    file_nbytes: int
    """What of it are pages of files then: mapped weights, and the first time code."""
    seconds: float
    """Median of loading and running."""

    @property
    def most_nbytes(self) -> int:
        """The largest rise once its code was there; of a partition that was run only once, that one."""
        return max(self.rises_nbytes[1:] or self.rises_nbytes)

    @property
    def spread_nbytes(self) -> int:
        """Between the largest and the smallest of these rises."""
        counted = self.rises_nbytes[1:] or self.rises_nbytes
        return max(counted) - min(counted)


class Weighing(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has resident beside the partitions, and what each of them adds."""

    base_nbytes: int
    """Before the first one, with onnxruntime started and what only start-up needed given back."""
    end_nbytes: int
    """After the last one: the same, and the code that running them touched."""
    error_nbytes: int
    """By how much a peak may have been higher than told: the kernel counts in batches."""
    partitions: tuple[Weight, ...]

    def peaks(self) -> dict[str, int]:
        """Return, per partition, a figure that later runs do not exceed, in whole steps so that it varies little."""
        return {
            weight.id: -(-(weight.most_nbytes + self.error_nbytes) // _STEP_NBYTES) * _STEP_NBYTES
            for weight in self.partitions
        }


def weigh_plan(
    folder: Path, scratch: Path, feeds: Mapping[str, Any], *, way: Way = "streamed", threads: int | None = None
) -> Weighing | None:
    """Return what the partitions of a plan take; None where the system does not tell peaks.

    Args:
        folder: the plan folder.
        scratch: a folder for the request.
        feeds: one request, of arrays only.
        way: how partitions are run.
        threads: for one partition; None: one per core.

    Raises:
        HypsError: the plan did not run.
    """
    request = scratch / "weighed.npz"
    write_npz(request, feeds)
    arguments = (str(folder), str(request), way, str(threads or 0))
    printed = run_child("hyps_compiler.weighing_child", arguments, scratch, "measuring memory")
    return msgspec.json.decode(printed, type=Weighing | None)


def with_measured_peaks(partitions: Sequence[Partition], weighing: Weighing) -> tuple[Partition, ...]:
    """Return the partitions with what was measured in place of what was reckoned."""
    peaks = weighing.peaks()
    return tuple(replace(part, peak_memory_bytes=peaks[part.id], memory_measured=True) for part in partitions)


def needed_nbytes(plan: Plan) -> int:
    """Return what the partition that needs most has resident when all tensors have left that may, beside the base."""
    sizes = {name: info.nbytes or 0 for name, info in plan.tensors.items()}
    brought = [tensor.name for tensor in plan.model.inputs]
    waiting: set[str] = set()
    needed = 0
    for task, part in reversed([*zip(tasks_of(plan), plan.partitions, strict=True)]):
        waiting.update(part.inputs)
        present = {*part.inputs, *part.outputs, *waiting.intersection(brought)}
        needed = max(needed, task.weight_nbytes + task.scratch_nbytes + sum(sizes[name] for name in present))
    return needed
