"""Requests on their way through a plan's partitions on a cluster, in virtual time.

Devices run one partition at a time, links carry one message at a time; what is ready waits for them. A single request
takes what `hyps_passes.estimate` says, many at once show what it can only bound: who waits for whom, and how long. The
two differ by design in three places. Over several links in a row tensors follow each other here; the estimate of a
pipeline lets them through one by one, and that of a placement books the later links ahead. Answers of a pipeline's
inner stages leave when they are made, not at the end. A tensor that the entry uses and the answer has comes back once.

The runtime's own `hyps.core.worker_state` is not what runs here, for three reasons that lie in what it is for. It
begins a request when all that the request will ever need from outside is there: a device that makes a tensor, sends it
away and waits for what another makes of it would wait for ever. It knows no peers: outputs leave with the answer, while
here they leave when their partition ends. And it moves names through tables that guard against duplicates and lost
events, which virtual time does not have, at five times the cost per request. What is shared is what decides times:
which partitions a device keeps (`hyps.core.residency`), work by request while it keeps all, else by partition and in
chunks, and the choice of a variant (`hyps.core.switching`). A test holds the order of loads and runs of both together.
"""

import heapq
import itertools
from array import array
from collections import deque
from collections.abc import Iterable
from typing import Any, assert_never

import numpy as np

from hyps.errors import InternalError
from hyps_compiler.simulation_flow import Flow
from hyps_compiler.simulation_links import LinkState, first_within, up_at
from hyps_compiler.simulation_load import arrivals, factors
from hyps_compiler.simulation_result import Life, Simulated, Span
from hyps_compiler.simulation_state import DeviceState, Request
from hyps_compiler.simulation_system import REQUEST, Closed, Listed, Load, Open, System

_TENSOR, _END, _LOST, _ARRIVAL, _BEGIN, _WAKE = range(6)
"""What can happen; of what happens at one moment, in this order."""


def simulate(
    system: System, load: Load, requests: int, *, seed: int = 0, jitter: float = 0.0, traced: int = 0
) -> Simulated:
    """Return what becomes of some requests; the same arguments give the same answer, bit for bit.

    Args:
        system: devices, links and dataflows.
        load: how requests arrive; `Listed` has at most as many as its times.
        requests: how many, one or more.
        seed: of random arrivals and of the jitter.
        jitter: the spread of computing times: the standard deviation of their logarithm; their mean stays.
        traced: of how many of the first requests all is told.
    """
    return _Simulation(system, load, requests, seed, jitter, traced).run()


