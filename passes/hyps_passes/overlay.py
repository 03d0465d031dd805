"""Several placements of one model at once: the blocks of layers that no placement separates."""

from collections.abc import Sequence
from dataclasses import dataclass

from hyps_passes.assignment import Assignment, Stage
from hyps_passes.problem import Problem


@dataclass(frozen=True, slots=True)
class Overlay:
    """Blocks of layers, in an order in which they can run, and every placement in terms of them."""

    blocks: tuple[tuple[int, ...], ...]
    """Tasks, ascending in each."""
    placements: tuple[Assignment, ...]
    """One for each assignment that was given; its stages are blocks, in an order in which this placement runs them."""
    machines: tuple[tuple[tuple[int, ...], ...], ...]
    """`machines[placement][block]`: where the block runs."""

    @property
    def order(self) -> list[int]:
        """All tasks, block by block."""
        return [task for block in self.blocks for task in block]


def overlay(problem: Problem, assignments: Sequence[Assignment]) -> Overlay:
    """Return the fewest blocks of which every assignment's stages consist.

    Stages never fall along an edge in any of the assignments, so blocks sorted by the stages that hold them can run in
    that order.
    """
    stage_of = [
        {task: index for index, stage in enumerate(assignment.stages) for task in stage.tasks}
        for assignment in assignments
    ]
    members: dict[tuple[int, ...], list[int]] = {}
    for task in range(len(problem.tasks)):
        members.setdefault(tuple(stages[task] for stages in stage_of), []).append(task)
    keys = sorted(members)
    blocks = tuple(tuple(members[key]) for key in keys)
    placements, machines = [], []
    for which, assignment in enumerate(assignments):
        where = [assignment.stages[key[which]].machines for key in keys]
        order = sorted(range(len(keys)), key=lambda block: (keys[block][which], keys[block]))
        stages = [Stage(where[block], blocks[block]) for block in order]
        if assignment.is_pipeline and (not stages or stages[0].machine != problem.entry):
            stages.insert(0, Stage((problem.entry,), ()))
        placements.append(Assignment(tuple(stages), assignment.is_pipeline))
        machines.append(tuple(where))
    return Overlay(blocks, tuple(placements), tuple(machines))
