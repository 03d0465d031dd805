"""Runs requests on a worker or manager, many at once, from any threads."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyps.adapters.feeds import Feeds
from hyps.adapters.frames import to_frames
from hyps.adapters.links import Links
from hyps.adapters.zmq_links import ZmqLinks
from hyps.connection import Connection
from hyps.core.client_state import Patience
from hyps.errors import DeadlineError, TensorError, UsageError, printable
from hyps.formats.messages import Probed
from hyps.formats.quantities import format_seconds
from hyps.formats.signature import check_outputs

if TYPE_CHECKING:
    from concurrent.futures import Future

MOST_IN_FLIGHT = 64
"""Requests of one connection that are not answered yet; further ones wait for their turn."""

_MAX_ANSWER_NBYTES = 2**31
"""Of one tensor."""

_LEAST_S = 1e-3
"""Of a deadline that has come while the request waited for its turn."""


def connect(address: str, *, timeout_s: float | None = None) -> "RemoteRunner":
    """Return a runner for the worker or manager at `address`; `timeout_s` is each request's deadline.

    Raises:
        UsageError: no address, or a deadline that is not above zero.
        PeerError: nobody answers there within a few seconds.
    """
    return RemoteRunner(ZmqLinks(frame_nbytes=_MAX_ANSWER_NBYTES), address, timeout_s=timeout_s)


class RemoteRunner:
    """One connection to a worker or manager, with many requests under way.

    After the connection was lost, what was under way fails (`LostError` says whether the peer had promised an answer);
    what was not sent yet, or refused for want of room, is sent on the next connection, to the same model or not at all.

    Attributes:
        inputs, outputs: the model's, as its plan declares them.
        model_name, producer, device: what is known of it, and what the peer calls itself.
        most_in_flight: how many requests may be unanswered; `submit` waits beyond.
    """

    def __init__(
        self,
        links: Links,
        address: str,
        *,
        timeout_s: float | None = None,
        most_in_flight: int = MOST_IN_FLIGHT,
        patience: Patience | None = None,
    ) -> None:
        """Say hello at `address` over `links`, which belong to the runner from now on.

        Raises:
            UsageError: no address, or a deadline that is not above zero.
            PeerError: nobody answers, or not in this version of the protocol.
        """
        self._shown = printable(address)
        self._connection = Connection(links, address, most_in_flight=most_in_flight, patience=patience)
        self._finalize = weakref.finalize(self, self._connection.close)
        self.most_in_flight = most_in_flight
        self._slots = threading.BoundedSemaphore(most_in_flight)
        try:
            self._timeout_s = _checked_timeout(timeout_s)
            welcome = self._connection.reach().result()
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = welcome.inputs, welcome.outputs
        self.model_name, self.producer, self.device = welcome.model, welcome.producer, welcome.device
        self._feeds = Feeds(self.inputs)
        self._declared = {tensor.name: tensor for tensor in self.outputs}

    @property
    def max_nbytes(self) -> int:
        """The most bytes that one tensor for the peer may have."""
        return self._connection.max_nbytes

    def run(
        self, feeds: Mapping[str, Any], output_names: Sequence[str] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return the outputs of one request by name; waits while the peer is busy, for half a minute.

        Raises:
            TensorError, ExecutionError: as a `LocalRunner` would.
            DeadlineError: there was no answer within `timeout_s`, or the runner's own.
            BusyError: the peer had no room all that time.
            LostError: the connection was lost while the request was under way.
            PeerError: the peer is gone, or answers nonsense.
            UsageError: the runner was closed.
        """
        future = self.submit(feeds, output_names, timeout_s)
        try:
            return future.result()
        finally:
            future.cancel()  # where this was interrupted; it changes nothing once there is an answer
            del future  # an error holds this frame, and the future the error

    def submit(
        self, feeds: Mapping[str, Any], output_names: Sequence[str] | None = None, timeout_s: float | None = None
    ) -> "Future[dict[str, Any]]":
        """Send a request and return the future of its outputs, by name; waits while too many are unanswered.

        Large arrays are sent from where they lie: do not change them until the future is done. `cancel` withdraws the
        request at any time before. The future ends with what `run` raises.

        Raises:
            TensorError: the feeds are not as the model declares.
            DeadlineError: too many requests were unanswered until the deadline.
            UsageError: the runner was closed, or the deadline is not above zero.
        """
        limit_s = _checked_timeout(timeout_s) or self._timeout_s
        begin_s = time.monotonic()
        if not self._slots.acquire(timeout=limit_s):
            text = (
                f"{self.most_in_flight} requests to `{self._shown}` were unanswered for {format_seconds(limit_s or 0)}"
            )
            raise DeadlineError(text, "give it longer, or send fewer at once")
        left_s = None if limit_s is None else max(limit_s - (time.monotonic() - begin_s), _LEAST_S)
        try:
            future = self.start(feeds, output_names, left_s)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())  # which keeps a runner that nobody else has
        return future

    def start(
        self, feeds: Mapping[str, Any], output_names: Sequence[str] | None = None, timeout_s: float | None = None
    ) -> "Future[dict[str, Any]]":
        """Do as `submit` and never wait: for callers who keep the runner, and see to it that few are unanswered.

        Raises:
            TensorError, UsageError: as `submit`.
        """
        check_outputs(self.outputs, output_names or ())
        headers, frames = to_frames(self._feeds.checked(feeds))
        for header in headers:
            if header.nbytes > self.max_nbytes:
                raise TensorError(
                    f"`{printable(header.name)}` has {header.nbytes} bytes and `{self._shown}` takes {self.max_nbytes}",
                    "start the worker with a larger `--memory`",
                )
        wanted = [self._declared[name] for name in output_names] if output_names else self.outputs
        limit_s = _checked_timeout(timeout_s) or self._timeout_s
        return self._connection.ask(headers, frames, output_names or (), wanted, limit_s)

    def run_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        output_names: Sequence[str] | None = None,
        *,
        in_flight: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the outputs of each of `requests`, in their order, with up to `in_flight` unanswered or not yielded.

        Takes no more of `requests` than that in advance; what is left is withdrawn when the iteration is given up.

        Raises:
            UsageError: `in_flight` is below 1.
            HypsError: as `run`, at the place of the request that failed.
        """
        most = self.most_in_flight if in_flight is None else in_flight
        if most < 1:
            raise UsageError(f"`in_flight` is {most} and must be at least 1")
        return self._pipelined(requests, output_names, most, timeout_s)

    def run_batch(
        self, requests: Sequence[Mapping[str, Any]], output_names: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the outputs of each of `requests`, in their order.

        Raises:
            HypsError: as `run`, of the first request that failed.
        """
        return list(self.run_many(requests, output_names))

    def probe(
        self, nbytes_up: int = 0, nbytes_down: int = 0, count: int = 1, *, wants_seconds: bool = False
    ) -> tuple[float, Probed]:
        """Send `count` probes at once; return the seconds until the last answer, and that.

        Args:
            nbytes_up: of each probe.
            nbytes_down: of each answer.
            count: at most a few; more than the connection holds would wait.
            wants_seconds: whether to ask for the partitions' seconds and the machine's facts.

        Raises:
            BusyError: the worker has requests to compute.
            PeerError: the worker is gone, or does not answer probes.
        """
        self._connection.reach().result()
        return self._connection.probe(nbytes_up, nbytes_down, count, wants_seconds).result()

    def close(self) -> None:
        """Leave the peer: what is under way fails, and no thread or descriptor is left."""
        self._finalize()

    def _pipelined(
        self,
        requests: Iterable[Mapping[str, Any]],
        output_names: Sequence[str] | None,
        most: int,
        timeout_s: float | None,
    ) -> Iterator[dict[str, Any]]:
        futures: deque[Future[dict[str, Any]]] = deque()
        try:
            for feeds in requests:
                futures.append(self.submit(feeds, output_names, timeout_s))
                while futures and (len(futures) >= most or futures[0].done()):
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()


def _checked_timeout(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"a deadline of {timeout_s} s is none", "give more than zero seconds, or None")
    return timeout_s
