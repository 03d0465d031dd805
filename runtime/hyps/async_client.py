"""`hyps.AsyncSession`: requests to a plan, a worker or a manager from coroutines.

The only module of the runtime that imports asyncio, which takes 6 MB: `hyps` imports it when it is first used.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hyps.client import ModelMetadata, NodeArg, described, metadata_of, open_runner
from hyps.errors import DeadlineError, UsageError
from hyps.remote import MOST_IN_FLIGHT, RemoteRunner

if TYPE_CHECKING:
    from concurrent.futures import Future

    from hyps.local import LocalRunner

_Feeds = Mapping[str, Any]


class AsyncSession:
    """Runs a plan, here or on a worker or manager, without holding up the event loop.

    Requests of a plan folder are computed in a thread, one after another; those to an address are under way at once.

        async with hyps.AsyncSession("tcp://127.0.0.1:5757") as session:
            (scores,) = await session.run(None, {"image": image})
            async for (scores,) in session.stream(feeds):
                ...

    Cancelling a coroutine that waits for an answer withdraws its request; what a plan folder computes at that moment is
    computed to its end, and forgotten.
    """

    def __init__(
        self,
        plan_or_endpoint: Any,
        *,
        memory: int | str | None = None,
        threads: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Take what `hyps.InferenceSession` takes; nothing is opened before `async with`."""
        self._target, self._memory, self._threads, self._timeout_s = plan_or_endpoint, memory, threads, timeout_s
        self._runner: LocalRunner | RemoteRunner | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._slots = asyncio.Semaphore(MOST_IN_FLIGHT)

    async def __aenter__(self) -> Self:
        """Open the plan or connect.

        Raises:
            HypsError: as `hyps.InferenceSession`.
            UsageError: the session is open.
        """
        if self._thread is not None:
            raise UsageError("the session is open", "make one for each `async with`")
        self._thread = ThreadPoolExecutor(1, "hyps-session")
        opening = self._thread.submit(self._open)
        try:
            self._runner = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_unwanted)
            self._thread.shutdown(wait=False)
            self._thread = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the worker, and fail what is under way; or release the plan, once it has computed what it was given."""
        runner, thread = self._runner, self._thread
        self._runner = self._thread = None
        if runner is None or thread is None:
            return
        closing = thread.submit(runner.close)
        thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    async def run(
        self, output_names: Sequence[str] | None, input_feed: _Feeds, *, timeout_s: float | None = None
    ) -> list[Any]:
        """Return the outputs that `output_names` lists (None: all), in that order.

        Large arrays are sent from where they lie: do not change them until this returns.

        Args:
            output_names: of the model.
            input_feed: an array for each input.
            timeout_s: the request's deadline from now; None: the session's.

        Raises:
            HypsError: as `hyps.InferenceSession.run`.
            DeadlineError: there was no answer by the deadline.
            UsageError: the session is not open.
        """
        runner = self._opened()
        deadline_s = self._deadline_s(timeout_s)
        async with _until(deadline_s):
            await self._slots.acquire()
        try:
            made = await self._ask(runner, output_names, input_feed, deadline_s)
        finally:
            self._slots.release()
        return [made[name] for name in output_names or [tensor.name for tensor in runner.outputs]]

    def stream(
        self,
        input_feeds: AsyncIterable[_Feeds] | Iterable[_Feeds],
        output_names: Sequence[str] | None = None,
        *,
        in_flight: int = MOST_IN_FLIGHT,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[list[Any], None]:
        """Yield what `run` returns for each of `input_feeds`, in their order, as soon as it is there.

        Leaving the loop early withdraws what is under way once the generator is closed: at once within
        `contextlib.aclosing`.

        Args:
            input_feeds: taken from as answers are yielded, `in_flight` in advance.
            output_names: as for `run`.
            in_flight: the most requests that are under way, or answered and not yielded.
            timeout_s: each request's deadline, from when it is taken; None: the session's.

        Raises:
            HypsError: as `run`, at the place of the request that failed; the others are withdrawn.
            UsageError: `in_flight` is below 1, or the session is not open.
        """
        if in_flight < 1:
            raise UsageError(f"`in_flight` is {in_flight} and must be at least 1")
        self._opened()
        return self._stream(input_feeds, output_names, in_flight, timeout_s)

    def get_inputs(self) -> list[NodeArg]:
        """Return the model's inputs.

        Raises:
            UsageError: the session is not open; so do the following.
        """
        return described(self._opened().inputs)

    def get_outputs(self) -> list[NodeArg]:
        """Return the model's outputs."""
        return described(self._opened().outputs)

    def get_modelmeta(self) -> ModelMetadata:
        """Return what is known of the model."""
        return metadata_of(self._opened())

    def _open(self) -> "LocalRunner | RemoteRunner":
        return open_runner(self._target, memory=self._memory, threads=self._threads, timeout_s=self._timeout_s)

    def _opened(self) -> "LocalRunner | RemoteRunner":
        if self._runner is None:
            raise UsageError("the session is not open", "use it within `async with hyps.AsyncSession(...) as session`")
        return self._runner

    def _deadline_s(self, timeout_s: float | None) -> float | None:
        if timeout_s is not None and not timeout_s > 0:
            raise UsageError(f"a deadline of {timeout_s} s is none", "give more than zero seconds, or None")
        if timeout_s is None and isinstance(self._runner, RemoteRunner):
            timeout_s = self._timeout_s
        return None if timeout_s is None else time.monotonic() + timeout_s

    async def _ask(
        self,
        runner: "LocalRunner | RemoteRunner",
        output_names: Sequence[str] | None,
        feeds: _Feeds,
        deadline_s: float | None,
    ) -> dict[str, Any]:
        if isinstance(runner, RemoteRunner):
            left_s = None if deadline_s is None else max(deadline_s - time.monotonic(), 1e-3)
            return await asyncio.wrap_future(runner.start(feeds, output_names, left_s))
        if self._thread is None:
            raise UsageError("the session is not open")
        async with _until(deadline_s):
            return await asyncio.wrap_future(self._thread.submit(runner.run, feeds, output_names))

    async def _stream(
        self,
        input_feeds: AsyncIterable[_Feeds] | Iterable[_Feeds],
        output_names: Sequence[str] | None,
        in_flight: int,
        timeout_s: float | None,
    ) -> AsyncGenerator[list[Any], None]:
        room = asyncio.Semaphore(in_flight)
        in_order: asyncio.Queue[asyncio.Task[list[Any]] | None] = asyncio.Queue()
        asked: set[asyncio.Task[list[Any]]] = set()

        async def feed() -> None:
            async for feeds in _taken(input_feeds, room):
                task = asyncio.create_task(self.run(output_names, feeds, timeout_s=timeout_s))
                asked.add(task)
                in_order.put_nowait(task)

        feeder = asyncio.create_task(feed())
        feeder.add_done_callback(lambda _: in_order.put_nowait(None))
        try:
            while (task := await in_order.get()) is not None:
                made = await task
                asked.discard(task)
                room.release()
                yield made
            await feeder  # for what its source raised
        finally:
            await _withdraw([feeder, *asked])


async def _taken(source: AsyncIterable[_Feeds] | Iterable[_Feeds], room: asyncio.Semaphore) -> AsyncIterator[_Feeds]:
    """Yield the items of `source`, each taken only when there is room for it."""
    items = aiter(source) if isinstance(source, AsyncIterable) else _one_by_one(source)
    while True:
        await room.acquire()
        try:
            item = await anext(items)
        except StopAsyncIteration:
            return
        yield item


async def _one_by_one(source: Iterable[_Feeds]) -> AsyncIterator[_Feeds]:
    for item in source:
        yield item


async def _withdraw(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    """Cancel what is not done and wait until it is; what failed before concerns nobody any more."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def _until(deadline_s: float | None) -> AsyncIterator[None]:
    """Break off what takes longer.

    Raises:
        DeadlineError: it was broken off.
    """
    if deadline_s is None:
        yield
        return
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            yield
    except TimeoutError as error:
        raise DeadlineError("the request was not answered by its deadline", "give it longer") from error


def _close_unwanted(opening: "Future[LocalRunner | RemoteRunner]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
