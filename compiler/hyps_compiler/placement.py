"""Divides a model among the devices of a cluster: searches the placement, and says it as partitions and variants."""

from collections.abc import Sequence
from dataclasses import dataclass

from hyps.errors import InfeasibleError, UsageError, printable
from hyps.formats.plan import Partition, Prediction, Regime, Variant
from hyps_compiler.clusters import Site
from hyps_compiler.partition import Division, cut_at
from hyps_passes.assignment import Assignment
from hyps_passes.estimate import estimate, partition_seconds, violations
from hyps_passes.found import Found
from hyps_passes.graph import CutGraph, reordered
from hyps_passes.objectives import OBJECTIVES, Objective
from hyps_passes.overlay import Overlay, overlay
from hyps_passes.problem import Problem, channel_name
from hyps_passes.searches.pipeline_dp import best_consecutive
from hyps_passes.searches.regimes import CutRegion, best_intervals, cut_regions
from hyps_passes.strategies import STRATEGIES
from hyps_passes.strategies.strategy import Settings

BEST = "best"
"""Name of the variant that is best for the cluster as its file describes it."""

_MOST_MACHINES = 5
"""With replicas every sequence of every grouping of the machines is tried."""


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """How the model is to be placed."""

    site: Site
    objective: str = "latency"
    strategy: str = "exact"
    general: bool = False
    """Whether stages may run side by side."""
    time_limit_s: float = 30.0
    is_adaptive: bool = False
    """Whether a plan for two devices gets the variants that are best at other bandwidths and loads. All variants share
    partitions, so that each is cut where any of them is."""
    batches: tuple[int, ...] = (1,)
    has_replicas: bool = False
    """Whether a stage may run on several devices, each of which takes some of the requests."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A division for a cluster, and where its partitions run."""

    division: Division
    found: Found
    problem: Problem
    """The layers in the order of the graph before the division."""
    covered: Overlay
    names: tuple[str, ...]
    """Of the variants."""
    regions: tuple[tuple[int, tuple[CutRegion, ...]], ...]
    """By batch, where the plan is adaptive."""
    serialize_s_per_byte: float
    request: PlacementRequest

    def variants(self, partitions: Sequence[Partition]) -> tuple[Variant, ...]:
        """Return the placement of the written partitions, which are the blocks in their order."""
        return tuple(self._variant(index, partitions) for index in range(len(self.names)))

    def regimes(self) -> tuple[Regime, ...]:
        """Return which variant is best when."""
        return tuple(
            _regime(self.names[self._place(region)], batch, region, self.serialize_s_per_byte)
            for batch, regions in self.regions
            for region in regions
        )

    def _variant(self, index: int, partitions: Sequence[Partition]) -> Variant:
        names = [machine.name for machine in self.problem.machines]
        where = dict(zip((part.id for part in partitions), self.covered.machines[index], strict=True))
        return Variant(
            name=self.names[index],
            placement={part: names[machines[0]] for part, machines in where.items()},
            replicas={p: tuple(names[m] for m in machines[1:]) for p, machines in where.items() if len(machines) > 1},
            prediction=self._prediction(index, partitions),
            bytes_per_s=self._interval(index),
        )

    def _prediction(self, index: int, partitions: Sequence[Partition]) -> Prediction:
        problem, assignment = self.problem, self.covered.placements[index]
        told = estimate(problem, assignment)
        id_of = {block: part.id for block, part in zip(self.covered.blocks, partitions, strict=True)}
        seconds = partition_seconds(problem, assignment)
        is_bound = index == 0 and self.request.objective == "latency" and self.found.bound > 0
        return Prediction(
            latency_s=told.latency_s,
            throughput_rps=told.throughput_rps,
            lower_bound_s=self.found.bound if is_bound else None,
            bound_over=self.found.space if is_bound else None,
            batch=self.request.batches[0],
            memory_bytes={m.name: b for m, b in zip(problem.machines, told.peak_bytes, strict=True) if b},
            link_bytes={
                channel_name(problem, channel.source, channel.target): nbytes
                for channel, nbytes in zip(problem.channels, told.channel_bytes, strict=True)
                if nbytes
            },
            energy_joules=told.joules if any(machine.active_w for machine in problem.machines) else None,
            partition_s={
                id_of[stage.tasks]: value
                for stage, value in zip(assignment.stages, seconds, strict=True)
                if stage.tasks
            },
        )

    def _interval(self, index: int) -> tuple[float, float | None] | None:
        for batch, regions in self.regions:
            if batch == 1:
                intervals = best_intervals(regions, serialize_s_per_byte=self.serialize_s_per_byte)
                for region in regions:
                    if self._place(region) == index and region.cost.key in intervals:
                        return intervals[region.cost.key]
        return None

    def _place(self, region: CutRegion) -> int:
        """Return the variant that runs the region's cut."""
        key = _tasks_away(region.assignment, self.problem)
        return next(
            index
            for index, assignment in enumerate(self.covered.placements)
            if _tasks_away(assignment, self.problem) == key
        )


