"""What a report's page is made from: plain values, as the page's own code reads them.

Names are fit to be shown (`printable`); sizes are bytes, times seconds. A section that is None is named in `missing`.
"""

from typing import Literal

from msgspec import Struct

REQUEST, ANSWER = "request", "answer"


class Fact(Struct, frozen=True, kw_only=True):
    """One line of the summary."""

    label: str
    value: str
    note: str = ""


class TensorRow(Struct, frozen=True, kw_only=True):
    """A tensor that crosses a border."""

    name: str
    dtype: str
    shape: str
    nbytes: int | None


class Node(Struct, frozen=True, kw_only=True):
    """A partition in the picture; also where the request comes from and where the answer goes."""

    id: str
    kind: Literal["V", "H", "request", "answer"]
    x: int
    """Of its left edge, in the picture's own unit; so `y` of its top."""
    y: int
    layers: tuple[str, ...] = ()
    device: int = -1
    """Index in `Graph.devices`."""
    replicas: tuple[int, ...] = ()
    parameters: int = 0
    weight_bytes: int = 0
    peak_bytes: int | None = None
    macs: int | None = None
    seconds: float | None = None
    inputs: tuple[int, ...] = ()
    """Indices in `Graph.tensors`."""
    outputs: tuple[int, ...] = ()
    shard: str = ""
    """Which part of which layer it computes, in words."""


class Edge(Struct, frozen=True, kw_only=True):
    """What one partition hands to another."""

    source: int
    """Index in `Graph.nodes`."""
    target: int
    tensors: tuple[int, ...]


class Group(Struct, frozen=True, kw_only=True):
    """H-partitions of one layer, drawn beside each other in a frame."""

    label: str
    x: int
    y: int
    width: int
    height: int
    members: tuple[int, ...]
    """Indices in `Graph.nodes`."""


class Graph(Struct, frozen=True, kw_only=True):
    """The partitions and what goes between them, laid out."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    tensors: tuple[TensorRow, ...]
    groups: tuple[Group, ...]
    columns: tuple[int, ...]
    """Where each column of the picture begins."""
    devices: tuple[str, ...]
    width: int
    height: int
    node_width: int
    node_height: int


class LayerPoint(Struct, frozen=True, kw_only=True):
    """One layer and the border behind it."""

    name: str
    kind: str
    shape: str
    parameters: int
    weight_bytes: int
    macs: int | None
    cut_bytes: int | None
    ratio: float | None
    seconds: tuple[float, ...]
    """Per profile."""
    marks: tuple[str, ...]
    """`pooling`, `natural` and the like."""
    split: Literal["", "cut", "point"] = ""
    """Whether the plan is cut behind it, or knows that it could be."""
    reason: str = ""


class Layers(Struct, frozen=True, kw_only=True):
    """The layers of the model in running order."""

    rows: tuple[LayerPoint, ...]
    profiles: tuple[str, ...]
    input_bytes: int | None
    notes: tuple[str, ...] = ()


class Split(Struct, frozen=True, kw_only=True):
    """What a request takes when everything up to a border runs at the entry, the rest elsewhere."""

    after: str
    """The last layer at the entry; empty: nothing is."""
    position: int
    """How many layers run at the entry."""
    wire_bytes: int
    device_s: float
    transfer_s: float
    server_s: float
    queue_s: float
    broken: str = ""
    """Which limit it breaks."""

    @property
    def latency_s(self) -> float:
        """Of the whole request."""
        return self.device_s + self.transfer_s + self.server_s + self.queue_s


class Target(Struct, frozen=True, kw_only=True):
    """All splits between the entry and one other device."""

    device: str
    splits: tuple[Split, ...]
    best: int
    """Index of the least latency of those that break no limit; -1: all do."""
    chosen: tuple[int, ...]
    """Indices of the borders where the plan goes from one device to another, if it uses this one."""


class Splits(Struct, frozen=True, kw_only=True):
    """What each split point would cost on the cluster."""

    entry: str
    targets: tuple[Target, ...]
    planned_s: float | None
    """What the plan itself is predicted to take."""
    notes: tuple[str, ...] = ()


class Moment(Struct, frozen=True, kw_only=True):
    """A stretch of time in which memory does not change."""

    partition: str
    what: Literal["load", "run"]
    start: float
    end: float
    weight_bytes: int
    """Of what is loaded for its turn only."""
    tensor_bytes: int
    """Of activations, and what kernels take beside them."""
    measured_bytes: int | None = None
    """What the process had resident at most, where it was run."""


class DeviceMemory(Struct, frozen=True, kw_only=True):
    """One device in the course of one request."""

    device: str
    budget_bytes: int | None
    base_bytes: int
    kept_bytes: int
    """Weights that stay loaded."""
    kept: int
    """How many partitions these are."""
    swapped: int
    moments: tuple[Moment, ...]
    peak_bytes: int
    peak_at: int
    """Index of the moment."""


class Memory(Struct, frozen=True, kw_only=True):
    """What is resident while one request runs."""

    devices: tuple[DeviceMemory, ...]
    unit: Literal["s", "steps"]
    """Of the moments: seconds, or partitions as long as each other where no times are known."""
    load_bytes_per_s: float | None
    """How fast weights in passing are taken to be read; None: that was measured, or does not matter."""


class Bar(Struct, frozen=True, kw_only=True):
    """Something that a device or link does for one request."""

    row: int
    kind: Literal["compute", "load", "transfer"]
    request: int
    name: str
    start_s: float
    end_s: float


class Schedule(Struct, frozen=True, kw_only=True):
    """The first requests on devices and links."""

    rows: tuple[str, ...]
    bars: tuple[Bar, ...]
    end_s: float
    how: str
    """Where it comes from, as a sentence."""


class Cell(Struct, frozen=True, kw_only=True):
    """One batch size at one rate."""

    p95_s: float
    throughput_rps: float
    is_over: bool
    """Whether more arrives than can be answered, so that the latency grows without end."""


class LoadMap(Struct, frozen=True, kw_only=True):
    """Latency and throughput by batch size and rate."""

    batches: tuple[int, ...]
    rates: tuple[float, ...]
    """Requests per second."""
    cells: tuple[tuple[Cell, ...], ...]
    """`cells[rate][batch]`."""
    requests: int
    """How many were simulated for a cell."""
    notes: tuple[str, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """Everything on the page."""

    title: str
    subtitle: str
    facts: tuple[Fact, ...]
    graph: Graph
    layers: Layers | None = None
    splits: Splits | None = None
    memory: Memory | None = None
    schedule: Schedule | None = None
    load_map: LoadMap | None = None
    missing: dict[str, str] = {}
    """Section to the sentence that says why it is not there, and what would bring it."""
