"""Which requests a worker accepts: bounded in number and in bytes, none once it is leaving."""

from collections.abc import Mapping
from enum import Enum

from hyps.errors import InternalError

_FIRST_GUESS_S, _LEAST_S, _MOST_S = 0.1, 0.01, 5.0
_SMOOTHING = 0.2


class ServiceState(Enum):
    """Where a worker's service is in its life."""

    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class Trigger(Enum):
    """What moves it on."""

    TOLD_TO_LEAVE = "told to leave"
    LAST_ANSWERED = "last answered"


class Verdict(Enum):
    """What becomes of an offered request."""

    ACCEPTED = "accepted"
    BUSY = "busy"
    LEAVING = "leaving"


TRANSITIONS: Mapping[tuple[ServiceState, Trigger], ServiceState] = {
    (ServiceState.SERVING, Trigger.TOLD_TO_LEAVE): ServiceState.DRAINING,
    (ServiceState.DRAINING, Trigger.TOLD_TO_LEAVE): ServiceState.DRAINING,
    (ServiceState.GONE, Trigger.TOLD_TO_LEAVE): ServiceState.GONE,
    (ServiceState.DRAINING, Trigger.LAST_ANSWERED): ServiceState.GONE,
}
"""Every change of the service's state; what is not in here cannot happen."""


class Admission:
    """The requests that were accepted and are not answered yet."""

    def __init__(self, max_requests: int, max_nbytes: int) -> None:
        """Take the bounds; one request is accepted whatever its bytes, or it could never be."""
        self.max_requests, self.max_nbytes = max_requests, max_nbytes
        self._accepted: dict[str, int] = {}
        self._seconds = _FIRST_GUESS_S
        self.state = ServiceState.SERVING

    def offer(self, request: str, nbytes: int) -> Verdict:
        """Accept the request, or say why not."""
        if self.state is not ServiceState.SERVING:
            return Verdict.LEAVING
        is_full = len(self._accepted) >= self.max_requests or self.nbytes + nbytes > self.max_nbytes
        if is_full and self._accepted:
            return Verdict.BUSY
        if request in self._accepted:
            raise InternalError("a request was offered twice")
        self._accepted[request] = nbytes
        return Verdict.ACCEPTED

    def end(self, request: str, seconds: float) -> None:
        """Forget a request that was answered or given up; `seconds` is what its computing took."""
        if self._accepted.pop(request, None) is None:
            return
        self._seconds += _SMOOTHING * (seconds - self._seconds)
        self._leave_when_done()

    def drain(self) -> None:
        """Accept nothing more; the service is gone once the last accepted request has ended."""
        self._move(Trigger.TOLD_TO_LEAVE)
        self._leave_when_done()

    @property
    def nbytes(self) -> int:
        """The bytes of all accepted requests."""
        return sum(self._accepted.values())

    @property
    def retry_after_s(self) -> float:
        """When a refused request may find room: half the queue from now, by what requests took so far."""
        return min(_MOST_S, max(_LEAST_S, self._seconds * len(self._accepted) / 2))

    def __len__(self) -> int:
        return len(self._accepted)

    def _leave_when_done(self) -> None:
        if self.state is ServiceState.DRAINING and not self._accepted:
            self._move(Trigger.LAST_ANSWERED)

    def _move(self, trigger: Trigger) -> None:
        after = TRANSITIONS.get((self.state, trigger))
        if after is None:
            raise InternalError(f"the service was {self.state.value} and then {trigger.value}")
        self.state = after
