"""Coroutines that ask: cancellation, deadlines, order, and how far a stream reads ahead."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

import hyps
from client_fixtures import WAIT_S, Peer, World, eventually, feeds
from hyps.errors import DeadlineError, ExecutionError, PlanError, TensorError, UsageError
from hyps.formats.messages import Cancel, Submit
from plan_fixtures import sharded

FLOW = sharded()
_T = TypeVar("_T")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def peer(world: World) -> Iterator[Peer]:
    with Peer(world) as peer:
        yield peer


@pytest.fixture
def mute(world: World) -> Iterator[Peer]:
    """A peer whose answers the test gives."""
    with Peer(world, answers=False) as peer:
        yield peer


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    FLOW.write(tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    descriptors = psutil.Process().num_fds()
    yield
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("hyps-")])
    assert psutil.Process().num_fds() <= descriptors


def within(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that must end in time."""
    return asyncio.run(asyncio.wait_for(work, WAIT_S))


async def submits(peer: Peer, count: int) -> list[Any]:
    return await asyncio.to_thread(peer.submits, count)


async def withdrawn(peer: Peer) -> str:
    _, message = await asyncio.to_thread(peer.next, Cancel)
    return message.request


def value(made: list[Any]) -> float:
    y, z = made
    np.testing.assert_array_equal(y, np.full((1, 4), 2 * z[0], np.float32))
    return float(z[0])


# One request.


