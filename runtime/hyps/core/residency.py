"""Which partitions stay loaded under a memory budget, and which are loaded and released."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hyps.errors import InfeasibleError, printable
from hyps.formats.plan import Partition, Plan
from hyps.formats.quantities import format_nbytes
from hyps.formats.weight_blocks import blocks_of


@dataclass(frozen=True, slots=True)
class Task:
    """What the core knows of a partition: names and bytes."""

    id: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_nbytes: int = 0
    """Bytes that are resident while it is loaded."""
    scratch_nbytes: int = 0
    """Most bytes alive while it runs, beside its weights, inputs and outputs."""
    shared: tuple[tuple[str, int], ...] = ()
    """What others have as well, by name, and its bytes, which `weight_nbytes` counts: in memory only once."""
    table_nbytes: int = 0
    """Bytes of tables of which only rows are read while weights are streamed, which `scratch_nbytes` counts: they are
    in memory whole where weights are not."""


@dataclass(frozen=True, slots=True)
class Residency:
    """The answer: partition ids, and what is left for activations."""

    kept: frozenset[str]
    """Loaded once and for good; the others are loaded when their turn comes and released after it."""
    spare_nbytes: int | None
    """What remains for the activations of further requests when the first one needs most; None: no budget."""
    limit_nbytes: int | None = None
    """The budget without the process's own base; None: no budget."""


def task_of(plan: Plan, partition: Partition) -> Task:
    """Return what the core knows of one of the plan's partitions."""
    sizes = [plan.tensors[name].nbytes or 0 for name in dict.fromkeys((*partition.inputs, *partition.outputs))]
    tables = table_nbytes(partition)
    weights = partition.weight_bytes - tables
    scratch = max(0, (partition.peak_memory_bytes or 0) - weights - sum(sizes))
    return Task(partition.id, partition.inputs, partition.outputs, weights, scratch, table_nbytes=tables)


def table_nbytes(partition: Partition) -> int:
    """Return the bytes of those of its weights of which only rows are read while they are streamed."""
    weights = () if partition.form is None else partition.form.weights
    return sum(weight.nbytes for weight in weights if weight.looked_up_by)


def tasks_of(plan: Plan) -> list[Task]:
    """Return what the core knows of all partitions of a plan that run here, one after another.

    A partition's peak counts every tensor that is alive while it runs; all of them are known here, so that what is left
    is its own.
    """
    tasks = [task_of(plan, partition) for partition in plan.partitions]
    sizes = {name: info.nbytes for name, info in plan.tensors.items() if info.nbytes is not None}
    inputs, outputs = [one.name for one in plan.model.inputs], [one.name for one in plan.model.outputs]
    live = live_activations(tasks, inputs, outputs, sizes)
    scratch = {
        part.id: max(0, (part.peak_memory_bytes or 0) - task.weight_nbytes - live[part.id])
        for part, task in zip(plan.partitions, tasks, strict=True)
    }
    shared = _shared_blocks(plan)
    return [replace(task, scratch_nbytes=scratch[task.id], shared=shared[task.id]) for task in tasks]


def _shared_blocks(plan: Plan) -> dict[str, tuple[tuple[str, int], ...]]:
    """Return, per partition, the blocks of weights that are read for other partitions as well, and their bytes."""
    blocks = {part.id: blocks_of(part) for part in plan.partitions}
    users = Counter(block.key for found in blocks.values() for block in found.values())
    return {
        part.id: tuple(
            (block.key, sum(w.nbytes for w in part.form.weights if w.path == path and not w.looked_up_by))
            for path, block in blocks[part.id].items()
            if part.form is not None and users[block.key] > 1
        )
        for part in plan.partitions
    }


def loaded_nbytes(tasks: Iterable[Task]) -> int:
    """Return the bytes of the weights of `tasks` when all of them are loaded: what several share counts once."""
    own, shared = 0, dict[str, int]()
    for task in tasks:
        own += task.weight_nbytes - sum(nbytes for _, nbytes in task.shared)
        shared.update(task.shared)
    return own + sum(shared.values())


