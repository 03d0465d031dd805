"""What cuts of the running order cost: all of them at once, for strategies that look at every one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyps_passes.objectives import Floats, Objective, latency_terms
from hyps_passes.problem import Problem


@dataclass(frozen=True, slots=True)
class Cuts:
    """The additive terms of a pipeline over given machines, by the position of its cuts.

    Position p is the border behind the first p tasks: 0 sends the request's own tensors.
    """

    layers: Floats
    """`[position, stage]`: the tasks before the position, were they all in the stage."""
    banned: Floats
    """`[position, stage]`: how many of them must not be."""
    hops: Floats
    """`[position, hop]`: handing on what crosses there."""
    fixed: Floats
    """`[stage]`: what is due once the stage is the last."""
    entry_run: float
    """What is not due where the entry has no tasks."""

    def none(self) -> float:
        """Return the score of everything at the entry; only of terms over the entry alone."""
        return float(self._head(0)[-1] + self.fixed[0])

    def two(self) -> Floats:
        """Return the score of each position where the first machine hands over to the second; inf behind everything."""
        scores: Floats = self._until_cut() + self._tail(1) + self.fixed[1]
        scores[-1] = np.inf
        return scores

    def three(self) -> Floats:
        """Return `[first, second]`: the score of two cuts; inf where the second is not behind the first."""
        last = self.hops[:, 1] + self._tail(2) + self.fixed[2]
        scores: Floats = self._until_cut()[:, None] + self._between(1) + last[None, :]
        scores[np.tril_indices_from(scores)] = np.inf
        scores[:, -1] = np.inf
        return scores

    def _until_cut(self) -> Floats:
        """The tasks before each position on the first machine, and what crosses there."""
        scores: Floats = self._head(0) + self.hops[:, 0]
        scores[0] -= self.entry_run
        return scores

    def _head(self, stage: int) -> Floats:
        return np.where(self.banned[:, stage] > 0, np.inf, self.layers[:, stage])

    def _tail(self, stage: int) -> Floats:
        is_banned = self.banned[-1, stage] > self.banned[:, stage]
        return np.where(is_banned, np.inf, self.layers[-1, stage] - self.layers[:, stage])

    def _between(self, stage: int) -> Floats:
        """`[first, last]`: the tasks between two positions."""
        is_banned = self.banned[None, :, stage] > self.banned[:, None, stage]
        return np.where(is_banned, np.inf, self.layers[None, :, stage] - self.layers[:, None, stage])


def measure_cuts(problem: Problem, objective: Objective, machines: Sequence[int]) -> Cuts:
    """Return what cuts over these machines cost by the objective, or by latency where it is no sum.

    Args:
        problem: what is to be placed.
        objective: what is to be small.
        machines: the entry first, each once.
    """
    make = objective.terms or latency_terms
    terms = make(problem, machines)
    quiet = [replace(m, run_s=0.0) if i == problem.entry else m for i, m in enumerate(problem.machines)]
    without = make(replace(problem, machines=tuple(quiet)), machines)
    banned = np.isinf(terms.layers)
    return Cuts(
        layers=_before(np.where(banned, 0.0, terms.layers)),
        banned=_before(banned.astype(np.float64)),
        hops=crossing_costs(problem, terms.hops),
        fixed=terms.fixed,
        entry_run=float(terms.fixed[0] - without.fixed[0]),
    )


def crossing_costs(problem: Problem, hops: Floats) -> Floats:
    """Return `[position, hop]`: what all flows that cross a position cost together, from what each costs."""
    endless = np.isinf(hops)
    finite = _crossing_sums(problem, np.where(endless, 0.0, hops))
    return np.where(_crossing_sums(problem, endless.astype(np.float64)) > 0.5, np.inf, finite)


def crossing_counts(problem: Problem) -> Floats:
    """Return how many flows cross each position."""
    return _crossing_sums(problem, np.ones((len(problem.flows), 1)))[:, 0]


def crossing_bytes(problem: Problem) -> Floats:
    """Return the bytes that cross each position; inf where something must not."""
    nbytes = [[flow.nbytes if flow.can_cross else np.inf] for flow in problem.flows]
    return crossing_costs(problem, np.array(nbytes, dtype=np.float64).reshape(len(problem.flows), 1))[:, 0]


def _before(values: Floats) -> Floats:
    """Return the sums of all rows before each position."""
    return np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])


def _crossing_sums(problem: Problem, values: Floats) -> Floats:
    change = np.zeros((len(problem.tasks) + 1, values.shape[1]))
    for index, flow in enumerate(problem.flows):
        if flow.consumers:
            change[flow.producer + 1] += values[index]
            change[flow.consumers[-1] + 1] -= values[index]
    return np.cumsum(change, axis=0)
