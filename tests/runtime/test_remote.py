"""Requests on a connection: many at once, from many threads, and what becomes of them whatever the peer does."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from client_fixtures import INPUTS, OUTPUTS, WAIT_S, Peer, World, eventually, feeds, reach
from hyps.core.client_state import Patience, Stage
from hyps.errors import (
    BusyError,
    DeadlineError,
    ExecutionError,
    HypsError,
    LostError,
    PeerError,
    TensorError,
    UsageError,
)
from hyps.formats.messages import Accepted, Cancel, Done, Failed, Heartbeat, Probe, Probed, Submit, TensorHeader
from hyps.remote import RemoteRunner

QUICK = Patience(connect_s=0.3, busy_s=0.3, grace_s=0.05)
Y = TensorHeader("y", "float32", (1, 4), 16)
Z = TensorHeader("z", "float32", (1,), 4)


@pytest.fixture(params=["memory", "sockets"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path if request.param == "sockets" else None)


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
def runner(world: World) -> Iterator[RemoteRunner]:
    runner = reach(world, patience=QUICK)
    yield runner
    runner.close()


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    descriptors = psutil.Process().num_fds()
    yield
    assert not connection_threads()
    assert psutil.Process().num_fds() <= descriptors


def connection_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "hyps-connection"]


def value(made: dict[str, Any]) -> float:
    np.testing.assert_array_equal(made["y"], np.full((1, 4), 2 * made["z"][0], np.float32))
    return float(made["z"][0])


# Answers.


def test_a_runner_tells_what_the_peer_serves(peer: Peer, runner: RemoteRunner) -> None:
    assert (runner.inputs, runner.outputs) == (INPUTS, OUTPUTS)
    assert (runner.model_name, runner.producer, runner.device, runner.max_nbytes) == ("m", "hyps", "pi", 1000)


def test_a_request_is_answered_with_the_outputs_it_wants(peer: Peer, runner: RemoteRunner) -> None:
    assert value(runner.run(feeds(3))) == 3
    assert list(runner.run(feeds(3), ["z"])) == ["z"]


@pytest.mark.parametrize(
    ("request_", "outputs", "says"),
    [
        ({"x": np.zeros((1, 4))}, None, "must be float32"),
        ({"x": np.zeros((1, 5), np.float32)}, None, "must have the shape"),
        ({}, None, "is missing"),
        (feeds(1), ["nonsense"], "no output `nonsense`"),
    ],
)
def test_what_the_model_does_not_declare_is_not_sent(
    peer: Peer, runner: RemoteRunner, request_: dict[str, Any], outputs: list[str] | None, says: str
) -> None:
    with pytest.raises(TensorError, match=says):
        runner.run(request_, outputs)
    assert peer.submitted == 0
    for _ in range(runner.most_in_flight):  # and no slot is lost
        runner.submit(feeds(1)).result(WAIT_S)


def test_many_requests_are_under_way_at_once_and_each_gets_its_own_answer(mute: Peer, runner: RemoteRunner) -> None:
    futures = [runner.submit(feeds(index)) for index in range(8)]
    for said in reversed(mute.submits(8)):
        mute.answer(said)
    assert [value(future.result(WAIT_S)) for future in futures] == list(range(8))


def test_threads_share_a_connection(peer: Peer, world: World) -> None:
    runner = reach(world, most_in_flight=8)
    with ThreadPoolExecutor(50) as pool:
        made = list(pool.map(lambda index: value(runner.run(feeds(index))), range(1000)))
    assert made == list(range(1000))
    assert peer.submitted == 1000
    runner.close()


def test_a_batch_comes_back_in_its_order(peer: Peer, runner: RemoteRunner) -> None:
    made = runner.run_batch([feeds(index) for index in range(200)])
    assert [value(one) for one in made] == list(range(200))
    assert runner.run_batch([]) == []


def test_an_iterable_is_taken_no_further_than_asked_for(mute: Peer, runner: RemoteRunner) -> None:
    taken: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for index in range(10):
            taken.append(index)
            yield feeds(index)

    answers = runner.run_many(source(), in_flight=3)
    assert taken == []
    first: Future[dict[str, Any]] = Future()
    thread = threading.Thread(target=lambda: first.set_result(next(answers)))
    thread.start()
    under_way = mute.submits(3)
    mute.answer(under_way[1])
    mute.answer(under_way[0])
    assert value(first.result(WAIT_S)) == 0
    thread.join(WAIT_S)
    assert taken == [0, 1, 2]
    answers.close()  # type: ignore[attr-defined]  # a generator, which closing ends
    assert mute.next(Cancel)[1] == Cancel("3")


def test_an_iteration_fails_at_the_place_of_the_request_that_failed(mute: Peer, runner: RemoteRunner) -> None:
    made: list[float] = []

    def consume() -> None:
        made.extend(map(value, runner.run_many([feeds(0), feeds(1), feeds(2)])))

    with ThreadPoolExecutor(1) as pool:
        consuming = pool.submit(consume)
        first, second, _ = mute.submits(3)
        mute.refuse(second, "E_EXECUTION")
        mute.answer(first)
        with pytest.raises(ExecutionError):
            consuming.result(WAIT_S)
        assert mute.next(Cancel)[1] == Cancel("3")
    assert made == [0.0]


@pytest.mark.parametrize("in_flight", [0, -1])
def test_nothing_under_way_is_no_pipeline(peer: Peer, runner: RemoteRunner, in_flight: int) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        runner.run_many([feeds(1)], in_flight=in_flight)


# Bounds and a peer without room.


def test_submitting_waits_while_too_many_are_unanswered(mute: Peer, world: World) -> None:
    runner = reach(world, most_in_flight=2)
    futures = [runner.submit(feeds(index)) for index in range(2)]
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(runner.submit, feeds(2))
        under_way = mute.submits(2)
        with pytest.raises(DeadlineError, match=r"2 requests to `[^`]*peer` were unanswered for 50 ms"):
            runner.submit(feeds(3), timeout_s=0.05)
        assert not third.done()
        mute.answer(under_way[1])
        answered = third.result(WAIT_S)
        assert futures[1].done()
        for said in (under_way[0], *mute.submits(1)):
            mute.answer(said)
        assert value(answered.result(WAIT_S)) == 2
    runner.close()


def test_a_peer_without_room_is_asked_again_and_others_are_answered_meanwhile(mute: Peer, runner: RemoteRunner) -> None:
    futures = [runner.submit(feeds(index)) for index in range(3)]
    first, second, third = mute.submits(3)
    mute.refuse(third, retry_after_s=0.01)
    mute.answer(first)
    assert value(futures[0].result(WAIT_S)) == 0
    (again,) = mute.submits(1)
    assert again.message == third.message
    for said in (second, again):
        mute.answer(said)
    assert [value(future.result(WAIT_S)) for future in futures] == [0, 1, 2]


def test_a_peer_that_never_has_room_is_given_up(mute: Peer, runner: RemoteRunner) -> None:
    future = runner.submit(feeds(1))
    while not future.done():
        eventually(lambda: future.done() or not mute.said.empty())
        if not future.done():
            mute.refuse(mute.submits(1)[0], retry_after_s=0.1)
    with pytest.raises(BusyError) as caught:
        future.result()
    assert (caught.value.retry_after_s, caught.value.message) == (0.1, "no \\x1b")


# Deadlines and second thoughts.


def test_the_peer_hears_the_deadline(mute: Peer, world: World) -> None:
    runner = reach(world, timeout_s=100.0)
    runner.submit(feeds(1))
    runner.submit(feeds(1), timeout_s=7.0)
    limits = [mute.next(Submit)[1].timeout_s or 0.0 for _ in range(2)]
    assert 99 < limits[0] <= 100
    assert 6 < limits[1] <= 7
    runner.close()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_deadline_is_above_zero(peer: Peer, runner: RemoteRunner, world: World, timeout_s: float) -> None:
    with pytest.raises(UsageError, match="a deadline of"):
        runner.run(feeds(1), timeout_s=timeout_s)
    with pytest.raises(UsageError, match="a deadline of"):
        reach(world, timeout_s=timeout_s)


def test_no_answer_by_the_deadline_ends_the_call_and_withdraws_the_request(mute: Peer, runner: RemoteRunner) -> None:
    begin_s = time.monotonic()
    with pytest.raises(DeadlineError, match="did not answer within 100 ms"):
        runner.run(feeds(1), timeout_s=0.1)
    assert 0.1 <= time.monotonic() - begin_s < 1
    said, _ = mute.next(Submit)
    assert mute.next(Cancel)[1] == Cancel("1")
    mute.answer(said)  # too late: nobody is told
    mute.answers = True
    assert value(runner.run(feeds(2))) == 2


def test_a_peers_own_word_on_the_deadline_is_passed_on(mute: Peer, runner: RemoteRunner) -> None:
    future = runner.submit(feeds(1), timeout_s=5.0)
    mute.refuse(mute.submits(1)[0], "E_DEADLINE")
    with pytest.raises(DeadlineError, match="no "):
        future.result(WAIT_S)


def test_cancelling_withdraws_a_request_and_frees_its_place(mute: Peer, world: World) -> None:
    runner = reach(world, most_in_flight=1)
    future = runner.submit(feeds(1))
    said, _ = mute.next(Submit)
    assert future.cancel()
    assert mute.next(Cancel)[1] == Cancel("1")
    mute.answer(said)
    with pytest.raises(CancelledError):
        future.result()
    mute.answers = True
    assert value(runner.run(feeds(2))) == 2
    runner.close()


def test_a_request_that_is_not_sent_yet_is_cancelled_without_a_word(mute: Peer, world: World) -> None:
    runner = reach(world, most_in_flight=1)
    first, second, third = runner.start(feeds(1)), runner.start(feeds(2)), runner.start(feeds(3))
    assert second.cancel()
    mute.answer(mute.submits(1)[0])
    said, message = mute.next(Submit)
    assert message.request == "3"
    mute.answer(said)
    assert (value(first.result(WAIT_S)), value(third.result(WAIT_S))) == (1, 3)
    runner.close()


def test_a_call_that_is_interrupted_withdraws_its_request(
    mute: Peer, runner: RemoteRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(future: "Future[Any]", timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(feeds(1))
    monkeypatch.undo()
    assert mute.next(Cancel)[1] == Cancel("1")


# A connection that is lost.


def test_what_was_under_way_says_whether_it_was_accepted_and_what_was_not_sent_is_sent_again(
    world: World,
) -> None:
    first = Peer(world, answers=False)
    runner = reach(world, most_in_flight=2)
    futures = [runner.start(feeds(index)) for index in range(3)]
    said, _ = first.submits(2)
    first.say(said.link, Accepted("1"))
    eventually(lambda: runner._connection._core._requests[1].stage is Stage.KEPT)
    first.die()
    error = futures[0].exception(WAIT_S)
    assert isinstance(error, LostError)
    assert error.was_accepted
    with Peer(world):
        assert value(futures[2].result(WAIT_S)) == 2
        second = futures[1].exception(WAIT_S)  # unless it was not known yet that the peer had it
        assert second is None or (isinstance(second, LostError) and second.was_accepted is None)
        assert value(runner.run(feeds(5))) == 5
        runner.close()


def test_nobody_there_is_said_in_time(world: World) -> None:
    begin_s = time.monotonic()
    with pytest.raises(PeerError, match=r"no worker answers at `[^`]*peer`"):
        reach(world, patience=QUICK)
    assert time.monotonic() - begin_s < 2
    assert not connection_threads()


def test_who_comes_late_is_still_found(world: World) -> None:
    with ThreadPoolExecutor(1) as pool:
        reaching = pool.submit(reach, world)
        time.sleep(0.05)
        with Peer(world):
            runner = reaching.result(WAIT_S)
            assert value(runner.run(feeds(1))) == 1
            runner.close()


def test_a_peer_that_does_not_greet_is_silent(world: World) -> None:
    with Peer(world, greets=False), pytest.raises(PeerError, match="is silent"):
        reach(world, patience=QUICK)


def test_a_peer_that_is_gone_for_good_is_said_at_the_next_request(world: World) -> None:
    peer = Peer(world)
    runner = reach(world, patience=QUICK)
    peer.die()
    for _ in range(2):
        with pytest.raises(PeerError, match="no worker answers"):
            runner.run(feeds(1))
    runner.close()


def test_a_peer_that_comes_back_with_another_model_is_refused(world: World) -> None:
    with Peer(world):
        runner = reach(world)
    with Peer(world, sha256="11"):
        for _ in range(2):
            with pytest.raises(PeerError, match="serves another model now"):
                runner.run(feeds(1))
    with Peer(world):
        assert value(runner.run(feeds(1))) == 1
        runner.close()


def test_another_version_of_the_protocol_is_refused(world: World, peer: Peer) -> None:
    peer.version += 1
    with pytest.raises(PeerError, match="speaks version") as caught:
        reach(world)
    assert caught.value.code == "E_VERSION"


# Wrong answers.


@pytest.mark.parametrize(
    ("headers", "frames"),
    [
        ((TensorHeader("y", "float64", (1, 4), 32), Z), (bytes(32), bytes(4))),
        ((TensorHeader("y", "float32", (1, 5), 20), Z), (bytes(20), bytes(4))),
        ((Y,), (bytes(16),)),
        ((Y, Z, TensorHeader("w", "float32", (1,), 4)), (bytes(16), bytes(4), bytes(4))),
        ((Y, Z), (bytes(15), bytes(4))),
        ((Y, Z), (bytes(16),)),
        ((Y, Z), ()),
        ((), ()),
    ],
)
def test_an_answer_that_does_not_fit_fails_its_request_alone(
    mute: Peer, runner: RemoteRunner, headers: tuple[TensorHeader, ...], frames: tuple[bytes, ...]
) -> None:
    futures = [runner.submit(feeds(index)) for index in range(2)]
    wrong, right = mute.submits(2)
    mute.say(wrong.link, Done("1", headers), frames)
    mute.answer(right)
    error = futures[0].exception(WAIT_S)
    assert isinstance(error, PeerError)
    assert (error.code, "answered wrongly" in error.message) == ("E_PROTOCOL", True)
    assert value(futures[1].result(WAIT_S)) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [("E_EXECUTION", ExecutionError), ("E_TENSOR", TensorError), ("E_INTERNAL", PeerError), ("E_LEAVING", PeerError)],
)
def test_the_peers_refusals_keep_their_kind(mute: Peer, runner: RemoteRunner, code: str, kind: type[HypsError]) -> None:
    future = runner.submit(feeds(1))
    mute.refuse(mute.submits(1)[0], code)
    with pytest.raises(kind) as caught:
        future.result(WAIT_S)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message, caught.value.hint) == (code, "no \\x1b", "do this")


def test_answers_to_what_was_not_asked_are_ignored(mute: Peer, runner: RemoteRunner) -> None:
    future = runner.submit(feeds(1))
    (said,) = mute.submits(1)
    for request in ("7", "nonsense", "-1"):
        mute.say(said.link, Done(request, (Y, Z)), (bytes(16), bytes(4)))
        mute.say(said.link, Accepted(request))
        mute.say(said.link, Failed(request, "E_BUSY", "full"))
        mute.say(said.link, Probed(request), [b"1"])
    mute.say(said.link, Heartbeat())
    mute.answer(said)
    mute.answer(said)
    assert value(future.result(WAIT_S)) == 1


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400", b"", b"\xff" * 40])
def test_nonsense_ends_the_link_and_the_next_request_makes_another(
    mute: Peer, runner: RemoteRunner, nonsense: bytes
) -> None:
    future = runner.submit(feeds(1))
    (said,) = mute.submits(1)
    mute.say_bytes(said.link, nonsense)
    with pytest.raises(PeerError, match="not a message of HyPS"):
        future.result(WAIT_S)
    mute.answers = True
    assert value(runner.run(feeds(2))) == 2


def test_a_message_that_the_peer_could_not_read_is_told_to_who_waits(mute: Peer, runner: RemoteRunner) -> None:
    future = runner.submit(feeds(1))
    (said,) = mute.submits(1)
    mute.say(said.link, Failed("", "E_PROTOCOL", "what?"))
    with pytest.raises(PeerError, match="what"):
        future.result(WAIT_S)


# Probes.


def test_probes_are_sent_at_once_and_timed_until_the_last_answer(mute: Peer, runner: RemoteRunner) -> None:
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(runner.probe, 5, 3, 2)
        for _ in range(2):
            said, message = mute.next(Probe)
            assert (message.nbytes, [len(frame) for frame in said.frames]) == (3, [5])
            mute.say(said.link, Probed(message.request), [bytes(3)])
        seconds, told = probing.result(WAIT_S)
    assert 0 < seconds < WAIT_S
    assert told == Probed(message.request)


@pytest.mark.parametrize(("answer", "kind"), [([b"too many"], PeerError), (None, BusyError)])
def test_a_probe_that_is_refused_or_answered_wrongly_says_so(
    mute: Peer, runner: RemoteRunner, answer: list[bytes] | None, kind: type[HypsError]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(runner.probe, 0, 3, 2)
        said, message = mute.next(Probe)
        if answer is None:
            mute.say(said.link, Failed(message.request, "E_BUSY", "full"))
        else:
            mute.say(said.link, Probed(message.request), answer)
        with pytest.raises(kind):
            probing.result(WAIT_S)


def test_a_probe_on_a_connection_that_is_lost_fails(world: World) -> None:
    peer = Peer(world, answers=False)
    runner = reach(world)
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(runner.probe)
        peer.next(Probe)
        peer.die()
        with pytest.raises(LostError):
            probing.result(WAIT_S)
    runner.close()


# The end.


def test_closing_fails_what_is_under_way_and_tells_the_peer(mute: Peer, world: World) -> None:
    runner = reach(world, most_in_flight=1)
    futures = [runner.start(feeds(index)) for index in range(3)]
    mute.submits(1)
    runner.close()
    assert not connection_threads()
    assert all("was closed" in str(future.exception(0)) for future in futures)
    assert mute.next(Cancel)[1] == Cancel("1")
    runner.close()
    for ask in (runner.run, runner.submit, runner.start):
        with pytest.raises(UsageError, match="was closed"):
            ask(feeds(1))
    with pytest.raises(UsageError, match="was closed"):
        runner.probe()


def test_closing_lets_those_go_on_that_wait_for_their_turn(mute: Peer, world: World) -> None:
    runner = reach(world, most_in_flight=1)
    runner.submit(feeds(0))
    mute.submits(1)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(runner.run, feeds(1)) for _ in range(3)]
        time.sleep(0.05)
        runner.close()
        assert all(isinstance(call.exception(WAIT_S), UsageError) for call in waiting)


def test_a_callback_may_close_the_runner(peer: Peer, world: World, caplog: pytest.LogCaptureFixture) -> None:
    runner = reach(world)
    runner.submit(feeds(1)).add_done_callback(lambda _: runner.close())
    eventually(lambda: not connection_threads())
    assert not caplog.text


def test_a_runner_that_nobody_has_any_more_leaves_no_thread_but_is_kept_for_its_answers(
    mute: Peer, world: World
) -> None:
    future = reach(world).submit(feeds(1))
    gc.collect()
    (said,) = mute.submits(1)
    assert connection_threads()
    mute.answer(said)
    assert value(future.result(WAIT_S)) == 1
    del future
    gc.collect()
    eventually(lambda: not connection_threads())


def test_a_bug_in_the_thread_of_the_connection_ends_every_call(
    peer: Peer, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = reach(world)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("hyps.connection.check_frames", broken)
    with pytest.raises(HypsError, match="a bug"):
        runner.run(feeds(1))
    with pytest.raises(UsageError, match="was closed"):
        runner.run(feeds(1))
    assert "a connection broke off" in caplog.text
    eventually(lambda: not connection_threads())


def test_a_bug_while_the_connection_is_made_is_told_too(
    peer: Peer, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("hyps.connection.decode_from_worker", broken)
    with pytest.raises(HypsError, match="a bug"):
        reach(world)
    assert "a connection broke off" in caplog.text