def place(graph: CutGraph, rewrites: tuple[str, ...], request: PlacementRequest) -> Placed:
    """Return the best division of the layers among the devices, by the strategy that was asked for.

    Raises:
        InfeasibleError: the constraints cannot be met; names the one that binds and the smallest relaxation.
        UsageError: the strategy or objective is unknown.
    """
    problem = request.site.problem(graph, request.batches[0])
    objective = objective_of(request.objective)
    found = search(problem, objective, request)
    assignments, names = _distinct(problem, found.assignment, _regions(graph, problem, request))
    covered = overlay(problem, assignments)
    _require_kept(problem, covered)
    regions = _regions(graph, problem, request, covered.placements)
    ends = [len(block) for block in covered.blocks]
    borders = [sum(ends[: index + 1]) - 1 for index in range(len(ends) - 1)]
    division = cut_at(reordered(graph, covered.order), borders, rewrites, f"{request.strategy}, {request.objective}")
    serialize = _serialize_s_per_byte(request.site)
    return Placed(division, found, problem, covered, names, regions, serialize, request)


def objective_of(name: str) -> Objective:
    """Return the objective of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in OBJECTIVES:
        raise UsageError(f"no objective is called `{printable(name)}`", f"choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def search(problem: Problem, objective: Objective, request: PlacementRequest) -> Found:
    """Return what the strategy finds.

    Raises:
        InfeasibleError: it finds nothing that keeps the constraints.
        UsageError: there is no such strategy.
    """
    if request.strategy not in STRATEGIES:
        raise UsageError(
            f"no strategy is called `{printable(request.strategy)}`", f"choose one of {', '.join(STRATEGIES)}"
        )
    settings = Settings(time_limit_s=request.time_limit_s, general=request.general)
    found = STRATEGIES[request.strategy].place(problem, objective, settings)
    if request.has_replicas:
        found = _replicated(problem, objective, request) or found
    if isinstance(found, Found):
        return found
    from hyps_passes.searches.relaxation import relaxations  # rarely needed, and its solver takes long to load

    told = relaxations(problem, objective, time_limit_s=request.time_limit_s)
    if request.general:
        of_pipelines = f"; of pipelines: {told.message}" if told else ""
        raise InfeasibleError(
            f"no placement that keeps the constraints was found in time{of_pipelines}", told.hint if told else ""
        )
    raise InfeasibleError(
        told.message if told else f"strategy `{request.strategy}`: {found.reason}", told.hint if told else ""
    )


def _replicated(problem: Problem, objective: Objective, request: PlacementRequest) -> Found | None:
    """Return the best pipeline whose stages may run on several machines; a stage on one alone is such a pipeline too.

    Raises:
        UsageError: it is not about throughput, or the machines are too many.
    """
    is_exact = request.strategy == "exact" and not request.general and not request.is_adaptive
    if not is_exact or request.objective != "throughput":
        raise UsageError(
            "--replicas is about the throughput of pipelines, by the strategy `exact`",
            "give --objective throughput, or leave it out",
        )
    if len(problem.machines) > _MOST_MACHINES:
        raise UsageError(
            f"--replicas is for at most {_MOST_MACHINES} devices and there are {len(problem.machines)}", "leave it out"
        )
    return best_consecutive(problem, objective, replicas=True)


def _regions(
    graph: CutGraph, problem: Problem, request: PlacementRequest, only: Sequence[Assignment] | None = None
) -> tuple[tuple[int, tuple[CutRegion, ...]], ...]:
    """Return what is best at any bandwidth and load, by batch; none where the plan is not adaptive.

    With `only`, of these: the plan's variants, as its partitions make them.

    Raises:
        UsageError: there are not two devices, or something else than the latency of pipelines is asked for.
    """
    if not request.is_adaptive:
        return ()
    is_table = request.strategy == "exact" and request.objective == "latency" and not request.general
    if len(problem.machines) != 2 or not is_table:
        raise UsageError(
            "--adaptive is about the latency of cuts between two devices, by the strategy `exact`", "leave it out"
        )
    found = []
    for batch in request.batches:
        unloaded = request.site.unloaded().problem(graph, batch)
        regions = cut_regions(unloaded, only=only, serialize_s_per_byte=_serialize_s_per_byte(request.site))
        if regions:
            found.append((batch, regions))
    return tuple(found)


def _require_kept(problem: Problem, covered: Overlay) -> None:
    """Refuse variants whose borders make the best placement break a limit.

    Raises:
        InfeasibleError: names the limit.
    """
    best = covered.placements[0]
    broken = violations(problem, estimate(problem, best), best)
    if broken:
        raise InfeasibleError(
            f"cut where other variants are cut as well, the best placement breaks a limit: {broken[0]}",
            "leave --adaptive out",
        )


def _serialize_s_per_byte(site: Site) -> float:
    """Return what messages cost beside the wire, of the one link that two devices have."""
    links = site.cluster.links
    return links[0].serialize_s_per_byte if links else 0.0


def _distinct(
    problem: Problem, best: Assignment, regions: Sequence[tuple[int, Sequence[CutRegion]]]
) -> tuple[list[Assignment], tuple[str, ...]]:
    """Return the best placement and all that are best somewhere, each once, with names."""
    assignments, names = [best], [BEST]
    seen = {_tasks_away(best, problem)}
    for _, of_batch in regions:
        for region in sorted(of_batch, key=lambda region: len(region.cost.key)):
            if region.cost.key not in seen:
                seen.add(region.cost.key)
                assignments.append(region.assignment)
                names.append(_variant_name(problem, region.assignment, names))
    return assignments, tuple(names)


def _variant_name(problem: Problem, assignment: Assignment, taken: Sequence[str]) -> str:
    away = _tasks_away(assignment, problem)
    if not away:
        return "local"
    if len(away) == len(problem.tasks):
        return "remote"
    return f"split{sum(name.startswith('split') for name in taken) + 1}"


def _tasks_away(assignment: Assignment, problem: Problem) -> tuple[int, ...]:
    return tuple(sorted(task for stage in assignment.stages if stage.machine != problem.entry for task in stage.tasks))


def _regime(variant: str, batch: int, region: CutRegion, serialize_s_per_byte: float) -> Regime:
    """Return the region in terms of the wire alone: what serialization takes per byte does not change with it."""
    cost = region.cost
    return Regime(
        variant=variant,
        batch=batch,
        fixed_s=cost.constant + cost.slope_x * serialize_s_per_byte,
        wire_bytes=cost.slope_x,
        server_s=cost.slope_y,
        corners=tuple((max(0.0, x - serialize_s_per_byte), y) for x, y in region.corners),
    )
