"""What is known of a request and of a device while they are simulated."""

from dataclasses import dataclass, field

from hyps_compiler.simulation_flow import Flow
from hyps_compiler.simulation_result import Use, mean_queue
from hyps_compiler.simulation_system import Device


@dataclass(slots=True)
class Request:
    """One request that has begun; dropped when it ends."""

    number: int
    arrived_s: float
    began_s: float
    flow: Flow
    missing: list[int]
    """Per partition, the tensors that are not there yet."""
    left: int
    """Partitions that have not run and outputs that are not back."""
    device_of: list[int]
    """Per partition; -1 where a device is yet to be chosen."""
    is_traced: bool


@dataclass(slots=True)
class DeviceState:
    """What a device does, what waits for it, and what it has done."""

    spec: Device
    index: int
    ready: list[tuple[int, int, float, Request]] = field(default_factory=list)
    """What can run, as a heap: two numbers that order it, since when it can, and for which request."""
    swaps: bool = False
    """Whether it does not keep all its partitions: work is ordered by partition then, and in chunks."""
    lobby: dict[int, tuple[Request, list[tuple[int, float]]]] = field(default_factory=dict)
    """Of a device that swaps: requests that are not in the chunk, and what of them could run."""
    chunk: set[int] = field(default_factory=set)
    """Of a device that swaps: the requests that it works on."""
    loaded: str = ""
    """Of a device that swaps: the partition that is loaded in passing."""
    wakes_s: float = 0.0
    """When it is looked at again, since it is down."""
    is_busy: bool = False
    is_touched: bool = False
    assigned: int = 0
    assigned_s: float = 0.0
    """Of devices that share a partition: what they have still to do."""
    busy_s: float = 0.0
    load_s: float = 0.0
    lost_s: float = 0.0
    waited_s: float = 0.0
    runs: int = 0
    reruns: int = 0
    most_waiting: int = 0

    def use(self, seconds: float) -> Use:
        """Return what it did in so many seconds."""
        queue = mean_queue(self.waited_s, seconds)
        return Use(
            self.spec.name, self.busy_s, self.load_s, self.lost_s, self.runs, self.reruns, 0, queue, self.most_waiting
        )
