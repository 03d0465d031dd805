"""Spreads tasks over ordered tiers at the least additive cost: one minimum cut, proven by the maximum flow.

Two tiers are the minimum s-t cut of DADS (Hu et al., Dynamic Adaptive DNN Surgery for Inference Acceleration on the
Edge, INFOCOM 2019), with a tensor that has several consumers paid once. More tiers are Ishikawa's construction for
ordered labels (Exact Optimization for Markov Random Fields with Convex Priors, 2003): a task has one node per hop
between tiers, on the source's side of the cut where the task runs before that hop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hyps.errors import InternalError
from hyps_passes.searches.solver import require_solver

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

REQUEST = -1
"""Stands for the request: the producer of the model's inputs, on tier 0."""

_SOURCE, _SINK, _FIRST_NODE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Flows:
    """The tensors between tasks, and what each costs where it crosses from a tier to the next."""

    producers: Integers
    """By flow: a task, or REQUEST."""
    consumers: Integers
    """Tasks; those of flow f are `consumers[offsets[f] : offsets[f + 1]]`."""
    offsets: Integers
    hop_costs: Floats
    """By flow and hop (hop t leads from tier t to t + 1): 0 or more, infinite where the flow cannot cross."""

    @classmethod
    def of(cls, producers: Sequence[int], consumers: Sequence[Sequence[int]], hop_costs: npt.ArrayLike) -> "Flows":
        """Return flows from the consumers of each."""
        counts = [len(tasks) for tasks in consumers]
        return cls(
            np.array(producers, np.int64),
            np.array([task for tasks in consumers for task in tasks], np.int64),
            np.cumsum([0, *counts], dtype=np.int64),
            np.asarray(hop_costs, np.float64),
        )

    def by_consumer(self) -> Integers:
        """Return the flow of each entry of `consumers`."""
        return np.repeat(np.arange(len(self.producers)), np.diff(self.offsets))


@dataclass(frozen=True, slots=True)
class TierCut:
    """The best tiers of all tasks."""

    tiers: Integers
    """By task."""
    cost: float
    """Calculated from the tiers alone, as `tier_cost` does."""
    bound: float
    """What no tiers cost less than: the maximum flow. It is the cost, but for the rounding of floats."""


@dataclass(frozen=True, slots=True)
class Network:
    """Arcs of a flow network whose cuts cost what tiers cost; an infinite capacity forbids the cut."""

    nodes: int
    tails: Integers
    heads: Integers
    capacities: Floats


@dataclass(frozen=True, slots=True)
class Capacities:
    """Capacities as integers: multiples of 2 ** -exponent."""

    integers: Integers
    infinite: int
    """Stands for infinity: above the sum of all others."""
    exponent: int
    error: float
    """The most that rounding can have changed any cut by."""


