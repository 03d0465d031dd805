"""What a running manager or worker tells those who watch it: one report, of a moment.

A report goes over the wire in a frame of its own behind `Status`, with the names of its fields, so that fields can be
added. States are words that a reader shows as they are: a newer one has others.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from hyps.errors import PeerError, printable

MAX_REPORT_NBYTES = 8 * 2**20
"""Of an encoded report; one that would be larger leaves out what is told per partition."""

MAX_LEVELS = 8
"""Of groups within groups that a report shows."""

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the classes in which durations are counted; one more class has all that took longer."""

_Name = Annotated[str, Meta(max_length=16384)]
_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Seconds = Annotated[float, Meta(ge=0)]


class Durations(Struct, frozen=True, kw_only=True):
    """How long something took: the quantiles of late, and all counts since the start."""

    n: _Count = 0
    total_s: _Seconds = 0.0
    counts: Annotated[tuple[_Count, ...], Meta(max_length=64)] = ()
    """Per class of `BUCKETS_S` and one more, not summed up; empty: not counted."""
    p50_s: _Seconds | None = None
    """Of the latest ones; null: none yet."""
    p95_s: _Seconds | None = None
    p99_s: _Seconds | None = None


class RunningItem(Struct, frozen=True, kw_only=True):
    """What a device computes now."""

    partition: _Name
    request: _Name
    elapsed_s: _Seconds


class NodeStatus(Struct, frozen=True, kw_only=True):
    """One device of the network, as its manager knows it."""

    device: _Name
    state: _Name
    """`joining`, `loading`, `serving`, `draining` or `gone`."""
    joined_s: _Seconds = 0.0
    """For how long it has been here."""
    silent_s: _Seconds = 0.0
    """For how long nothing was heard of it."""
    memory_nbytes: _Count | None = None
    """Its budget; null: it has no limit."""
    resident_nbytes: _Count | None = None
    """Of its process; null: unknown."""
    held_nbytes: _Count = 0
    """Of tensors that are there."""
    threads: _Count | None = None
    """That compute; null: unknown."""
    macs_per_s: float | None = None
    """Measured when it joined; null: unknown."""
    max_requests: _Count = 1
    """What it can have at work at once."""
    partitions: tuple[_Name, ...] = ()
    """Those it is to run."""
    loaded: tuple[_Name, ...] = ()
    """Those of them that it can run now."""
    refused: tuple[tuple[_Name, _Name], ...] = ()
    """Those that cannot be loaded there, and why."""
    running: tuple[RunningItem, ...] = ()
    waiting: _Count = 0
    """Work items whose inputs are all there."""
    utilisation: _Seconds = 0.0
    """The part of the last seconds in which it computed; above 1 where several requests are computed at once."""
    items_done: _Count = 0
    items_per_s: _Seconds = 0.0
    endpoints: tuple[_Name, ...] = ()
    """Where other nodes reach it; empty: over the hub alone."""
    unreachable: tuple[_Name, ...] = ()
    """Devices that it should send to and cannot reach."""
    is_group: bool = False
    """Whether it is the manager of devices below it."""
    group: "Report | None" = None
    """What a group tells of itself; null: no group, or nothing heard yet."""


class PartitionStatus(Struct, frozen=True, kw_only=True):
    """One partition, over all devices that run it."""

    partition: _Name
    kind: _Name = "vertical"
    state: _Name
    """`created`, `placed`, `loading`, `loaded` or `inferring`."""
    devices: tuple[_Name, ...] = ()
    """Where it runs; more than one: replicas."""
    predicted_s: _Seconds | None = None
    """Of one run, as the plan says; null: it says nothing."""
    run: Durations = Durations()
    """Of its runs."""
    waited: Durations = Durations()
    """From when its last input was there until it began."""
    failed: _Count = 0
    sent_nbytes: _Count = 0
    """Of the tensors it has made."""


class CourseStatus(Struct, frozen=True, kw_only=True):
    """One way of requests through the devices."""

    id: _Count
    state: _Name
    """`preparing`, `ready` or `retiring`."""
    variant: _Name = ""
    """The plan's variant it was made of; empty: placed anew."""
    devices: tuple[_Name, ...] = ()
    requests: _Count = 0
    """At work on it now."""
    done: _Count = 0