def decide_residency(
    tasks: Sequence[Task],
    live_nbytes: Mapping[str, int],
    budget_nbytes: int | None,
    base_nbytes: int,
) -> Residency:
    """Return which of `tasks` stay loaded: all when they fit, else the most bytes that fit beside the largest other.

    `live_nbytes` has, per partition, the activations of one request that are alive while it runs. Whatever is kept, the
    bytes resident while any partition runs stay within the budget.

    Raises:
        InfeasibleError: one partition alone is too large; names it and the smallest budget that would do.
    """
    if budget_nbytes is None or not tasks:
        return Residency(frozenset(task.id for task in tasks), None)
    available = budget_nbytes - base_nbytes
    running = {task.id: live_nbytes[task.id] + task.scratch_nbytes for task in tasks}
    _refuse_too_large(tasks, running, available, budget_nbytes, base_nbytes)
    by_need = sorted(tasks, key=lambda task: (-(task.weight_nbytes + running[task.id]), task.id))
    best: frozenset[str] | None = None
    for largest in range(len(tasks), -1, -1):
        kept = _kept_beside(by_need, largest, running, available)
        if kept is not None and len(kept) == len(tasks):
            best = kept
            break
        if kept is not None and (best is None or _total(tasks, kept) > _total(tasks, best)):
            best = kept
    assert best is not None, "keeping nothing fits, or the largest partition would have been refused"
    kept_nbytes = loaded_nbytes(task for task in tasks if task.id in best)
    return Residency(best, available - kept_nbytes - _transient_need(tasks, best, running), available)


def decide_with_read_ahead(
    tasks: Sequence[Task],
    live_nbytes: Mapping[str, int],
    budget_nbytes: int | None,
    base_nbytes: int,
) -> Residency:
    """Return what `decide_residency` does, but keep a little less where then each of the others can be read ahead.

    Reading beside computing costs little, so that up to a quarter more may be read for it.

    Raises:
        InfeasibleError: see `decide_residency`.
    """
    plain = decide_residency(tasks, live_nbytes, budget_nbytes, base_nbytes)
    if budget_nbytes is None or plain.spare_nbytes is None or len(plain.kept) == len(tasks):
        return plain
    running = {task.id: live_nbytes[task.id] + task.scratch_nbytes for task in tasks}
    most = 1.25 * sum(task.weight_nbytes for task in tasks if task.id not in plain.kept)
    reserved, roomy = 0, plain
    while (lacking := _read_ahead_need(tasks, roomy.kept, running) - (roomy.spare_nbytes or 0) - reserved) > 0:
        reserved += lacking
        try:
            roomy = decide_residency(tasks, live_nbytes, budget_nbytes - reserved, base_nbytes)
        except InfeasibleError:
            return plain
        if sum(task.weight_nbytes for task in tasks if task.id not in roomy.kept) > most:
            return plain
    return replace(roomy, spare_nbytes=(roomy.spare_nbytes or 0) + reserved, limit_nbytes=plain.limit_nbytes)


def residency_for_many(
    tasks: Sequence[Task],
    live_nbytes: Mapping[str, int],
    crossing_nbytes: int,
    budget_nbytes: int | None,
    base_nbytes: int,
) -> Residency:
    """Return what `decide_residency` does, with room for a further request's `crossing_nbytes` where there is some.

    These are the tensors that come from and go to other processes: a node has them here while another request runs.

    Raises:
        InfeasibleError: see `decide_residency`.
    """
    if budget_nbytes is None:
        return decide_residency(tasks, live_nbytes, budget_nbytes, base_nbytes)
    need = max((task.weight_nbytes + task.scratch_nbytes + live_nbytes[task.id] for task in tasks), default=0)
    further = max(0, min(crossing_nbytes, budget_nbytes - base_nbytes - need))
    decided = decide_residency(tasks, live_nbytes, budget_nbytes, base_nbytes + further)
    return replace(decided, limit_nbytes=budget_nbytes - base_nbytes)


def tensor_room_nbytes(tasks: Sequence[Task], residency: Residency) -> int | None:
    """Return the bytes that tensors may have at any time, whichever partition runs and is in memory for its turn.

    None: no budget. Less than what one request needs where it only fits while nothing but its own turn is in memory.
    """
    if residency.limit_nbytes is None:
        return None
    kept = sum(task.weight_nbytes for task in tasks if task.id in residency.kept)
    turn = max((task.weight_nbytes for task in tasks if task.id not in residency.kept), default=0)
    return residency.limit_nbytes - kept - turn - max((task.scratch_nbytes for task in tasks), default=0)


def has_room_for_speed(tasks: Sequence[Task], residency: Residency, alive_nbytes: int) -> bool:
    """Return whether all can stay loaded, laid out anew, and keep what they compute in from run to run.

    `alive_nbytes` is the most that a request has alive at once, beside weights. Measured with networks of images, text
    and sound, whole (1.5 to 2.1 times that) and in up to 56 partitions (1.8 to 2.8 times), 0.2 MB for each partition
    and 4 MB in all.
    """
    if len(residency.kept) < len(tasks) or residency.limit_nbytes is None:
        return len(residency.kept) == len(tasks)
    weights = sum(task.weight_nbytes + task.table_nbytes for task in tasks)
    running = (9 if len(tasks) == 1 else 12) * alive_nbytes // 4 + 300_000 * len(tasks) + 6_000_000
    return residency.limit_nbytes >= max(2 * weights, weights + running)


