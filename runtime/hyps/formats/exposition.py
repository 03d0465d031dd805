"""A report as Prometheus reads it: the text exposition format, version 0.0.4."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hyps.formats.status import (
    BUCKETS_S,
    Durations,
    HubStatus,
    LinkStatus,
    NodeStatus,
    PartitionStatus,
    Report,
    RequestsStatus,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


def exposition(report: Report) -> str:
    """Return the text of a scrape.

    Times are in seconds, sizes in bytes; what only rises ends in `_total`. Devices of a group have its name, and those
    of the groups above it, in the label `group`.

    >>> from hyps.formats.status import Report
    >>> print(exposition(Report(role="worker", state="serving")).splitlines()[2])
    hyps_info{role="worker",device="",model="",strategy="",variant="",version=""} 1
    """
    families = [
        *_process(report),
        *_requests(report.requests),
        *(_hub(report.hub) if report.hub is not None else ()),
        *_nodes(list(_with_groups(report))),
        *_partitions(report.partitions),
        *_courses(report),
        *_links(report.links),
    ]
    return "".join(_text(family) for family in families if family.samples)


@dataclass(frozen=True, slots=True)
class _Sample:
    suffix: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric: all samples of one name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    samples: list[_Sample] = field(default_factory=list)

    def add(self, value: float | None, labels: Labels | None = None) -> "_Family":
        """Add a sample; None is unknown, and none."""
        if value is not None:
            self.samples.append(_Sample("", labels or {}, value))
        return self

    def add_durations(self, durations: Durations, labels: Labels | None = None) -> "_Family":
        """Add what a histogram is of one thing; nothing where runs were not counted by their durations."""
        if len(durations.counts) != len(BUCKETS_S) + 1:
            return self
        reached, named = 0, labels or {}
        for bound, count in zip((*BUCKETS_S, math.inf), durations.counts, strict=True):
            reached += count
            self.samples.append(_Sample("_bucket", {**named, "le": _number(bound)}, reached))
        self.samples.append(_Sample("_sum", named, durations.total_s))
        self.samples.append(_Sample("_count", named, reached))
        return self


# What there is to tell.


def _process(report: Report) -> Iterator[_Family]:
    about = {
        "role": report.role,
        "device": report.device,
        "model": report.model,
        "strategy": report.strategy or "",
        "variant": report.variant,
        "version": report.producer,
    }
    yield _Family("hyps_info", "gauge", "What runs here; always 1.").add(1, about)
    yield _Family("hyps_state", "gauge", "1 for the state of the network.").add(1, {"state": report.state})
    yield _Family("hyps_uptime_seconds", "gauge", "Since the start.").add(report.uptime_s)


def _requests(told: RequestsStatus) -> Iterator[_Family]:
    for name, about, amount in (
        ("queued", "Requests that wait.", told.queued),
        ("running", "Requests at work.", told.running),
        ("queued_limit", "Requests that may wait; more are refused.", told.max_queued),
        ("running_limit", "Requests that may be at work.", told.max_running),
        ("clients", "Clients that are connected.", told.clients),
    ):
        yield _Family(f"hyps_requests_{name}" if name != "clients" else "hyps_clients", "gauge", about).add(amount)
    for name, about, count in (
        ("accepted", "Requests taken.", told.accepted),
        ("done", "Requests answered.", told.done),
        ("failed", "Requests that ended without an answer.", told.failed),
        ("cancelled", "Requests that nobody waited for any more.", told.cancelled),
        ("refused", "Requests that found no room.", told.refused),
        ("retried", "Requests begun anew after a device was lost.", told.retried),
    ):
        yield _Family(f"hyps_requests_{name}_total", "counter", about).add(count)
    failures = _Family("hyps_requests_failures_total", "counter", "The failed requests, by error code.")
    for code, count in sorted(told.failures.items()):
        failures.add(count, {"code": code})
    yield failures
    latency = _Family("hyps_request_duration_seconds", "histogram", "From acceptance to the answer.")
    yield latency.add_durations(told.latency)
    queued = _Family("hyps_request_queue_seconds", "histogram", "From acceptance until the work begins.")
    yield queued.add_durations(told.queued_time)
    predicted = _Family("hyps_request_predicted_seconds", "gauge", "Of a request that does not wait, by the plan.")
    yield predicted.add(told.predicted_latency_s)
    rate = _Family("hyps_requests_predicted_per_second", "gauge", "Most requests in a second, by the plan.")
    yield rate.add(told.predicted_rps)


def _hub(told: HubStatus) -> Iterator[_Family]:
    for name, about, amount in (
        ("queued", "Of requests that wait.", told.queued_nbytes),
        ("queued_limit", "Most that requests that wait may have.", told.max_queued_nbytes),
        ("held", "Of requests at work.", told.held_nbytes),
        ("held_limit", "Most that requests at work may have.", told.max_held_nbytes),
    ):
        yield _Family(f"hyps_hub_{name}_bytes", "gauge", about).add(amount)
    passed = _Family("hyps_hub_passed_bytes_total", "counter", "Of tensors passed on between devices.")
    yield passed.add(told.passed_nbytes)


def _with_groups(report: Report, above: str = "") -> Iterator[tuple[Labels, NodeStatus]]:
    for node in report.nodes:
        yield {"device": node.device, "group": above}, node
        if node.group is not None:
            yield from _with_groups(node.group, f"{above}/{node.device}" if above else node.device)


def _nodes(nodes: Sequence[tuple[Labels, NodeStatus]]) -> Iterator[_Family]:
    for name, about, values in (
        ("state", "1 for the state of a device.", [(1, {"state": node.state}) for _, node in nodes]),
        ("silent_seconds", "Since something was heard of a device.", [(node.silent_s, {}) for _, node in nodes]),
        ("memory_bytes", "A device's budget.", [(node.memory_nbytes, {}) for _, node in nodes]),
        ("resident_bytes", "Of a device's process.", [(node.resident_nbytes, {}) for _, node in nodes]),
        ("held_bytes", "Of tensors at a device.", [(node.held_nbytes, {}) for _, node in nodes]),
        ("waiting", "Work items whose inputs are at a device.", [(node.waiting, {}) for _, node in nodes]),
        ("running", "Work items that a device computes.", [(len(node.running), {}) for _, node in nodes]),
        ("partitions", "Partitions that a device is to run.", [(len(node.partitions), {}) for _, node in nodes]),
        ("partitions_loaded", "Those it can run now.", [(len(node.loaded), {}) for _, node in nodes]),
        ("utilisation_ratio", "Part of the last seconds it computed.", [(n.utilisation, {}) for _, n in nodes]),
        ("macs_per_second", "A device's speed.", [(node.macs_per_s, {}) for _, node in nodes]),
    ):
        family = _Family(f"hyps_node_{name}", "gauge", about)
        for (labels, _), (value, more) in zip(nodes, values, strict=True):
            family.add(value, {**labels, **more})
        yield family
    items = _Family("hyps_node_items_total", "counter", "Work items that a device has computed.")
    for labels, node in nodes:
        items.add(node.items_done, labels)
    yield items


def _partitions(partitions: Sequence[PartitionStatus]) -> Iterator[_Family]:
    run = _Family("hyps_partition_run_seconds", "histogram", "Of a partition's runs.")
    waited = _Family("hyps_partition_wait_seconds", "histogram", "From when its inputs are there until it runs.")
    recent = _Family("hyps_partition_run_recent_seconds", "gauge", "Quantiles of a partition's latest runs.")
    predicted = _Family("hyps_partition_predicted_seconds", "gauge", "Of a run, by the plan.")
    replicas = _Family("hyps_partition_replicas", "gauge", "Devices that run a partition.")
    state = _Family("hyps_partition_state", "gauge", "1 for the state of a partition.")
    failed = _Family("hyps_partition_failed_total", "counter", "Runs that failed.")
    made = _Family("hyps_partition_made_bytes_total", "counter", "Of the tensors that a partition has made.")
    for told in partitions:
        labels = {"partition": told.partition}
        run.add_durations(told.run, labels)
        waited.add_durations(told.waited, labels)
        for share, seconds in (("0.5", told.run.p50_s), ("0.95", told.run.p95_s), ("0.99", told.run.p99_s)):
            recent.add(seconds, {**labels, "quantile": share})
        predicted.add(told.predicted_s, labels)
        replicas.add(len(told.devices), labels)
        state.add(1, {**labels, "state": told.state})
        failed.add(told.failed, labels)
        made.add(told.sent_nbytes, labels)
    yield from (run, waited, recent, predicted, replicas, state, failed, made)


def _courses(report: Report) -> Iterator[_Family]:
    family = _Family("hyps_courses", "gauge", "Ways through the devices, by state.")
    states = [course.state for course in report.courses]
    for state in sorted(set(states)):
        family.add(states.count(state), {"state": state})
    yield family


def _links(links: Sequence[LinkStatus]) -> Iterator[_Family]:
    bandwidth = _Family("hyps_link_bytes_per_second", "gauge", "Measured bandwidth; an empty name is the hub.")
    latency = _Family("hyps_link_latency_seconds", "gauge", "That a small message takes.")
    sent = _Family("hyps_link_sent_bytes_total", "counter", "Of tensors sent over a link.")
    for link in links:
        labels = {"source": link.source, "target": link.target}
        bandwidth.add(link.bytes_per_s, labels)
        latency.add(link.seconds, labels)
        sent.add(link.sent_nbytes, labels)
    yield from (bandwidth, latency, sent)


# How it is written.


def _text(family: _Family) -> str:
    lines = [f"# HELP {family.name} {_escaped_help(family.about)}", f"# TYPE {family.name} {family.kind}"]
    seen = set()
    for sample in family.samples:
        series = f"{family.name}{sample.suffix}{_labels(sample.labels)}"
        if series not in seen:  # two devices of one name would make the whole scrape invalid
            seen.add(series)
            lines.append(f"{series} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)
