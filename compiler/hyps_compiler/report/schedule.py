"""The first requests on devices and links: from the simulation, or from a run here."""

import msgspec

from hyps.formats.cluster import Cluster, Device
from hyps.formats.plan import Plan, Variant
from hyps_compiler.explaining import Explanation
from hyps_compiler.report.document import Bar, Schedule
from hyps_compiler.report.memory import LOAD_BYTES_PER_S
from hyps_compiler.report.partitions import shown
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_plan import Conditions, plan_system
from hyps_compiler.simulation_report import load_in_words
from hyps_compiler.simulation_result import Simulated
from hyps_compiler.simulation_system import Closed, Load, Open

_REQUESTS = 6
_MOST_BARS = 2000
"""Of plans with very many partitions fewer requests are drawn."""


def with_seconds(plan: Plan, seconds: dict[str, float]) -> Plan:
    """Return the plan with what its partitions take in the prediction of its first variant."""
    first: Variant = plan.variants[0]
    told = msgspec.structs.replace(first.prediction, partition_s=seconds)
    return msgspec.structs.replace(plan, variants=(msgspec.structs.replace(first, prediction=told),))


def simulated_schedule(plan: Plan, cluster: Cluster | None) -> Schedule:
    """Return the first requests of the plan on its devices, from the simulator.

    Requests come one after another, or as often as the cluster file says.

    Raises:
        HypsError: as `plan_system`.
    """
    site = cluster if cluster is not None else _alone(plan)
    rate = site.arrival_rps
    load: Load = Open(rate) if rate else Closed(1 if cluster is None else 3)
    count = max(1, min(_REQUESTS if cluster else 1, _MOST_BARS // max(1, 2 * len(plan.partitions))))
    conditions = Conditions(load_bytes_per_s=LOAD_BYTES_PER_S)
    simulated = simulate(plan_system(plan, site, conditions), load, count, traced=count)
    requests = "one request" if count == 1 else f"the first {count} requests, {load_in_words(load)}"
    return _schedule(simulated, f"{requests}, simulated with what the partitions are predicted to take")


def measured_schedule(plan: Plan, measured: Explanation) -> Schedule:
    """Return one request as it ran here, partition after partition."""
    bars: list[Bar] = []
    now = 0.0
    for share in measured.shares:
        if share.wait_s > 0:
            bars.append(_bar("load", share.label, now, share.wait_s))
            now += share.wait_s
        bars.append(_bar("compute", share.label, now, share.compute_s))
        now += share.compute_s + share.release_s
    return Schedule(rows=("this machine",), bars=tuple(bars), end_s=now, how="one request, as it ran on this machine")


def _bar(kind: str, name: str, start_s: float, seconds: float) -> Bar:
    return Bar(
        row=0,
        kind="load" if kind == "load" else "compute",
        request=0,
        name=shown(name),
        start_s=start_s,
        end_s=start_s + seconds,
    )


def _alone(plan: Plan) -> Cluster:
    """Return a cluster of the plan's one device, with the plan's budget: what it does not keep is loaded."""
    name = next(iter(plan.variants[0].placement.values()), "local")
    return Cluster(devices=(Device(name=name, memory_bytes=plan.memory_bytes),), links=(), entry=name)


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