def tier_cut(seconds: Floats, flows: Flows) -> TierCut | None:
    """Return the tiers of least cost that never fall from the producer of a flow to its consumers.

    The cost is that of every task on its tier, and of every flow at every hop that it crosses: its producer runs
    before the hop and a consumer behind it. It is paid once however many consumers there are. Costs are seconds or any
    other unit that adds up. Of several best cuts it is the one with every task on its lowest tier: work leaves the
    device only where that gains something.

    What else depends on the tiers is expressed in these terms:

    1. A model output must come back to tier 0: add its way back to the producer's `seconds` on all higher tiers.
    2. A cost of the highest tier in use (the latency of the way there; what running a partition there takes): a task
       behind all others that costs this much on each tier, and flows of no cost from all tasks that have no
       successor. Likewise of the lowest tier in use: a task before all others. With two tiers these are the costs that
       only a split pays, or only what is not split.

    Args:
        seconds: by task and tier; infinite where the task must not run there, negative where it gains.
        flows: the tensors between tasks.

    Returns:
        The best; None where bans and flows that cannot cross leave nothing.

    Raises:
        DependencyError: ortools is missing.
        ValueError: a cost is no number, or that of a hop is negative.
        InternalError: the flow found and the cut do not agree.
    """
    require_solver()
    _check(seconds, flows)
    if not np.isfinite(seconds).any(axis=1).all():
        return None
    if seconds.shape[1] == 1 or not len(seconds):
        cost = float(seconds.sum())
        return TierCut(np.zeros(len(seconds), np.int64), cost, cost)
    offsets = seconds.min(axis=1)
    network = cut_network(seconds - offsets[:, np.newaxis], flows)
    capacities = whole_capacities(network)
    flow, behind = minimum_cut(network, capacities)
    if flow >= capacities.infinite:
        return None
    tiers = behind[_task_nodes(seconds)].sum(axis=1)
    bound = float(offsets.sum()) + math.ldexp(flow, -capacities.exponent) - capacities.error
    cost = tier_cost(seconds, flows, tiers)
    if abs(cost - bound) > 2 * capacities.error + 1e-12 * _magnitude(offsets, network):
        raise InternalError(f"a cut of cost {cost!r} was found by a flow of value {bound!r}")
    return TierCut(tiers, cost, min(bound, cost))


def tier_cost(seconds: Floats, flows: Flows, tiers: Integers) -> float:
    """Return the cost of any tiers; infinite where they break a ban, or fall along a flow."""
    first = np.append(tiers, 0)[flows.producers]  # REQUEST, which is -1, finds the 0
    by_consumer = flows.by_consumer()
    if (tiers[flows.consumers] < first[by_consumer]).any():
        return math.inf
    last = first.copy()
    np.maximum.at(last, by_consumer, tiers[flows.consumers])
    hops = np.arange(seconds.shape[1] - 1)
    crosses = (first[:, np.newaxis] <= hops) & (hops < last[:, np.newaxis])
    return float(seconds[np.arange(len(tiers)), tiers].sum() + flows.hop_costs[crosses].sum())


def cut_network(seconds: Floats, flows: Flows) -> Network:
    """Return the network of costs of 0 or more: source 0, sink 1, then the nodes of the tasks, then those of flows."""
    nodes = _task_nodes(seconds)
    arcs = [_running(nodes, seconds), _ordered(nodes), _no_way_back(nodes, flows), *_crossing(nodes, flows)]
    tails, heads, capacities = (np.concatenate([part[i].ravel() for part in arcs]) for i in range(3))
    counts = capacities > 0
    node_count = _FIRST_NODE + nodes.size + flows.hop_costs.size
    return Network(node_count, tails[counts], heads[counts], capacities[counts])


def whole_capacities(network: Network) -> Capacities:
    """Round to the finest binary fraction with which all that leaves the source or the sink stays below 2 ** 62."""
    is_finite = np.isfinite(network.capacities)
    finite = network.capacities[is_finite]
    endless = int(np.count_nonzero(~is_finite & ((network.tails == _SOURCE) | (network.heads == _SINK))))
    exponent = 60 - (endless + 2).bit_length() - math.frexp(float(finite.sum()))[1]
    rounded = np.rint(np.ldexp(finite, exponent))
    integers = np.empty(len(is_finite), np.int64)
    integers[is_finite] = rounded
    infinite = int(integers[is_finite].sum()) + 1
    integers[~is_finite] = infinite
    error = float(np.abs(np.ldexp(rounded, -exponent) - finite).sum())
    return Capacities(integers, infinite, exponent, error)


