"""Clients' requests: their lives, whose turn it is, and the order in which each client is answered."""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hyps.errors import InternalError


class RequestState(Enum):
    """Where an accepted request is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RequestTrigger(Enum):
    """What moves it on."""

    BEGUN = "begun"
    DEVICE_LOST = "device lost"
    OUTPUTS_HERE = "outputs here"
    FAILED = "failed"
    NOT_WANTED = "not wanted any more"


TRANSITIONS: Mapping[tuple[RequestState, RequestTrigger], RequestState] = {
    (RequestState.QUEUED, RequestTrigger.BEGUN): RequestState.RUNNING,
    (RequestState.RUNNING, RequestTrigger.DEVICE_LOST): RequestState.QUEUED,
    (RequestState.RUNNING, RequestTrigger.OUTPUTS_HERE): RequestState.FINISHED,
    (RequestState.QUEUED, RequestTrigger.FAILED): RequestState.FAILED,
    (RequestState.RUNNING, RequestTrigger.FAILED): RequestState.FAILED,
    (RequestState.QUEUED, RequestTrigger.NOT_WANTED): RequestState.CANCELLED,
    (RequestState.RUNNING, RequestTrigger.NOT_WANTED): RequestState.CANCELLED,
    (RequestState.FINISHED, RequestTrigger.NOT_WANTED): RequestState.CANCELLED,
}
"""Every change of a request's state; what is not in here cannot happen."""

ENDED = frozenset({RequestState.FINISHED, RequestState.FAILED, RequestState.CANCELLED})


@dataclass(slots=True, eq=False)
class Request:
    """A client's request that was accepted."""

    number: int
    client: int
    name: str
    tensors: Mapping[str, int]
    """Name and bytes of each of its inputs."""
    nbytes: int
    outputs: tuple[str, ...]
    """Those wanted."""
    accepted_s: float
    deadline_s: float | None
    batch: Hashable | None
    """Equal for requests that can be computed together; None: alone."""
    rows: int
    state: RequestState = RequestState.QUEUED
    work: int | None = None
    """The piece of work that it is part of."""
    begun_s: float | None = None
    is_said: bool = False
    """Whether its answer is on its way to the client."""
    partitions: frozenset[str] | None = None
    """Of a relayed request, whose inputs come one by one: those that are to run; None: it is none."""

    def move(self, trigger: RequestTrigger) -> None:
        """Move on in its life."""
        after = TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"request {self.number} was {self.state.value} and then {trigger.value}")
        self.state = after


@dataclass(slots=True, eq=False)
class _Client:
    waiting: dict[int, Request] = field(default_factory=dict)
    in_order: dict[int, Request] = field(default_factory=dict)
    """Those without an answer, in the order in which they were accepted."""
    by_name: dict[str, Request] = field(default_factory=dict)
    """The same; once the answer is on its way the name is free for another one."""
    all: dict[int, Request] = field(default_factory=dict)
    nbytes: int = 0
    untaken: int = 0
    """Answers on their way."""
    quiet_s: float = 0.0
    """Since when nothing of that has moved."""