def test_a_session_on_an_address_answers(peer: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            assert [node.name for node in session.get_inputs()] == ["x"]
            assert [node.name for node in session.get_outputs()] == ["y", "z"]
            assert session.get_modelmeta().graph_name == "m"
            assert value(await session.run(None, feeds(3))) == 3
            assert (await session.run(["z"], feeds(3)))[0][0] == 3
            with pytest.raises(TensorError, match="no output"):
                await session.run(["nonsense"], feeds(3))

    within(work())


def test_a_session_on_a_plan_answers_as_one_without_coroutines(plan: Path) -> None:
    async def work() -> list[list[Any]]:
        async with hyps.AsyncSession(plan, threads=1) as session:
            return await asyncio.gather(*(session.run(["y"], FLOW.feeds(seed=seed)) for seed in range(5)))

    with hyps.InferenceSession(plan, threads=1) as session:
        for seed, (made,) in enumerate(within(work())):
            np.testing.assert_array_equal(made, session.run(["y"], FLOW.feeds(seed=seed))[0])


def test_hundreds_of_coroutines_share_a_session(peer: Peer, world: World) -> None:
    async def work() -> list[float]:
        async with hyps.AsyncSession(world.address) as session:
            return [value(made) for made in await asyncio.gather(*(session.run(None, feeds(i)) for i in range(500)))]

    assert within(work()) == list(range(500))


def test_the_event_loop_goes_on_while_requests_are_under_way(mute: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            tasks = [asyncio.create_task(session.run(None, feeds(index))) for index in range(100)]
            under_way = await submits(mute, 8)  # and the others wait without holding anything up
            assert not any(task.done() for task in tasks)
            mute.answers = True
            for said in under_way:
                mute.answer(said)
            assert [value(made) for made in await asyncio.gather(*tasks)] == list(range(100))

    within(work())


def test_errors_come_out_of_the_await(mute: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            task = asyncio.create_task(session.run(None, feeds(1)))
            (said,) = await submits(mute, 1)
            mute.refuse(said, "E_EXECUTION")
            with pytest.raises(ExecutionError):
                await task

    within(work())


# Opening and closing.


def test_nothing_is_there_outside_of_async_with(peer: Peer, world: World) -> None:
    async def work() -> None:
        session = hyps.AsyncSession(world.address)
        for _ in range(2):
            for ask in (session.get_inputs, session.get_outputs, session.get_modelmeta, lambda: session.stream([])):
                with pytest.raises(UsageError, match="not open"):
                    ask()
            with pytest.raises(UsageError, match="not open"):
                await session.run(None, feeds(1))
            async with session:
                assert value(await session.run(None, feeds(1))) == 1
                with pytest.raises(UsageError, match="the session is open"):
                    await session.__aenter__()
        await session.close()

    within(work())


@pytest.mark.parametrize(("target", "kind"), [("nowhere", PlanError), ("x://y", UsageError)])
def test_what_cannot_be_opened_is_said_by_async_with(target: str, kind: type[Exception]) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(target):
            pytest.fail("it opened")

    with pytest.raises(kind):
        within(work())


def test_cancelling_while_it_opens_leaves_nothing_open(world: World) -> None:
    async def work() -> None:
        async def use() -> None:
            async with hyps.AsyncSession(world.address):
                pytest.fail("it opened")

        task = asyncio.create_task(use())
        await asyncio.sleep(0.05)
        task.cancel()
        begin_s = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begin_s < 1

    within(work())
    with Peer(world):  # whom it finds after all, and leaves
        eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("hyps-")])


def test_what_opens_after_all_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    opened, gate = Opened(), threading.Event()

    def slow(*_: object, **__: object) -> Opened:
        assert gate.wait(WAIT_S)
        return opened

    monkeypatch.setattr("hyps.async_client.open_runner", slow)

    async def work() -> None:
        task = asyncio.create_task(hyps.AsyncSession("anywhere").__aenter__())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await asyncio.to_thread(eventually, lambda: opened.is_closed)

    within(work())


def test_leaving_waits_until_nothing_is_open(peer: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address):
            pass
        assert not [thread for thread in threading.enumerate() if thread.name == "hyps-connection"]

    within(work())


def test_closing_fails_what_is_under_way(mute: Peer, world: World) -> None:
    async def work() -> None:
        session = hyps.AsyncSession(world.address)
        async with session:
            task = asyncio.create_task(session.run(None, feeds(1)))
            await submits(mute, 1)
        with pytest.raises(UsageError, match="was closed"):
            await task

    within(work())


# Cancellation and deadlines.


def test_cancelling_a_task_withdraws_its_request_alone(mute: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            tasks = [asyncio.create_task(session.run(None, feeds(index))) for index in range(2)]
            first, second = await submits(mute, 2)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            assert tasks[0].cancelled()
            assert await withdrawn(mute) == first.message.request
            mute.answer(first)
            mute.answer(second)
            assert value(await tasks[1]) == 1

    within(work())


def test_a_timeout_of_asyncio_is_one_of_asyncio(mute: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await session.run(None, feeds(1))
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await withdrawn(mute)

    within(work())


def test_one_that_fails_in_a_task_group_withdraws_the_others(mute: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:

            async def fail() -> None:
                await submits(mute, 2)
                raise ZeroDivisionError

            async def ask() -> None:
                async with asyncio.TaskGroup() as group:
                    for index in range(2):
                        group.create_task(session.run(None, feeds(index)))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await ask()
            assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
            assert {await withdrawn(mute) for _ in range(2)} == {"1", "2"}

    within(work())


@pytest.mark.parametrize("is_the_sessions", [False, True])
def test_a_deadline_ends_the_wait(mute: Peer, world: World, is_the_sessions: bool) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address, timeout_s=0.1 if is_the_sessions else None) as session:
            begin_s = time.monotonic()
            with pytest.raises(DeadlineError):
                await session.run(None, feeds(1), timeout_s=None if is_the_sessions else 0.1)
            assert 0.1 <= time.monotonic() - begin_s < 2
            _, message = await asyncio.to_thread(mute.next, Submit)
            assert 0 < (message.timeout_s or 0) <= 0.1
            assert await withdrawn(mute) == message.request

    within(work())


@pytest.mark.parametrize("is_the_sessions", [False, True])
def test_waiting_for_a_turn_counts_towards_the_deadline(mute: Peer, world: World, is_the_sessions: bool) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address, timeout_s=0.05 if is_the_sessions else None) as session:
            others = [asyncio.create_task(session.run(None, feeds(i), timeout_s=WAIT_S)) for i in range(64)]
            await asyncio.sleep(0)
            with pytest.raises(DeadlineError):
                await session.run(None, feeds(1), timeout_s=None if is_the_sessions else 0.05)
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    within(work())


def test_a_plan_in_a_thread_keeps_deadlines_too(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyps.local import LocalRunner

    gate = threading.Event()
    run = LocalRunner.run

    def gated(self: LocalRunner, *args: Any, **kwargs: Any) -> dict[str, Any]:
        assert gate.wait(WAIT_S)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(LocalRunner, "run", gated)

    async def work() -> None:
        async with hyps.AsyncSession(plan, threads=1) as session:
            with pytest.raises(DeadlineError):
                await session.run(["y"], FLOW.feeds(), timeout_s=0.05)
            gate.set()
            assert (await session.run(["y"], FLOW.feeds(), timeout_s=WAIT_S))[0].shape == (1, 5)

    within(work())


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_deadline_is_above_zero(peer: Peer, world: World, timeout_s: float) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            with pytest.raises(UsageError, match="a deadline of"):
                await session.run(None, feeds(1), timeout_s=timeout_s)

    within(work())


# Streams.


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_keeps_its_order(peer: Peer, world: World, is_async: bool) -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for index in range(200):
            yield feeds(index)

    async def work() -> list[float]:
        async with hyps.AsyncSession(world.address) as session:
            taken = source() if is_async else map(feeds, range(200))
            return [value(made) async for made in session.stream(taken, in_flight=5)]

    assert within(work()) == list(range(200))


def test_a_stream_through_a_plan_keeps_its_order(plan: Path) -> None:
    async def work() -> list[Any]:
        async with hyps.AsyncSession(plan, threads=1) as session:
            return [made async for (made,) in session.stream((FLOW.feeds(seed=s) for s in range(9)), ["y"])]

    with hyps.InferenceSession(plan, threads=1) as session:
        for seed, made in enumerate(within(work())):
            np.testing.assert_array_equal(made, session.run(["y"], FLOW.feeds(seed=seed))[0])


def test_a_stream_reads_no_further_ahead_than_it_may(mute: Peer, world: World) -> None:
    async def work() -> None:
        taken: list[int] = []

        def source() -> Iterator[dict[str, Any]]:
            for index in range(100):
                taken.append(index)
                yield feeds(index)

        async with hyps.AsyncSession(world.address) as session:
            async with contextlib.aclosing(session.stream(source(), in_flight=3)) as stream:
                assert taken == []
                first = asyncio.ensure_future(anext(stream))
                said = await submits(mute, 3)
                await asyncio.sleep(0.05)
                assert (taken, mute.submitted) == ([0, 1, 2], 3)
                mute.answer(said[1])  # the second, which has to wait for the first
                await asyncio.sleep(0.05)
                assert (taken, first.done()) == ([0, 1, 2], False)
                mute.answer(said[0])
                assert value(await first) == 0
                await submits(mute, 1)
                await asyncio.sleep(0.05)
                assert taken == [0, 1, 2, 3]
            assert {await withdrawn(mute) for _ in range(2)} == {"3", "4"}

    within(work())


def test_what_is_answered_comes_out_before_the_source_goes_on(peer: Peer, world: World) -> None:
    async def work() -> None:
        more = asyncio.Event()

        async def source() -> AsyncIterator[dict[str, Any]]:
            yield feeds(1)
            await more.wait()
            yield feeds(2)

        async with hyps.AsyncSession(world.address) as session:
            stream = session.stream(source())
            assert value(await anext(stream)) == 1
            more.set()
            assert [value(made) async for made in stream] == [2]

    within(work())


def test_a_source_that_fails_does_so_behind_the_answers_before_it(peer: Peer, world: World) -> None:
    async def work() -> None:
        def source() -> Iterator[dict[str, Any]]:
            yield feeds(1)
            raise ZeroDivisionError

        async with hyps.AsyncSession(world.address) as session:
            stream = session.stream(source())
            assert value(await anext(stream)) == 1
            with pytest.raises(ZeroDivisionError):
                await anext(stream)

    within(work())


def test_a_request_that_fails_ends_its_stream_and_withdraws_the_others(mute: Peer, world: World) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            stream = session.stream(map(feeds, range(3)))
            first = asyncio.ensure_future(anext(stream))
            said = await submits(mute, 3)
            mute.answer(said[0])
            mute.refuse(said[1], "E_EXECUTION")
            assert value(await first) == 0
            with pytest.raises(ExecutionError):
                await anext(stream)
            assert await withdrawn(mute) == said[2].message.request
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    within(work())


def test_errors_of_requests_that_are_not_waited_for_are_not_complained_of(mute: Peer, world: World) -> None:
    complaints: list[dict[str, Any]] = []

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with hyps.AsyncSession(world.address) as session:
            stream = session.stream(map(feeds, range(3)))
            first = asyncio.ensure_future(anext(stream))
            said = await submits(mute, 3)
            for one in reversed(said):
                mute.refuse(one, "E_EXECUTION")
            with pytest.raises(ExecutionError):
                await first
        del stream, first
        gc.collect()

    within(work())
    assert complaints == []


def test_cancelling_who_reads_a_stream_withdraws_what_is_under_way(mute: Peer, world: World) -> None:
    async def work() -> None:
        async def read(session: hyps.AsyncSession) -> None:
            async for _ in session.stream(map(feeds, range(100)), in_flight=4):
                pass

        async with hyps.AsyncSession(world.address) as session:
            task = asyncio.create_task(read(session))
            await submits(mute, 4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len({await withdrawn(mute) for _ in range(4)}) == 4
            assert mute.submitted == 4

    within(work())


@pytest.mark.parametrize("in_flight", [0, -3])
def test_a_stream_of_nothing_at_once_is_none(peer: Peer, world: World, in_flight: int) -> None:
    async def work() -> None:
        async with hyps.AsyncSession(world.address) as session:
            with pytest.raises(UsageError, match="must be at least 1"):
                session.stream([], in_flight=in_flight)

    within(work())


def test_many_streams_of_one_session_do_not_hold_each_other_up(peer: Peer, world: World) -> None:
    async def work() -> list[list[float]]:
        async with hyps.AsyncSession(world.address) as session:

            async def read(start: int) -> list[float]:
                return [value(made) async for made in session.stream(map(feeds, range(start, start + 50)))]

            return await asyncio.gather(*(read(100 * index) for index in range(10)))

    assert within(work()) == [list(range(100 * index, 100 * index + 50)) for index in range(10)]


def test_two_event_loops_may_each_have_a_session(peer: Peer, world: World) -> None:
    async def work() -> float:
        async with hyps.AsyncSession(world.address) as session:
            return value(await session.run(None, feeds(4)))

    run: Callable[[int], float] = lambda _: within(work())  # noqa: E731  # typed, for the pool
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [4, 4]
