"""Reports of clusters of any size, always the same ones."""

from hyps.formats.status import (
    BUCKETS_S,
    CourseStatus,
    Durations,
    HubStatus,
    LinkStatus,
    NodeStatus,
    PartitionStatus,
    Report,
    RequestsStatus,
    RunningItem,
)


def durations(seconds: float, n: int = 1200) -> Durations:
    """Durations that mostly take `seconds`."""
    counts = [0] * (len(BUCKETS_S) + 1)
    counts[sum(bound < seconds for bound in BUCKETS_S)] = n
    return Durations(
        n=n, total_s=n * seconds, counts=tuple(counts), p50_s=seconds, p95_s=1.3 * seconds, p99_s=1.8 * seconds
    )


def node(number: int, *, state: str = "serving", silent_s: float = 0.2, group: Report | None = None) -> NodeStatus:
    """The device `pi-N`, or `room-N` where it is a group."""
    return NodeStatus(
        device=f"{'pi' if group is None else 'room'}-{number}",
        state=state,
        joined_s=400.0,
        silent_s=silent_s,
        memory_nbytes=1_000_000_000,
        resident_nbytes=231_000_000 + number * 1_000_000,
        held_nbytes=3_200_000,
        threads=4,
        macs_per_s=6.2e9,
        partitions=(f"block{number}",),
        loaded=(f"block{number}",) if state == "serving" else (),
        running=(RunningItem(partition=f"block{number}", request="17", elapsed_s=0.0123),) if number % 2 else (),
        waiting=number % 4,
        utilisation=(number * 13 % 100) / 100,
        items_done=1200,
        items_per_s=12.3,
        endpoints=(f"tcp://10.0.0.{number}:7000",),
        is_group=group is not None,
        group=group,
    )


def partition(number: int, *devices: str) -> PartitionStatus:
    """The partition `blockN`."""
    return PartitionStatus(
        partition=f"block{number}",
        state="inferring" if number % 2 else "loaded",
        devices=devices or (f"pi-{number}",),
        predicted_s=0.035,
        run=durations(0.038),
        waited=durations(0.002),
        sent_nbytes=1200 * 803_000,
    )


def requests() -> RequestsStatus:
    """A network that is well used."""
    return RequestsStatus(
        queued=3,
        running=4,
        max_queued=64,
        max_running=8,
        accepted=12_345,
        done=12_330,
        failed=3,
        cancelled=1,
        refused=12,
        retried=2,
        failures={"E_DEADLINE": 2, "E_EXECUTION": 1},
        accepted_per_s=12.5,
        done_per_s=12.3,
        latency=durations(0.312, 12_330),
        queued_time=durations(0.04, 12_330),
        predicted_latency_s=0.28,
        predicted_rps=14.1,
        clients=4,
    )


def manager(devices: int) -> Report:
    """A manager with so many devices, in a row."""
    nodes = tuple(node(number) for number in range(1, devices + 1))
    links = tuple(
        LinkStatus(source=f"pi-{n}", target=f"pi-{n + 1}", bytes_per_s=11.7e6, seconds=0.0012, sent_nbytes=9 * 10**9)
        for n in range(1, devices)
    )
    return Report(
        role="manager",
        state="inferring",
        producer="hyps 0.1.0",
        model="vgg16",
        strategy="pipeline-dp",
        variant="default",
        uptime_s=7985.0,
        nodes=nodes,
        partitions=tuple(partition(number) for number in range(1, devices + 1)),
        courses=(CourseStatus(id=1, state="ready", variant="default", devices=tuple(n.device for n in nodes)),),
        requests=requests(),
        hub=HubStatus(queued_nbytes=1_800_000, max_queued_nbytes=256_000_000, held_nbytes=3_000_000, tensors=5),
        links=links,
    )


def nested() -> Report:
    """Groups within groups, three levels below the manager."""
    floor = manager(2)
    room = Report(role="manager", state="inferring", model="vgg16", nodes=(node(1), node(2, group=floor)))
    house = Report(role="manager", state="inferring", model="vgg16", nodes=(node(1, group=room), node(3)))
    return Report(role="manager", state="inferring", model="vgg16", nodes=(node(4, group=house), node(9)))
