"""Which of a plan's partitions a device keeps loaded, and how many requests it has room for, as its worker decides."""

from collections.abc import Sequence
from dataclasses import dataclass

from hyps.core.residency import Task, decide_residency, live_activations, table_nbytes
from hyps.errors import InfeasibleError, PlanError, printable
from hyps.formats.plan import Plan, Variant
from hyps_compiler.partition import NODE_BASE_BYTES


@dataclass(frozen=True, slots=True)
class Memory:
    """What a device does with its memory."""

    kept: frozenset[str]
    """Partitions that stay loaded."""
    room: int
    """Most requests whose activations fit at once."""


def decide_memory(plan: Plan, variants: Sequence[Variant], device: str, memory_bytes: int) -> Memory:
    """Return what a device keeps of all that any of the variants runs there.

    Raises:
        InfeasibleError: it cannot hold one of the partitions.
        PlanError: the bytes of a tensor are unknown.
    """
    tasks = [
        _task(plan, index)
        for index, part in enumerate(plan.partitions)
        if any(device in hosts_of(variant, part.id) for variant in variants)
    ]
    live = _live(plan, tasks)
    try:
        residency = decide_residency(tasks, live, memory_bytes, NODE_BASE_BYTES)
    except InfeasibleError as error:
        raise InfeasibleError(
            f"on device `{printable(device)}` {error.message}", "compile the plan again for this cluster", error.code
        ) from error
    spare_nbytes = residency.spare_nbytes or 0
    return Memory(residency.kept, 1 + spare_nbytes // max(1, *live.values()) if live else 1)


def hosts_of(variant: Variant, partition: str) -> tuple[str, ...]:
    """Return the devices that run a partition, the first first."""
    return (variant.placement[partition], *variant.replicas.get(partition, ()))


def tensor_nbytes(plan: Plan, name: str) -> int:
    """Return the bytes of a tensor, of as many requests as the plan's first variant takes together.

    Raises:
        PlanError: the plan does not say.
    """
    nbytes = plan.tensors[name].nbytes
    if nbytes is None:
        raise PlanError(
            f"the plan does not say how many bytes tensor `{printable(name)}` has",
            "compile it again with the shapes of the model's inputs, --input NAME:SHAPE",
            "E_DYNAMIC_SHAPE",
        )
    return nbytes * plan.variants[0].prediction.batch


def _task(plan: Plan, index: int) -> Task:
    part = plan.partitions[index]
    sizes = sum(tensor_nbytes(plan, name) for name in dict.fromkeys((*part.inputs, *part.outputs)))
    weights = part.weight_bytes - table_nbytes(part)
    scratch = max(0, (part.peak_memory_bytes or 0) - weights - sizes)
    return Task(part.id, part.inputs, part.outputs, weights, scratch)


def _live(plan: Plan, tasks: Sequence[Task]) -> dict[str, int]:
    """Return the bytes alive beside each partition; what comes in and what leaves stays."""
    made = {name for task in tasks for name in task.outputs}
    used = {name for task in tasks for name in task.inputs}
    sizes = {name: tensor_nbytes(plan, name) for name in sorted(made | used)}
    inner = only_used_within(plan, tasks)
    return live_activations(tasks, sorted(used - made), sorted(made - inner), sizes)


def only_used_within(plan: Plan, tasks: Sequence[Task]) -> set[str]:
    """Return the tensors that some of `tasks` read and nobody else needs, the answer neither."""
    own = {task.id for task in tasks}
    leaves = {tensor.name for tensor in plan.model.outputs}
    leaves |= {name for part in plan.partitions if part.id not in own for name in part.inputs}
    return {name for task in tasks for name in task.inputs} - leaves