class RequestQueue:
    """All accepted requests. Clients take turns; what a client sent first begins first, and is answered first."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._clients: dict[int, _Client] = {}
        self._turns: deque[int] = deque()
        self._in_turn: set[int] = set()
        """The same clients."""
        self.queued = 0
        """Requests that wait for their turn."""
        self.queued_nbytes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def get(self, number: int) -> Request | None:
        """Return the request of that number; None when it has ended and its answer was taken."""
        return self._requests.get(number)

    def find(self, client: int, name: str) -> Request | None:
        """Return a client's request by the client's own name for it, while it has no answer."""
        known = self._clients.get(client)
        return None if known is None else known.by_name.get(name)

    def of_client(self, client: int) -> list[Request]:
        """Return all requests of a client."""
        known = self._clients.get(client)
        return [] if known is None else list(known.all.values())

    @property
    def clients(self) -> int:
        """Clients that have requests."""
        return len(self._clients)

    def share_of(self, client: int) -> tuple[int, int]:
        """Return how many requests a client has, and the bytes that they brought."""
        known = self._clients.get(client)
        return (0, 0) if known is None else (len(known.all), known.nbytes)

    def add(self, request: Request) -> None:
        """Queue a new request."""
        client = self._clients.setdefault(request.client, _Client())
        self._requests[request.number] = request
        client.by_name[request.name] = client.all[request.number] = request
        client.in_order[request.number] = request
        client.nbytes += request.nbytes
        client.waiting[request.number] = request
        self.queued += 1
        self.queued_nbytes += request.nbytes
        if request.client not in self._in_turn:
            self._in_turn.add(request.client)
            self._turns.append(request.client)

    def head(self) -> Request | None:
        """Return the request whose turn it is."""
        while self._turns:
            client = self._clients.get(self._turns[0])
            if client is not None and client.waiting:
                return next(iter(client.waiting.values()))
            self._in_turn.remove(self._turns.popleft())
        return None

    def take(self, request: Request) -> None:
        """Take a request out of those that wait; it is another client's turn then."""
        client = self._clients[request.client]
        if self._unwait(client, request) and self._turns and self._turns[0] == request.client:
            self._turns.rotate(-1)

    def mates_of(self, head: Request, most_rows: int) -> list[Request]:
        """Return requests that can be computed together with the `head`, itself first, of so many rows at most."""
        mates, rows = [head], head.rows
        if head.batch is None:
            return mates
        for number in self._turns:
            client = self._clients.get(number)
            for request in () if client is None else client.waiting.values():
                if request is head:
                    continue
                if request.batch != head.batch or rows + request.rows > most_rows:
                    break
                mates.append(request)
                rows += request.rows
            if rows >= most_rows:
                break
        return mates

    def to_say(self, client: int) -> list[Request]:
        """Return the finished requests of a client that no unfinished one precedes and that were not said yet."""
        known = self._clients.get(client)
        ready = []
        for request in () if known is None else known.in_order.values():
            if request.state is not RequestState.FINISHED:
                break
            ready.append(request)
        return ready

    def note_said(self, request: Request, now_s: float) -> None:
        """An answer is on its way."""
        client = self._clients[request.client]
        del client.in_order[request.number], client.by_name[request.name]
        request.is_said = True
        client.quiet_s = client.quiet_s if client.untaken else now_s
        client.untaken += 1

    def forget(self, request: Request, now_s: float) -> None:
        """Nothing more is to be done for a request."""
        client = self._clients[request.client]
        del self._requests[request.number]
        del client.all[request.number]
        if client.in_order.pop(request.number, None) is not None:
            del client.by_name[request.name]
        client.nbytes -= request.nbytes
        self._unwait(client, request)
        if request.is_said:
            client.untaken -= 1
            client.quiet_s = now_s
        if not client.all:
            del self._clients[request.client]

    def silent_clients(self, since_s: float) -> list[int]:
        """Return the clients that have answers on their way and have taken none since then."""
        return [number for number, client in self._clients.items() if client.untaken and client.quiet_s <= since_s]

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        waiting = [r for client in self._clients.values() for r in client.waiting.values()]
        _require(len(waiting) == self.queued, "the requests that wait are miscounted")
        _require(sum(r.nbytes for r in waiting) == self.queued_nbytes, "the bytes that wait are miscounted")
        named = {r.number for client in self._clients.values() for r in client.all.values()}
        _require(named == set(self._requests), "a request is lost")
        for number, client in self._clients.items():
            _require(bool(client.all), "a client without requests is remembered")
            _require(number in self._in_turn or not client.waiting, f"client {number} waits and has no turn")
            _require({r.number for r in client.by_name.values()} == set(client.in_order), "a name is lost")
            _require(list(client.in_order) == sorted(client.in_order), "a client's requests are out of order")
            _require(client.untaken == sum(r.is_said for r in client.all.values()), "answers are miscounted")
        for request in waiting:
            _require(request.state is RequestState.QUEUED, f"request {request.number} waits, {request.state.value}")

    def _unwait(self, client: _Client, request: Request) -> bool:
        if client.waiting.pop(request.number, None) is None:
            return False
        self.queued -= 1
        self.queued_nbytes -= request.nbytes
        return True


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
