"""Runs requests on a worker, through a client's side of a transport."""

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hyps.adapters.feeds import Feeds
from hyps.adapters.frames import Buffer, check_frames, from_frames, to_frames
from hyps.adapters.transport import Client, ZmqClient
from hyps.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    HypsError,
    PeerError,
    PlanError,
    TensorError,
    UsageError,
    printable,
)
from hyps.formats.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Heartbeat,
    Hello,
    Probe,
    Probed,
    Submit,
    Welcome,
    decode_from_worker,
    encode,
)
from hyps.formats.signature import check_outputs

_MAX_ANSWER_NBYTES = 2**31
_CONNECT_S, _BEAT_S, _SILENCE_S, _BUSY_S = 5.0, 1.0, 10.0, 30.0
_ERRORS: Mapping[str, type[HypsError]] = {
    kind.default_code: kind for kind in (DeadlineError, ExecutionError, PlanError, TensorError)
}


def connect(address: str) -> "RemoteRunner":
    """Return a runner for the worker at `address`.

    Raises:
        UsageError: no address.
        PeerError: no worker answers there within a few seconds.
    """
    return RemoteRunner(ZmqClient(address, max_nbytes=_MAX_ANSWER_NBYTES), address)


class RemoteRunner:
    """One worker, asked for one request at a time.

    After the connection was lost the next request makes a new one, to the same model or not at all.

    Attributes:
        inputs, outputs: the model's, as its plan declares them.
        model_name, producer: what is known of it.
    """

    def __init__(self, client: Client, shown: str) -> None:
        """Say hello to the worker that `client` reaches; `shown` is its address, for messages.

        Raises:
            PeerError: nobody answers, or not in this version of the protocol.
        """
        self._client, self._shown = client, printable(shown)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._is_lost = False
        self._is_closed = False
        try:
            self._welcome = self._hello()
        except BaseException:
            client.close()
            raise
        self.inputs, self.outputs = self._welcome.inputs, self._welcome.outputs
        self.model_name, self.producer = self._welcome.model, self._welcome.producer
        self._feeds = Feeds(self.inputs)

    def run(self, feeds: Mapping[str, Any], output_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the outputs of one request by name; waits while the worker is busy, for half a minute.

        Raises:
            TensorError, ExecutionError: as a `LocalRunner` would.
            BusyError: the worker had no room all that time.
            PeerError: the worker is gone, silent, or answers nonsense.
        """
        check_outputs(self.outputs, output_names or ())
        headers, frames = to_frames(self._feeds.checked(feeds))
        for header in headers:
            if header.nbytes > self._welcome.max_nbytes:
                raise TensorError(
                    f"`{printable(header.name)}` has {header.nbytes} bytes and `{self._shown}` takes "
                    f"{self._welcome.max_nbytes}",
                    "start the worker with a larger `--memory`",
                )
        with self._lock:
            return self._run(Submit("", headers, tuple(output_names or ())), frames)

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
        payload = bytes(nbytes_up)
        with self._lock:
            requests = [str(next(self._numbers)) for _ in range(count)]
            answer = Probed("")
            start_s = time.perf_counter()
            for request in requests:
                self._send([encode(Probe(request, nbytes_down, wants_seconds)), payload])
            for request in requests:
                message, parts = self._await(request)
                if not isinstance(message, Probed) or [len(part) for part in parts] != [nbytes_down]:
                    raise PeerError(f"`{self._shown}` answered a probe wrongly", code="E_PROTOCOL")
                answer = message
            return time.perf_counter() - start_s, answer

    @property
    def device(self) -> str:
        """What the worker calls itself."""
        return self._welcome.device

    @property
    def max_nbytes(self) -> int:
        """The most bytes that one tensor for the worker may have."""
        return self._welcome.max_nbytes

    def close(self) -> None:
        """Leave the worker."""
        with self._lock:
            self._is_closed = True
            self._client.close()

    def _run(self, submit: Submit, frames: Sequence[Buffer]) -> dict[str, Any]:
        if self._is_closed:
            raise UsageError("the session was closed and cannot be run any more", "open it again")
        deadline_s = time.monotonic() + _BUSY_S
        if self._is_lost:
            self._reconnect()
        while True:
            request = str(next(self._numbers))
            try:
                return self._ask(Submit(request, submit.tensors, submit.outputs), frames)
            except BusyError as error:
                if time.monotonic() + error.retry_after_s > deadline_s:
                    raise
                time.sleep(error.retry_after_s)

    def _ask(self, submit: Submit, frames: Sequence[Buffer]) -> dict[str, Any]:
        try:
            self._send([encode(submit), *frames])
        except PeerError:  # lost while nothing was asked: the request did not leave
            self._reconnect()
            self._send([encode(submit), *frames])
        try:
            message, parts = self._await(submit.request)
        except KeyboardInterrupt:
            self._send([encode(Cancel(submit.request))])
            raise
        if not isinstance(message, Done):
            raise PeerError(f"`{self._shown}` answered a request with {type(message).__name__}", code="E_PROTOCOL")
        wanted = [tensor for tensor in self.outputs if tensor.name in (submit.outputs or self._output_names())]
        try:
            check_frames(message.tensors, parts, wanted, "output")
        except TensorError as error:
            raise PeerError(f"`{self._shown}` answered wrongly: {error.message}", code="E_PROTOCOL") from error
        return from_frames(message.tensors, parts)

    def _output_names(self) -> list[str]:
        return [tensor.name for tensor in self.outputs]

    def _reconnect(self) -> None:
        welcome = self._hello()
        if welcome.sha256 != self._welcome.sha256:
            raise PeerError(f"the worker at `{self._shown}` serves another model now", "open a new session")
        self._is_lost = False

    def _hello(self) -> Welcome:
        self._send([encode(Hello(PROTOCOL_VERSION))])
        message, _ = self._await("")
        if not isinstance(message, Welcome):
            raise PeerError(f"`{self._shown}` is no worker of HyPS", code="E_PROTOCOL")
        return message

    def _await(self, request: str) -> tuple[FromWorker, Sequence[Buffer]]:
        """Return the answer to a request, or to `Hello` where `request` is empty."""
        heard_s = time.monotonic()
        while True:
            parts = self._receive()
            if parts is None:
                if time.monotonic() - heard_s > _SILENCE_S:
                    self._is_lost = True
                    raise PeerError(f"`{self._shown}` is silent", "see whether the worker still runs")
                self._send([encode(Heartbeat())])
                continue
            heard_s = time.monotonic()
            message = decode_from_worker(memoryview(parts[0]))
            if isinstance(message, Failed) and message.request in ("", request):
                raise _refusal(message)
            if isinstance(message, Welcome) and not request:
                return message, ()
            if isinstance(message, Done | Probed) and message.request == request:
                return message, parts[1:]

    def _send(self, parts: Sequence[Buffer]) -> None:
        try:
            self._client.send(parts, _CONNECT_S)
        except PeerError:
            self._is_lost = True
            raise

    def _receive(self) -> Sequence[Buffer] | None:
        try:
            return self._client.receive(_BEAT_S)
        except PeerError:
            self._is_lost = True
            raise


def _refusal(message: Failed) -> HypsError:
    text, hint = printable(message.message, 1000), printable(message.hint, 1000)
    if message.code == BusyError.default_code:
        return BusyError(text, hint, retry_after_s=message.retry_after_s or 0.0)
    return _ERRORS.get(message.code, PeerError)(text, hint, printable(message.code))