class RequestsStatus(Struct, frozen=True, kw_only=True):
    """How requests fare; counts of what ended are since the start, rates of the last seconds."""

    queued: _Count = 0
    running: _Count = 0
    max_queued: _Count | None = None
    """More are refused; null: unknown."""
    max_running: _Count | None = None
    accepted: _Count = 0
    done: _Count = 0
    failed: _Count = 0
    cancelled: _Count = 0
    refused: _Count = 0
    """For want of room; whoever sent them was told when to try again."""
    retried: _Count = 0
    """Begun anew after a device was lost."""
    failures: dict[str, int] = {}
    """How many failed, by error code."""
    accepted_per_s: _Seconds = 0.0
    done_per_s: _Seconds = 0.0
    failed_per_s: _Seconds = 0.0
    latency: Durations = Durations()
    """From acceptance to the answer, of those that were done."""
    queued_time: Durations = Durations()
    """Of that, until the request's work began."""
    predicted_latency_s: _Seconds | None = None
    """Of a request that does not wait, as the plan says."""
    predicted_rps: _Seconds | None = None
    clients: _Count = 0


class HubStatus(Struct, frozen=True, kw_only=True):
    """What the manager keeps."""

    queued_nbytes: _Count = 0
    """Of requests that wait."""
    max_queued_nbytes: _Count | None = None
    held_nbytes: _Count = 0
    """Of requests at work: inputs, outputs, and what the plan wants kept."""
    max_held_nbytes: _Count | None = None
    tensors: _Count = 0
    passed_nbytes: _Count = 0
    """Of tensors passed on between devices that do not reach each other, since the start."""


class LinkStatus(Struct, frozen=True, kw_only=True):
    """One way between two devices, as it was measured; an empty name is the hub."""

    source: _Name
    target: _Name
    bytes_per_s: float | None = None
    seconds: float | None = None
    """That a small message takes."""
    sent_nbytes: _Count = 0
    sent_per_s: _Seconds = 0.0
    """Bytes, of the last seconds."""


class Report(Struct, frozen=True, kw_only=True):
    """The state of a manager with its nodes, or of a worker that serves a plan alone."""

    role: _Name
    """`manager` or `worker`."""
    state: _Name
    """Of the network: `partitioned`, `scheduling` or `inferring`; of a worker: `serving` or `draining`."""
    device: _Name = ""
    """What it is called; a manager above others has no name."""
    producer: _Name = ""
    """The version of HyPS that runs it."""
    model: _Name = ""
    strategy: _Name | None = None
    """What placed the plan."""
    variant: _Name = ""
    """The plan's variant that requests take; empty: placed anew."""
    uptime_s: _Seconds = 0.0
    nodes: tuple[NodeStatus, ...] = ()
    partitions: tuple[PartitionStatus, ...] = ()
    courses: tuple[CourseStatus, ...] = ()
    requests: RequestsStatus = RequestsStatus()
    hub: HubStatus | None = None
    links: tuple[LinkStatus, ...] = ()
    notes: tuple[_Name, ...] = ()
    """What an operator should know, a sentence each: devices that the plan waits for, a placement that failed."""
    is_cut: bool = False
    """Whether something was left out because the report would have been too large."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode_report(report: Report, max_nbytes: int = MAX_REPORT_NBYTES) -> bytes:
    """Return the bytes of a report; one above `max_nbytes` is told without its partitions, links and groups."""
    data = _ENCODER.encode(report)
    if len(data) > max_nbytes:
        nodes = tuple(
            msgspec.structs.replace(n, group=None, partitions=(), loaded=(), refused=()) for n in report.nodes
        )
        small = msgspec.structs.replace(report, nodes=nodes, partitions=(), courses=(), links=(), is_cut=True)
        data = _ENCODER.encode(small)
    return data


def decode_report(data: bytes | memoryview) -> Report:
    """Return the report that `encode_report` made.

    Raises:
        PeerError: it is none (`E_PROTOCOL`).
    """
    if len(data) > MAX_REPORT_NBYTES:
        raise PeerError(f"a report has {len(data)} bytes, more than {MAX_REPORT_NBYTES}", code="E_PROTOCOL")
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not a report of HyPS: {printable(str(error))}", code="E_PROTOCOL") from error


def json_schema() -> bytes:
    """Return the JSON Schema of a report, as `hypsc status --json` prints it."""
    schema = msgspec.json.schema(Report)
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def to_level(report: Report, levels: int) -> Report:
    """Return the report with at most `levels` levels of groups; 1: only the devices that joined it."""
    nodes = tuple(
        msgspec.structs.replace(node, group=to_level(node.group, levels - 1) if levels > 1 else None)
        if node.group is not None
        else node
        for node in report.nodes
    )
    return msgspec.structs.replace(report, nodes=nodes)