class _Simulation:
    """The state of everything at one moment, and what is to happen."""

    def __init__(self, system: System, load: Load, requests: int, seed: int, jitter: float, traced: int) -> None:
        self.system, self.load, self.traced = system, load, traced
        self.flows = [Flow(dataflow, system) for dataflow in system.dataflows]
        self.devices = [DeviceState(device, index) for index, device in enumerate(system.devices)]
        for flow in self.flows:
            for partition in flow.partitions:
                for device, _ in partition.seconds:
                    self.devices[device].swaps |= partition.is_swapped
        self.swapping = [device for device in self.devices if device.swaps]
        self.links = [LinkState(link) for link in system.links]
        self.events: list[tuple[float, int, int, int, int, Any]] = []
        self.counter = itertools.count()
        self.messages = itertools.count()
        self.touched: list[DeviceState] = []
        self.arrivals = arrivals(load, requests, seed)
        self.factors = factors(jitter, seed) if jitter > 0 else None
        self.numbers = itertools.count()
        self.to_begin = min(requests, len(load.times_s)) if isinstance(load, Listed) else requests
        self.waiting: deque[tuple[int, float]] = deque()
        self.most_waiting = self.in_flight = self.most_in_flight = 0
        self.first_s: float | None = None
        self.last_s = 0.0
        self.ended, self.latencies = array("q"), array("d")
        self.refused: list[int] = []
        self.used = [0] * len(self.flows)
        self.lives: list[Life] = []
        self.spans: list[Span] = []
        self.handlers = (
            self._on_tensor,
            self._on_end,
            self._on_lost,
            self._on_arrival,
            self._on_begin,
            self._on_wake,
        )

    def run(self) -> Simulated:
        self._first_arrivals()
        events, handlers = self.events, self.handlers
        while events:
            now = events[0][0]
            while events and events[0][0] == now:
                event = heapq.heappop(events)
                handlers[event[1]](now, event)
            self._start_touched(now)
        self._check_all_ended()
        return self._result()

    def _push(self, time_s: float, kind: int, number: int, index: int, payload: Any) -> None:
        heapq.heappush(self.events, (time_s, kind, number, index, next(self.counter), payload))

    # Requests come and go.

    def _first_arrivals(self) -> None:
        match self.load:
            case Closed(in_flight):
                for _ in range(min(in_flight, self.to_begin)):
                    self._let_in(next(self.numbers), 0.0, 0.0)
            case Open() | Listed():
                self._next_arrival()
            case _ as never:
                assert_never(never)

    def _next_arrival(self) -> None:
        time_s = next(self.arrivals, None)
        if time_s is not None:
            self._push(time_s, _ARRIVAL, next(self.numbers), 0, None)

    def _on_arrival(self, now: float, event: tuple[float, int, int, int, int, Any]) -> None:
        assert not isinstance(self.load, Closed), "a closed load begins requests itself"
        number, limit = event[2], self.load.in_flight
        self.first_s = now if self.first_s is None else self.first_s
        if limit is None or self.in_flight < limit:
            self._let_in(number, now, now)
        elif self.load.most_waiting is None or len(self.waiting) < self.load.most_waiting:
            self.waiting.append((number, now))
            self.most_waiting = max(self.most_waiting, len(self.waiting))
        else:
            self.refused.append(number)
        self._next_arrival()

    def _let_in(self, number: int, arrived_s: float, now: float) -> None:
        self.first_s = arrived_s if self.first_s is None else self.first_s
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._push(now, _BEGIN, number, 0, arrived_s)

    def _on_begin(self, now: float, event: tuple[float, int, int, int, int, Any]) -> None:
        index = 0 if self.system.choose is None else self.system.choose(now)
        flow, number = self.flows[index], event[2]
        self.used[index] += 1
        device_of = flow.device_of if flow.is_fixed else list(flow.device_of)
        request = Request(number, event[5], now, flow, list(flow.missing), flow.left, device_of, number < self.traced)
        self._spread(request, REQUEST, self.system.entry, now)
        for partition, missing in enumerate(flow.missing):
            if not missing:
                self._make_ready(request, partition, now)

    def _progress(self, request: Request, now: float) -> None:
        request.left -= 1
        if request.left:
            return
        self.ended.append(request.number)
        self.latencies.append(now - request.arrived_s)
        self.last_s = max(self.last_s, now)
        if request.is_traced:
            name = request.flow.dataflow.name
            self.lives.append(Life(request.number, name, request.arrived_s, request.began_s, now))
        for device in self.swapping:
            device.chunk.discard(request.number)
        self.in_flight -= 1
        if self.waiting:
            number, arrived_s = self.waiting.popleft()
            self._let_in(number, arrived_s, now)
        elif isinstance(self.load, Closed):
            number = next(self.numbers)
            if number < self.to_begin:
                self._let_in(number, now, now)

    # Tensors.

    def _spread(self, request: Request, producer: int, source: int, now: float) -> None:
        """Send what a partition, or the request, makes to all that need it."""
        flow = request.flow
        for tensor in flow.made[producer]:
            if flow.is_fixed:
                here, is_answer, messages = flow.fixed_sends[tensor]
            else:
                for consumer in flow.dataflow.tensors[tensor].consumers:
                    if request.device_of[consumer] < 0:
                        self._choose_device(request, consumer, now)
                here, is_answer, messages = flow.sends(tensor, source, request.device_of)
            for message in messages:
                self._carry(request, tensor, 0, message, next(self.messages), now)
            self._deliver(request, here, is_answer, now)

    def _carry(
        self,
        request: Request,
        tensor: int,
        position: int,
        message: tuple[tuple[int, ...], tuple[int, ...], bool],
        identity: int,
        now: float,
    ) -> None:
        """Put a message on the next link of its way."""
        state, told = self.links[message[0][position]], request.flow.dataflow.tensors[tensor]
        start, end = state.carry(now, told.nbytes, told.reach)
        if request.is_traced:
            self._note_transfer(request, tensor, state, message[1], identity, (now, start, end))
        payload = (request, position + 1, message, identity)
        heapq.heappush(
            self.events,
            (end + state.link.latency_s, _TENSOR, request.number, tensor, next(self.counter), payload),
        )

    def _on_tensor(self, now: float, event: tuple[float, int, int, int, int, Any]) -> None:
        request, position, message, identity = event[5]
        if position < len(message[0]):
            self._carry(request, event[3], position, message, identity, now)
        else:
            self._deliver(request, message[1], message[2], now)

    def _deliver(self, request: Request, partitions: Iterable[int], is_answer: bool, now: float) -> None:
        missing = request.missing
        for partition in partitions:
            missing[partition] -= 1
            if not missing[partition]:
                self._make_ready(request, partition, now)
        if is_answer:
            self._progress(request, now)

    # Partitions.

    def _choose_device(self, request: Request, partition: int, now: float) -> None:
        """Take the first device that has nothing to do, else the one that would be through first; none that is down."""
        seconds = request.flow.seconds[partition]
        up = [d for d in seconds if up_at(self.devices[d].spec.downs, now) == now] or list(seconds)
        idle = [d for d in up if not self.devices[d].assigned]
        chosen = idle[0] if idle else min(up, key=lambda d: self.devices[d].assigned_s + seconds[d])
        request.device_of[partition] = chosen
        self.devices[chosen].assigned += 1
        self.devices[chosen].assigned_s += seconds[chosen]

    def _release_device(self, request: Request, partition: int, device: DeviceState) -> None:
        if request.flow.device_of[partition] < 0:
            device.assigned -= 1
            device.assigned_s -= request.flow.seconds[partition][device.index]
            if not device.assigned:
                device.assigned_s = 0.0  # what rounding has left

    def _make_ready(self, request: Request, partition: int, now: float) -> None:
        if request.device_of[partition] < 0:  # nothing was sent to it
            self._choose_device(request, partition, now)
        device = self.devices[request.device_of[partition]]
        if request.flow.is_relay[partition]:
            self._finish(request, partition, device, now)
            return
        if device.swaps:
            self._queue_swapping(device, request, partition, now)
        else:
            heapq.heappush(device.ready, (request.number, partition, now, request))
        self._touch(device)

    def _touch(self, device: DeviceState) -> None:
        if not device.is_touched:
            device.is_touched = True
            self.touched.append(device)

    def _start_touched(self, now: float) -> None:
        """Begin what can begin, once all that happened at this moment is known."""
        touched = self.touched
        if not touched:
            return
        if len(touched) > 1:
            touched.sort(key=lambda device: device.index)
        self.touched = []
        for device in touched:
            device.is_touched = False
            if not device.is_busy:
                if device.swaps and not device.ready:
                    _open_chunk(device)
                if device.ready:
                    self._start(device, now)
            waiting = len(device.ready) + len(device.lobby)
            if waiting > device.most_waiting:
                device.most_waiting = waiting

    def _start(self, device: DeviceState, now: float) -> None:
        up_s = up_at(device.spec.downs, now) if device.spec.downs else now
        if up_s > now:
            if device.wakes_s != up_s:
                device.wakes_s = up_s
                self._push(up_s, _WAKE, -1, device.index, None)
            return
        entry = heapq.heappop(device.ready)
        request = entry[3]
        partition = entry[0] if device.swaps else entry[1]
        seconds = request.flow.seconds[partition][device.index]
        if self.factors is not None:
            seconds *= next(self.factors)
        told = request.flow.partitions[partition]
        load_s = told.load_s if told.is_swapped and device.loaded != told.name else 0.0
        if device.swaps:
            device.loaded = told.name if told.is_swapped else ""
        end = now + load_s + seconds if load_s else now + seconds
        device.is_busy = True
        device.waited_s += now - entry[2]
        fault = first_within(device.spec.downs, now, end) if device.spec.downs else None
        if fault is None:
            self._push(end, _END, request.number, partition, (request, device, now, load_s, entry[2]))
        else:
            self._push(fault.from_s, _LOST, request.number, partition, (request, device, now, entry))

    def _on_end(self, now: float, event: tuple[float, int, int, int, int, Any]) -> None:
        request, device, start, load_s, ready_s = event[5]
        partition = event[3]
        device.is_busy = False
        device.busy_s += now - start
        device.load_s += load_s
        device.runs += 1
        if request.is_traced:
            self._note_run(request, partition, device, (ready_s, start, now), load_s)
        self._finish(request, partition, device, now)
        self._touch(device)

    def _finish(self, request: Request, partition: int, device: DeviceState, now: float) -> None:
        if not request.flow.is_fixed:
            self._release_device(request, partition, device)
        self._spread(request, partition, device.index, now)
        self._progress(request, now)

    def _on_lost(self, now: float, event: tuple[float, int, int, int, int, Any]) -> None:
        """Put what a fault broke off back: it runs again on the same device, when that is up."""
        request, device, start, entry = event[5]
        device.is_busy = False
        device.loaded = ""
        device.lost_s += now - start
        device.reruns += 1
        if request.is_traced:
            self._note_run(request, event[3], device, (entry[2], start, now), 0.0, is_lost=True)
        heapq.heappush(device.ready, (entry[0], entry[1], now, request))
        self._touch(device)

    def _on_wake(self, now: float, event: tuple[float, int, int, int, int, Any]) -> None:
        self._touch(self.devices[event[3]])

    def _queue_swapping(self, device: DeviceState, request: Request, partition: int, now: float) -> None:
        if request.number in device.chunk:
            heapq.heappush(device.ready, (partition, request.number, now, request))
        else:
            device.lobby.setdefault(request.number, (request, []))[1].append((partition, now))

    # What is told.

    def _note_transfer(
        self,
        request: Request,
        tensor: int,
        state: LinkState,
        consumers: tuple[int, ...],
        message: int,
        times_s: tuple[float, float, float],
    ) -> None:
        told, partitions = request.flow.dataflow.tensors[tensor], request.flow.partitions
        self.spans.append(
            Span(
                "transfer",
                state.link.name,
                request.number,
                told.name,
                *times_s,
                message=message,
                producer="" if told.producer == REQUEST else partitions[told.producer].name,
                consumers=tuple(partitions[consumer].name for consumer in consumers),
            )
        )

    def _note_run(
        self,
        request: Request,
        partition: int,
        device: DeviceState,
        times_s: tuple[float, float, float],
        load_s: float,
        *,
        is_lost: bool = False,
    ) -> None:
        ready_s, start, end = times_s
        name, resource = request.flow.partitions[partition].name, device.spec.name
        if load_s:
            self.spans.append(Span("load", resource, request.number, name, ready_s, start, start + load_s))
            ready_s = start = start + load_s
        self.spans.append(Span("compute", resource, request.number, name, ready_s, start, end, is_lost))

    def _check_all_ended(self) -> None:
        ended = len(self.ended) + len(self.refused)
        if ended != self.to_begin or self.in_flight or self.waiting:
            raise InternalError(f"of {self.to_begin} simulated requests {ended} ended")

    def _result(self) -> Simulated:
        start_s = self.first_s or 0.0
        seconds = self.last_s - start_s
        devices = tuple(device.use(seconds) for device in self.devices)
        links = tuple(link.use(seconds) for link in self.links)
        return Simulated(
            requests=np.frombuffer(self.ended, dtype=np.int64).copy(),
            latencies_s=np.frombuffer(self.latencies, dtype=np.float64).copy(),
            refused=tuple(self.refused),
            start_s=start_s,
            end_s=self.last_s,
            devices=devices,
            links=links,
            variants=tuple((flow.dataflow.name, n) for flow, n in zip(self.flows, self.used, strict=True)),
            most_in_flight=self.most_in_flight,
            most_waiting=self.most_waiting,
            lives=tuple(self.lives),
            spans=tuple(self.spans),
        )


def _open_chunk(device: DeviceState) -> None:
    """Let the next requests in, as many as there is room for, and queue what of them can run.

    It is done when the chunk before is through, and when that waits for other devices: these may wait for this one.
    """
    if not device.chunk and not device.lobby:
        device.loaded = ""  # a worker without work releases what it does not keep
    room = len(device.lobby) if device.spec.room is None else max(device.spec.room, 1)
    for number in sorted(device.lobby)[:room]:
        request, ready = device.lobby.pop(number)
        device.chunk.add(number)
        for partition, since_s in ready:
            heapq.heappush(device.ready, (partition, number, since_s, request))