def by_weight(tasks: Sequence[Task], ids: Collection[str]) -> list[str]:
    """Return `ids`, those of the heaviest tasks first: in this order most can be laid out anew as they are loaded."""
    chosen = [task for task in tasks if task.id in ids]
    return [task.id for task in sorted(chosen, key=lambda task: (-task.weight_nbytes, task.id))]


def packable(tasks: Sequence[Task], residency: Residency) -> frozenset[str]:
    """Return the kept tasks whose weights fit twice, as they are while they are laid out anew, when loaded `by_weight`.

    Nothing runs yet when they are loaded, so that what is left for running counts too. What others share is not laid
    out anew: each would have a copy of its own. Nor is what has tables: they would be mapped whole.
    """
    if residency.limit_nbytes is None:
        return residency.kept
    known = {task.id: task for task in tasks}
    loaded, packed = 0, set()
    for partition in by_weight(tasks, residency.kept):
        task = known[partition]
        if not task.shared and not task.table_nbytes and loaded + 2 * task.weight_nbytes <= residency.limit_nbytes:
            packed.add(partition)
        loaded += task.weight_nbytes
    return frozenset(packed)


def live_activations(
    tasks: Sequence[Task], inputs: Collection[str], outputs: Collection[str], nbytes: Mapping[str, int]
) -> dict[str, int]:
    """Return, per partition, the bytes of one request's tensors that are alive while it runs, its own included.

    Partitions run in the order given; a tensor lives from its making to its last use, a model's output to the end.
    """
    last_use = {name: len(tasks) for name in outputs}
    for index, task in enumerate(tasks):
        last_use.update({name: index for name in task.inputs if name not in outputs})
    alive = {name for name in inputs if name in last_use}
    live = {}
    for index, task in enumerate(tasks):
        alive.update(task.outputs)
        live[task.id] = sum(nbytes.get(name, 0) for name in sorted(alive))
        alive = {name for name in alive if last_use.get(name, -1) > index}
    return live


def _refuse_too_large(
    tasks: Sequence[Task], running: Mapping[str, int], available: int, budget_nbytes: int, base_nbytes: int
) -> None:
    worst = max(tasks, key=lambda task: (task.weight_nbytes + running[task.id], task.id))
    need = worst.weight_nbytes + running[worst.id]
    if need > available:
        smallest = need + base_nbytes + base_nbytes // 256  # a process takes 0.1 MB more or less with every start
        raise InfeasibleError(
            f"partition `{printable(worst.id)}` needs {format_nbytes(need)} beside the {format_nbytes(base_nbytes)} of "
            f"the process, more than the budget of {format_nbytes(budget_nbytes)}",
            f"give at least `--memory {-(-smallest // 10**6)}MB`, or compile with a smaller `--memory`",
        )


def _kept_beside(
    by_need: Sequence[Task], largest: int, running: Mapping[str, int], available: int
) -> frozenset[str] | None:
    """Return what is kept when `by_need[largest]` is the largest that is not: all before it, and what else fits.

    None when those before it do not fit. `largest` past the end keeps all.
    """
    kept = list(by_need[:largest])
    peak = max((running[task.id] for task in by_need), default=0)
    if largest < len(by_need):
        transient = by_need[largest]
        peak = max(peak, transient.weight_nbytes + running[transient.id])
    room = available - peak - loaded_nbytes(kept)
    if room < 0:
        return None
    shared = {name for task in kept for name, _ in task.shared}
    for task in sorted(by_need[largest + 1 :], key=lambda task: (-task.weight_nbytes, task.id)):
        more = task.weight_nbytes - sum(nbytes for name, nbytes in task.shared if name in shared)
        if more <= room:
            kept.append(task)
            shared.update(name for name, _ in task.shared)
            room -= more
    return frozenset(task.id for task in kept)


def _transient_need(tasks: Sequence[Task], kept: Collection[str], running: Mapping[str, int]) -> int:
    return max(running[task.id] + (0 if task.id in kept else task.weight_nbytes) for task in tasks)


def _read_ahead_need(tasks: Sequence[Task], kept: Collection[str], running: Mapping[str, int]) -> int:
    """Return by how much the need grows where each task that is not kept is read while what is before it runs."""
    need, before, most_running = 0, None, 0
    for task in tasks:
        if task.id not in kept:
            pair = [task] if before is None else [before, task]
            need = max(need, most_running + loaded_nbytes(pair))
            before, most_running = task, 0
        most_running = max(most_running, running[task.id])
    return need - _transient_need(tasks, kept, running)


def _total(tasks: Sequence[Task], ids: Collection[str]) -> int:
    return sum(task.weight_nbytes for task in tasks if task.id in ids)