def minimum_cut(network: Network, capacities: Capacities) -> tuple[int, npt.NDArray[np.bool_]]:
    """Return the value of the maximum flow, and the nodes on the sink's side of the minimum cut nearest to the sink.

    The flow is sent backwards, from the sink: the cut is the same, and on graphs with the fan-out of networks, tensors
    that shrink and a fast last tier it takes a quarter to a fiftieth of the time. The worst found that way is a chain
    of thousands of equal layers on three tiers, for which it grows with the square of the length.

    Raises:
        InternalError: ortools gave up.
    """
    from ortools.graph.python import max_flow

    solver: Any = max_flow.SimpleMaxFlow()
    solver.add_arcs_with_capacity(network.heads.astype(np.int32), network.tails.astype(np.int32), capacities.integers)
    status = solver.solve(_SINK, _SOURCE)
    if status != solver.OPTIMAL:
        raise InternalError(f"ortools gave up on a maximum flow: {status.name}")
    behind = np.zeros(network.nodes, bool)
    behind[solver.get_source_side_min_cut()] = True
    return int(solver.optimal_flow()), behind


def _check(seconds: Floats, flows: Flows) -> None:
    if np.isnan(seconds).any() or (seconds == -math.inf).any():
        raise ValueError("the seconds of a task are no number")
    if flows.hop_costs.shape != (len(flows.producers), seconds.shape[1] - 1):
        raise ValueError("hop costs must be by flow and hop")
    if not (flows.hop_costs >= 0).all():
        raise ValueError("the cost of a hop is negative or no number")


def _task_nodes(seconds: Floats) -> Integers:
    """Return the node of each task and hop."""
    tasks, tiers = seconds.shape
    return _FIRST_NODE + np.arange(tasks * (tiers - 1)).reshape(tasks, tiers - 1)


_Arcs: TypeAlias = tuple[Integers, Integers, Floats]
"""Tails, heads and capacities, of one shape."""


def _running(nodes: Integers, seconds: Floats) -> _Arcs:
    """From behind tier t to before it: cut where the task runs on tier t."""
    source, sink = (np.full((len(nodes), 1), end) for end in (_SOURCE, _SINK))
    return np.hstack([nodes, source]), np.hstack([sink, nodes]), seconds


def _ordered(nodes: Integers) -> _Arcs:
    """What runs before a hop runs before all later ones."""
    return _forbid(nodes[:, :-1], nodes[:, 1:])


def _no_way_back(nodes: Integers, flows: Flows) -> _Arcs:
    """A producer runs before each hop before which a consumer runs."""
    producers = flows.producers[flows.by_consumer()]
    made = producers != REQUEST
    return _forbid(nodes[flows.consumers[made]], nodes[producers[made]])


def _crossing(nodes: Integers, flows: Flows) -> list[_Arcs]:
    """Cut where the producer runs before a hop and a consumer behind it.

    A flow with one consumer, or that must not cross, has an arc to each consumer. Any other has a node of its own at
    every hop: the one arc to it is paid, the arcs from it to the consumers cannot be cut.
    """
    hops = nodes.shape[1]
    producers = np.where((flows.producers == REQUEST)[:, np.newaxis], _SOURCE, nodes[flows.producers])
    is_shared = (np.diff(flows.offsets) > 1)[:, np.newaxis] & (flows.hop_costs > 0) & np.isfinite(flows.hop_costs)
    own = _FIRST_NODE + nodes.size + np.arange(producers.size).reshape(-1, hops)
    by_consumer = flows.by_consumer()
    shared = is_shared[by_consumer]
    tails = np.where(shared, own[by_consumer], producers[by_consumer])
    paid = np.where(shared, math.inf, flows.hop_costs[by_consumer])
    return [
        (producers[is_shared], own[is_shared], flows.hop_costs[is_shared]),
        (tails, nodes[flows.consumers], paid),
    ]


def _forbid(tails: Integers, heads: Integers) -> _Arcs:
    return tails, heads, np.full(tails.shape, math.inf)


def _magnitude(offsets: Floats, network: Network) -> float:
    """Return the sum of all costs, for judging what rounding of floats can do."""
    finite = network.capacities[np.isfinite(network.capacities)]
    return float(np.abs(offsets).sum() + finite.sum())
