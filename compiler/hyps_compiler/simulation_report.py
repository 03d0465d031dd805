"""What `hypsc simulate` says at its end: for people, and as values for `--json`."""

from typing import Any

from hyps.errors import printable
from hyps.formats.plan import Plan, Prediction
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.terminal import table
from hyps_compiler.gantt import CHARTED, text_gantt
from hyps_compiler.simulation_result import PERCENTILES, Simulated, Use
from hyps_compiler.simulation_system import Closed, Listed, Load, Open


def show_simulated(plan: Plan, load: Load, simulated: Simulated) -> str:
    """Return the summary, a table of devices and links, and the first requests as a chart, 80 columns wide."""
    used = [(name, count) for name, count in simulated.variants if count]
    shown = ", ".join(f"{printable(n, 30)} ({c} requests)" if len(used) > 1 else printable(n, 40) for n, c in used[:6])
    lines = [
        f"plan:       {printable(plan.model.name, 40)}, {len(plan.partitions)} partitions",
        f"{'variants:' if len(used) > 1 else 'variant:'}".ljust(12) + shown,
        f"load:       {load_in_words(load)}",
        f"answered:   {_counts(simulated)}",
        f"latency:    {_latencies(simulated)}",
        f"            mean {format_seconds(simulated.mean_s)}, most {format_seconds(simulated.percentile_s(100))}",
        f"throughput: {simulated.throughput_rps:.4g} requests/s over {format_seconds(simulated.seconds)}",
        *_predicted(plan, used),
        "",
        _uses(simulated),
    ]
    chart = text_gantt(simulated)
    shown = f"the first {min(CHARTED, len(simulated.lives))} requests, by their numbers"
    return "\n".join([*lines, "", shown, chart] if chart else lines)


def simulated_json(plan: Plan, load: Load, simulated: Simulated, seed: int) -> dict[str, Any]:
    """Return what was simulated as values."""
    percentiles = {f"p{percent}_s": simulated.percentile_s(percent) for percent in PERCENTILES}
    return {
        "plan": plan.model.name,
        "seed": seed,
        "load": load_in_words(load),
        "answered": len(simulated.requests),
        "refused": len(simulated.refused),
        "redone": sum(use.redone for use in (*simulated.devices, *simulated.links)),
        "seconds": simulated.seconds,
        "throughput_rps": simulated.throughput_rps,
        "latency": {**percentiles, "mean_s": simulated.mean_s, "max_s": simulated.percentile_s(100)},
        "most_in_flight": simulated.most_in_flight,
        "most_waiting": simulated.most_waiting,
        "variants": dict(simulated.variants),
        "devices": [_use_json(simulated, use) for use in simulated.devices],
        "links": [_use_json(simulated, use) for use in simulated.links],
    }


def load_in_words(load: Load) -> str:
    """Return how requests arrive: `one at a time`, `4 in flight`, `20 requests/s at random moments`."""
    if isinstance(load, Closed):
        return "one request at a time" if load.in_flight == 1 else f"{load.in_flight} requests in flight"
    bound = "" if load.in_flight is None else f", at most {load.in_flight} in flight"
    bound += "" if load.most_waiting is None else f" and {load.most_waiting} waiting"
    if isinstance(load, Listed):
        return f"at {len(load.times_s)} given moments{bound}"
    assert isinstance(load, Open), "there is no other load"
    return f"{load.rps:g} requests/s {'at random moments' if load.is_random else 'at even intervals'}{bound}"


def _counts(simulated: Simulated) -> str:
    redone = sum(use.redone for use in (*simulated.devices, *simulated.links))
    parts = [str(len(simulated.requests)), f"refused {len(simulated.refused)}"]
    parts += [f"done again {redone}"] if redone else []
    parts += [f"at most {simulated.most_in_flight} in flight"]
    parts += [f"{simulated.most_waiting} waiting to be let in"] if simulated.most_waiting else []
    return ", ".join(parts)


def _latencies(simulated: Simulated) -> str:
    return ", ".join(f"p{percent} {format_seconds(simulated.percentile_s(percent))}" for percent in PERCENTILES)


def _predicted(plan: Plan, used: list[tuple[str, int]]) -> list[str]:
    if len(used) != 1:
        return []
    told: Prediction = next(v.prediction for v in plan.variants if v.name == used[0][0])
    parts = [f"{format_seconds(told.latency_s)} a request alone"] if told.latency_s is not None else []
    parts += [f"{told.throughput_rps:.4g} requests/s"] if told.throughput_rps is not None else []
    return [f"predicted:  {', '.join(parts)}"] if parts else []


def _uses(simulated: Simulated) -> str:
    rows = [_row(simulated, use, str(use.done), "runs") for use in simulated.devices if use.done or use.redone]
    rows += [_row(simulated, use, format_nbytes(use.nbytes), "") for use in simulated.links if use.done or use.redone]
    headers = ("device or link", "busy", "loading", "runs or bytes", "again", "queue", "most")
    return table(rows, headers, "lrrrrrr", 80)


def _row(simulated: Simulated, use: Use, done: str, unit: str) -> tuple[str, ...]:
    loading = f"{use.load_s / simulated.seconds:.0%}" if use.load_s else ""
    return (
        printable(use.name, 40),
        f"{simulated.utilization(use):.1%}",
        loading,
        f"{done} {unit}".rstrip(),
        str(use.redone) if use.redone else "",
        f"{use.mean_queue:.2f}",
        str(use.most_queued),
    )


def _use_json(simulated: Simulated, use: Use) -> dict[str, Any]:
    return {
        "name": use.name,
        "utilization": simulated.utilization(use),
        "busy_s": use.busy_s,
        "load_s": use.load_s,
        "lost_s": use.lost_s,
        "done": use.done,
        "redone": use.redone,
        "nbytes": use.nbytes,
        "mean_queue": use.mean_queue,
        "most_queued": use.most_queued,
    }
