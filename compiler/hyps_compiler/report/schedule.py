"""The first requests on devices and links: from the simulation, or from a run here."""

from hyps.formats.cluster import Cluster
from hyps.formats.plan import Plan
from hyps_compiler.report.document import Bar, DeviceMemory, Schedule
from hyps_compiler.report.memory import LOAD_BYTES_PER_S
from hyps_compiler.report.partitions import shown
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_plan import Conditions, plan_system
from hyps_compiler.simulation_report import load_in_words
from hyps_compiler.simulation_result import Simulated
from hyps_compiler.simulation_system import Closed, Load, Open

_REQUESTS = 6
_IN_FLIGHT = 3
_MOST_BARS = 2000
"""Of plans with very many partitions fewer requests are drawn."""


def simulated_schedule(plan: Plan, cluster: Cluster) -> Schedule:
    """Return the first requests of the plan on the cluster's devices, from the simulator.

    Requests come one after another, three at a time, or as often as the cluster file says.

    Raises:
        HypsError: as `plan_system`.
    """
    load: Load = Open(cluster.arrival_rps) if cluster.arrival_rps else Closed(_IN_FLIGHT)
    count = max(1, min(_REQUESTS, _MOST_BARS // max(1, 2 * len(plan.partitions))))
    conditions = Conditions(load_bytes_per_s=LOAD_BYTES_PER_S)
    simulated = simulate(plan_system(plan, cluster, conditions), load, count, traced=count)
    requests = "one request" if count == 1 else f"the first {count} requests, {load_in_words(load)}"
    return _schedule(simulated, f"{requests}, simulated with what the partitions are predicted to take")


def local_schedule(memory: DeviceMemory, *, is_measured: bool) -> Schedule:
    """Return one request on one device, partition after partition, as its memory is used in the course of it."""
    bars = tuple(
        Bar(
            row=0,
            kind="load" if moment.what == "load" else "compute",
            request=0,
            name=moment.partition,
            start_s=moment.start,
            end_s=moment.end,
        )
        for moment in memory.moments
    )
    reckoned = "one request, partition after partition, as long as their layers are predicted to take"
    how = "one request, as it ran on this machine" if is_measured else reckoned
    return Schedule(rows=(memory.device,), bars=bars, end_s=max((bar.end_s for bar in bars), default=0.0), how=how)


def _schedule(simulated: Simulated, how: str) -> Schedule:
    used = {span.resource for span in simulated.spans}
    rows = [use.name for use in (*simulated.devices, *simulated.links) if use.name in used]
    bars = [
        Bar(
            row=rows.index(span.resource),
            kind=span.kind,
            request=span.request,
            name=shown(span.name),
            start_s=span.start_s,
            end_s=span.end_s,
        )
        for span in simulated.spans
    ]
    bars.sort(key=lambda bar: (bar.row, bar.start_s, bar.end_s, bar.request, bar.name))
    end_s = max((bar.end_s for bar in bars), default=0.0)
    return Schedule(rows=tuple(map(shown, rows)), bars=tuple(bars), end_s=end_s, how=how)
