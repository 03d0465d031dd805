"""All sections of a report, one after another; what is missing is named with the option that would bring it."""

from collections.abc import Callable

from hyps.errors import HypsError, InfeasibleError, printable
from hyps.formats.quantities import counted, format_count, format_nbytes
from hyps_compiler.report.document import LoadMap, Memory, Report, Schedule, Splits
from hyps_compiler.report.layers import layers_of, partition_seconds
from hyps_compiler.report.load_map import BATCHES, load_map_of
from hyps_compiler.report.memory import memory_of
from hyps_compiler.report.partitions import partition_graph, shown
from hyps_compiler.report.schedule import local_schedule, simulated_schedule
from hyps_compiler.report.sources import Sources, single_batch, without_load
from hyps_compiler.report.splits import splits_of
from hyps_compiler.report.summary import facts_of

_WHOLE = "the model with --model MODEL"
_PROFILE = "what its layers take with --profile FILE (`hypsc profile MODEL -o FILE`)"
_CLUSTER = "the devices with --cluster FILE"


def gather(sources: Sources, step: Callable[[str], None], *, has_map: bool = True) -> Report:
    """Return everything that the page shows.

    Args:
        sources: what is known.
        step: told of what takes long.
        has_map: whether to simulate batch sizes and rates, which takes longest.
    """
    plan = sources.plan
    missing: dict[str, str] = {}
    seconds = _seconds(sources)
    layers = None if sources.layers is None else layers_of(plan, sources.layers, sources.profiles)
    if layers is None:
        missing["layers"] = f"Give {_WHOLE} to see its layers."
    elif not sources.profiles:
        missing["times"] = f"Give {_PROFILE} to see how long layers take."
    step("split points")
    splits = _splits(sources, missing)
    step("memory")
    memory = _memory(sources, seconds, missing)
    step("schedule")
    schedule = _schedule(sources, memory, missing)
    load_map = _load_map(sources, step, missing) if has_map else None
    if not has_map:
        missing["load_map"] = "Leave --no-map out to see latency by batch size and rate."
    weights = f"{format_count(plan.model.parameters)} parameters, {format_nbytes(plan.model.weight_bytes)} of weights"
    return Report(
        title=shown(plan.model.name),
        subtitle=f"{counted(len(plan.partitions), 'partition')} · {weights}",
        facts=facts_of(plan),
        graph=partition_graph(plan, seconds),
        layers=layers,
        splits=splits,
        memory=memory,
        schedule=schedule,
        load_map=load_map,
        missing=missing,
    )


def _seconds(sources: Sources) -> dict[str, float]:
    """Return what each partition takes: as it ran, else as predicted, else from a profile's layers."""
    plan = sources.plan
    if sources.measured is not None:
        return {turn.id: turn.compute_s for turn in sources.measured.turns}
    predicted = plan.variants[0].prediction.partition_s
    if predicted or sources.layers is None or not sources.profiles or plan.entry is not None:
        return dict(predicted)
    return partition_seconds(plan, sources.layers, sources.profiles[0])


def _splits(sources: Sources, missing: dict[str, str]) -> Splits | None:
    site, graph = sources.site, sources.pieces
    if site is None or graph is None or _needed(sources):
        missing["splits"] = _without_cluster(sources, "what every split point would cost")
        return None
    try:
        found = splits_of(sources.plan, site.problem(graph, single_batch(sources.plan)))
    except InfeasibleError as error:
        missing["splits"] = _because(error)
        return None
    if not found.targets:
        missing["splits"] = "The cluster has no second device that can be reached, so there is nothing to split with."
        return None
    return found


def _memory(sources: Sources, seconds: dict[str, float], missing: dict[str, str]) -> Memory | None:
    cluster = sources.site.cluster if sources.site else None
    try:
        memory = memory_of(sources.plan, cluster, seconds, sources.measured)
    except InfeasibleError as error:
        missing["memory"] = _because(error)
        return None
    if memory is None:
        missing["memory"] = "The sizes of some tensors are not known: compile with --input NAME:SHAPE to see memory."
    return memory


def _schedule(sources: Sources, memory: Memory | None, missing: dict[str, str]) -> Schedule | None:
    plan, site = sources.plan, sources.site
    if plan.entry is None:
        if memory is None or memory.unit != "s" or len(memory.devices) != 1:
            missing["schedule"] = f"Run a request here with --run, or give {_WHOLE} and {_PROFILE}, to see a schedule."
            return None
        return local_schedule(memory.devices[0], is_measured=sources.measured is not None)
    if site is None:
        missing["schedule"] = f"Give {_CLUSTER} to see requests on devices and links."
        return None
    try:
        return simulated_schedule(plan, site.cluster)
    except HypsError as error:
        missing["schedule"] = _because(error)
        return None


def _load_map(sources: Sources, step: Callable[[str], None], missing: dict[str, str]) -> LoadMap | None:
    site, graph = sources.site, sources.pieces
    if site is None or graph is None or _needed(sources):
        missing["load_map"] = _without_cluster(sources, "latency by batch size and rate")
        return None
    try:
        problems = {batch: without_load(site).problem(graph, batch) for batch in BATCHES}
        found = load_map_of(sources.plan, problems, step)
    except HypsError as error:
        missing["load_map"] = _because(error)
        return None
    if found is None:
        missing["load_map"] = "Nothing limits the throughput here."
    return found


def _without_cluster(sources: Sources, what: str) -> str:
    """Return why `what` cannot be reckoned."""
    needed = _needed(sources)
    return f"Give {needed} to see {what}." if needed else _not_possible(sources.blocked)


def _needed(sources: Sources) -> str:
    """Return what is missing to reckon with a cluster; empty when nothing is."""
    site = sources.site
    wanted = [] if sources.layers is not None else [_WHOLE]
    wanted += [] if site is not None else [_CLUSTER]
    has_profiles = bool(sources.profiles) if site is None else len(site.profiles) == len(site.cluster.devices)
    wanted += [] if has_profiles else [_PROFILE]
    return wanted[0] if len(wanted) == 1 else ", ".join(wanted[:-1]) + " and " + wanted[-1] if wanted else ""


def _because(error: HypsError) -> str:
    return _not_possible(error.message)


def _not_possible(why: str) -> str:
    return f"Not possible: {printable(why, 300)}."
