"""Pipelines of consecutive stages over machines with limits: an exact dynamic program over cuts and machine sequences.

As PipeEdge (Hu et al., PipeEdge: Pipeline Parallelism for Large-Scale Model Inference on Heterogeneous Edge Devices,
2022) it goes over cut points and subsets of machines, here in every order; but for any objective, and with limits on
sums (deadline, joules, bytes) too: a partial pipeline is dropped only where another one is better in every amount that
counts, or where even the best continuation of each amount breaks a limit or beats nothing.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyps_passes.assignment import Assignment, Stage
from hyps_passes.estimate import estimate
from hyps_passes.found import Found, Space
from hyps_passes.objectives import Objective
from hyps_passes.problem import Problem
from hyps_passes.searches.dominance import nondominated, nondominated_by_group
from hyps_passes.searches.goals import SLACK, Cap, Goal, amount, caps_of, goal_of, keeps
from hyps_passes.searches.pipeline_costs import CutCosts, Floats, Groups, SequenceCosts, wait_s

_MOST_LABELS = 100_000
"""Partial pipelines of one stage that are kept; beyond, the promising ones, and the result is no longer proven."""
_BLOCK = 2_000_000
"""Numbers of one step of vector arithmetic: bounds memory."""

_SUMS = frozenset({"latency", "energy", "bytes", "bytes of"})


@dataclass(frozen=True, slots=True)
class Consecutive:
    """The best pipeline of consecutive stages."""

    assignment: Assignment
    score: float
    bound: float
    """No pipeline of consecutive stages scores below."""


def best_consecutive(problem: Problem, objective: Objective, *, replicas: bool = False) -> Found | None:
    """Return the best pipeline of consecutive stages that keeps the limits, or None where there is none.

    Args:
        problem: what to place.
        objective: what to make small.
        replicas: whether a stage may run on several machines, for throughput. Many more sequences then: for clusters
            of up to five machines.
    """
    best = search(problem, goal_of(objective), caps_of(problem), replicas=replicas)
    if best is None:
        return None
    told = estimate(problem, best.assignment)
    where = "in replicated consecutive stages" if replicas else "in consecutive stages"
    reason = f"the best {where} over {len(problem.machines)} machines, by dynamic programming"
    space: Space = "replicated pipelines" if replicas else "consecutive pipelines"
    return Found(best.assignment, told, best.score, best.bound, space, reason)


def search(problem: Problem, goal: Goal, caps: Sequence[Cap], *, replicas: bool = False) -> Consecutive | None:
    """Return the best consecutive pipeline under the limits given; those of the problem itself do not count."""
    if not problem.tasks:
        return None
    costs = CutCosts(problem)
    best: Consecutive | None = None
    bound = math.inf
    for groups in sequences(problem, replicas=replicas):
        program = _Program(SequenceCosts(costs, groups), goal, caps)
        label = program.best(best.score if best else math.inf)
        bound = min(bound, program.bound)
        if label is None:
            continue
        assignment = label.assignment(groups)
        told = estimate(problem, assignment)
        if not keeps(problem, caps, told, assignment):  # a limit met to the last digit
            bound = min(bound, label.score)
            continue
        score = amount(problem, goal, told, assignment)
        if best is None or score < best.score:
            best = Consecutive(assignment, score, score)
    if best is None:
        return None
    return Consecutive(best.assignment, best.score, min(bound, best.score))


def sequences(problem: Problem, *, replicas: bool = False) -> Iterator[Groups]:
    """Yield the machines of the stages in every order, the entry first, those with few machines first."""
    if replicas:
        yield from sorted(_replicated(problem), key=lambda groups: (sum(map(len, groups)), len(groups), groups))
        return
    others = [m for m in range(len(problem.machines)) if m != problem.entry]
    for count in range(len(others) + 1):
        for sequence in itertools.permutations(others, count):
            yield ((problem.entry,), *((machine,) for machine in sequence))


def front(problem: Problem, goals: Sequence[Goal], caps: Sequence[Cap]) -> list[Assignment] | None:
    """Return consecutive pipelines among which is one for each best trade between the goals, or None: too many.

    Nothing is better than all of them in one goal without being worse in another. Among those returned may be some
    that others, over other machines, beat.
    """
    costs = CutCosts(problem)
    found = []
    for groups in sequences(problem):
        program = _Program(SequenceCosts(costs, groups), goals[0], caps, goals[1:])
        labels = program.all_best()
        if labels is None:
            return None
        found += [label.assignment(groups) for label in labels]
    return found


def _replicated(problem: Problem) -> Iterator[Groups]:
    entry = problem.entry
    machines = range(len(problem.machines))
    for count in range(1, len(machines) + 1):
        for used in itertools.combinations(machines, count):
            for groups in _ordered_groups(used):
                if groups[0][0] == entry:
                    yield groups
                elif entry not in [group[0] for group in groups]:
                    yield ((entry,), *groups)


def _ordered_groups(machines: tuple[int, ...]) -> Iterator[Groups]:
    """Yield all ways to divide machines into groups in a row, each with every one of its machines as the first."""
    if not machines:
        yield ()
    for count in range(1, len(machines) + 1):
        for chosen in itertools.combinations(machines, count):
            rest = tuple(m for m in machines if m not in chosen)
            for leader in chosen:
                group = (leader, *(m for m in chosen if m != leader))
                for groups in _ordered_groups(rest):
                    yield (group, *groups)


@dataclass(frozen=True, slots=True)
class _Label:
    """A whole pipeline: where its stages end."""

    score: float
    ends: tuple[int, ...]

    def assignment(self, groups: Groups) -> Assignment:
        starts = (0, *self.ends[:-1])
        members = [tuple(range(a, b)) for a, b in zip(starts, self.ends, strict=True)]
        return Assignment(tuple(Stage(group, tasks) for group, tasks in zip(groups, members, strict=True)))


@dataclass(frozen=True, slots=True)
class _Partials:
    """Pipelines as far as one stage, one a row."""

    ends: npt.NDArray[np.intp]
    """Where the stage ends."""
    amounts: Floats
    """By row and column of the program."""
    parents: npt.NDArray[np.intp]
    """Rows of the stage before."""


class _Program:
    """The dynamic program of one sequence of machines.

    Its columns are the amounts that partial pipelines are compared by: the goal, other goals, limits on sums that may
    be broken, and the load of channels that several hops share.
    """

    def __init__(self, sequence: SequenceCosts, goal: Goal, caps: Sequence[Cap], others: Sequence[Goal] = ()) -> None:
        self.problem = sequence.problem
        self.bound = math.inf
        """No pipeline over these machines scores below, where that is not what `best` returned."""
        self.goals = tuple(dict.fromkeys([goal, *others]))
        self.caps = [cap for cap in caps if _adds_up(cap.goal, sequence)]
        masks = _masks(sequence, [cap for cap in caps if cap not in self.caps])
        self.columns = list(dict.fromkeys([*self.goals, *(cap.goal for cap in self.caps)]))
        needs_loads = self.problem.arrival_rps or any(column.kind == "throughput" for column in self.columns)
        self.channels = list(sequence.shared) if needs_loads else []
        self.values = [self._table(sequence, stage, mask) for stage, mask in enumerate(masks)]
        self.lower = self._completions(largest=False)
        self.is_possible = sequence.is_connected and bool(np.isfinite(self.lower[0][0, 0]))
        if self.is_possible:
            self._forget_what_never_matters()

    def best(self, incumbent: float) -> _Label | None:
        """Return the best pipeline over these machines; None where there is none that scores below `incumbent`."""
        if not self.is_possible:
            return None
        least = self._finished(self.lower[0][:, :1])
        if least[0, 0] >= incumbent or not self._is_kept(least)[0]:
            return None
        greedy = self._traced()
        if greedy is not None and greedy.score < incumbent:
            if greedy.score <= least[0, 0]:
                return greedy
            incumbent = greedy.score
        else:
            greedy = None
        partials, is_complete = self._partials(incumbent)
        if not is_complete:
            self.bound = float(least[0, 0])
        scores = self._finished(partials[-1].amounts.T)[0]
        if not len(scores):
            return greedy
        row = int(np.argmin(scores))
        return _Label(float(scores[row]), _ends(partials, row))

    def all_best(self) -> list[_Label] | None:
        """Return a pipeline for each trade between the goals that none over these machines beats; None: too many."""
        if not self.is_possible:
            return []
        partials, is_complete = self._partials(math.inf)
        if not is_complete:
            return None
        finished = self._finished(partials[-1].amounts.T)[: len(self.goals)]
        return [_Label(float(finished[0, row]), _ends(partials, int(row))) for row in nondominated(finished.T)]

    def _table(self, sequence: SequenceCosts, stage: int, mask: npt.NDArray[np.bool_]) -> Floats:
        rows = [sequence.values(stage, column) for column in self.columns]
        rows += [sequence.shared_load(stage, channel) for channel in self.channels]
        values = np.array(rows)
        return np.where(mask & np.isfinite(values).all(axis=0), values, math.inf)

    def _added(self, amounts: Floats, more: Floats) -> Floats:
        """Return amounts, by column first, with more added to them; infinite stays so."""
        added = np.empty(np.broadcast_shapes(amounts.shape, more.shape))
        for index in range(len(added)):
            is_sum = index >= len(self.columns) or self.columns[index].kind in _SUMS
            (np.add if is_sum else np.maximum)(amounts[index], more[index], out=added[index])
        return added

    def _completions(self, *, largest: bool) -> list[Floats]:
        """Return by stage, column and beginning the least (largest) that the stage and all behind it add.

        Each column by itself: no pipeline need have all of them at once.
        """
        rest = np.zeros((len(self.columns) + len(self.channels), 1))
        found = []
        for values in reversed(self.values):
            if largest:
                is_barred = np.isinf(values) | np.isinf(rest[:, None, :])
                added = self._added(*(np.where(is_barred, 0, part) for part in (values, rest[:, None, :])))
                rest = np.where(is_barred, -math.inf, added).max(axis=2)
            else:
                rest = self._added(values, rest[:, None, :]).min(axis=2)
            found.append(rest)
        return found[::-1]

    def _forget_what_never_matters(self) -> None:
        """Leave out limits that the worst pipeline keeps, and channels that are never the busiest."""
        most = self._finished(self._completions(largest=True)[0][:, :1])
        kept = [i for i, c in enumerate(self.columns) if c in self.goals or not self._is_slack(c, most[i, 0])]
        loads = range(len(self.columns), len(self.columns) + len(self.channels))
        if not self.problem.arrival_rps and all(self.columns[i].kind != "throughput" for i in kept):
            loads = range(0)
        rows = [*kept, *loads]
        self.channels = [self.channels[i - len(self.columns)] for i in loads]
        self.columns = [self.columns[i] for i in kept]
        self.caps = [cap for cap in self.caps if cap.goal in self.columns]
        self.values = [values[rows] for values in self.values]
        self.lower = [lower[rows] for lower in self.lower]

    def _is_slack(self, column: Goal, most: float) -> bool:
        return all(cap.allows(most) for cap in self.caps if cap.goal == column)

    def _finished(self, amounts: Floats) -> Floats:
        """Return what whole pipelines need, by column first, of what their stages have added up."""
        finished, loads = amounts[: len(self.columns)].copy(), amounts[len(self.columns) :]
        for index, column in enumerate(self.columns):
            if column.kind == "throughput" and len(loads):
                finished[index] = np.maximum(finished[index], loads.max(axis=0))
            if column.kind == "latency" and self.problem.arrival_rps and len(loads):
                finished[index] += wait_s(self.problem.arrival_rps, loads).sum(axis=0)
        return finished

    def _is_kept(self, finished: Floats) -> npt.NDArray[np.bool_]:
        kept = np.ones(finished.shape[1:], bool)
        for cap in self.caps:
            kept &= finished[self.columns.index(cap.goal)] <= cap.most * SLACK
        return kept

    def _traced(self) -> _Label | None:
        """Return the pipeline that is best where the goal adds up stage by stage, if it keeps the limits."""
        amounts = np.zeros((len(self.columns) + len(self.channels), 1))
        start, ends = 0, []
        for stage, values in enumerate(self.values):
            rest = self.lower[stage + 1] if stage + 1 < len(self.values) else np.zeros((len(amounts), 1))
            added = self._added(values[:, start], amounts)
            chosen = int(np.argmin(self._added(added, rest)[0]))
            amounts = added[:, chosen : chosen + 1]
            start = chosen if stage + 1 < len(self.values) else len(self.problem.tasks)
            ends.append(start)
        finished = self._finished(amounts)
        return _Label(float(finished[0, 0]), tuple(ends)) if self._is_kept(finished)[0] else None

    def _partials(self, incumbent: float) -> tuple[list[_Partials], bool]:
        """Return the pipelines worth keeping behind each stage, and whether all of them were kept."""
        count = len(self.columns) + len(self.channels)
        before = _Partials(np.zeros(1, np.intp), np.zeros((1, count)), np.zeros(1, np.intp))
        found: list[_Partials] = []
        is_complete = True
        for stage, values in enumerate(self.values):
            rest = self.lower[stage + 1] if stage + 1 < len(self.values) else np.zeros((count, 1))
            rows = max(1, _BLOCK // (count * values.shape[2]))
            blocks = [
                self._extended(before, np.arange(i, min(i + rows, len(before.ends))), values, rest, incumbent)
                for i in range(0, len(before.ends), rows)
            ]
            joined = _joined(blocks, count)
            kept = nondominated_by_group(joined.ends, joined.amounts)
            if len(kept) > _MOST_LABELS:
                is_complete = False
                hopes = self._finished(self._added(joined.amounts[kept].T, rest[:, joined.ends[kept]]))[0]
                kept = kept[np.argsort(hopes, kind="stable")[:_MOST_LABELS]]
            before = _Partials(joined.ends[kept], joined.amounts[kept], joined.parents[kept])
            found.append(before)
        last = found[-1]
        found[-1] = _Partials(np.full_like(last.ends, len(self.problem.tasks)), last.amounts, last.parents)
        return found, is_complete

    def _extended(
        self, before: _Partials, rows: npt.NDArray[np.intp], values: Floats, rest: Floats, incumbent: float
    ) -> _Partials:
        """Return the partial pipelines of some rows, one stage longer, that may still become the best."""
        added = self._added(values[:, before.ends[rows]], before.amounts[rows].T[:, :, None])
        hopes = self._finished(self._added(added, rest[:, None, :]))
        parents, ends = np.nonzero(self._is_kept(hopes) & (hopes[0] < incumbent))
        return _Partials(ends, added[:, parents, ends].T, rows[parents])


def _adds_up(goal: Goal, sequence: SequenceCosts) -> bool:
    """Whether several stages decide on an amount together; else each keeps its limit by itself."""
    return goal.kind in _SUMS or (goal.kind == "throughput" and bool(sequence.shared))


def _masks(sequence: SequenceCosts, caps: Sequence[Cap]) -> list[npt.NDArray[np.bool_]]:
    masks = [sequence.is_allowed(stage) for stage in range(len(sequence.groups))]
    for stage, mask in enumerate(masks):
        for cap in caps:
            mask &= sequence.values(stage, cap.goal) <= cap.most * SLACK
    return masks


def _joined(blocks: Sequence[_Partials], columns: int) -> _Partials:
    if not blocks:
        return _Partials(np.zeros(0, np.intp), np.zeros((0, columns)), np.zeros(0, np.intp))
    return _Partials(
        np.concatenate([block.ends for block in blocks]),
        np.concatenate([block.amounts for block in blocks]),
        np.concatenate([block.parents for block in blocks]),
    )


def _ends(partials: Sequence[_Partials], row: int) -> tuple[int, ...]:
    ends = []
    for stage in reversed(partials):
        ends.append(int(stage.ends[row]))
        row = int(stage.parents[row])
    return tuple(reversed(ends))
