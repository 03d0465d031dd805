"""Planners answer without making anybody wait, whatever becomes of the process that searches."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hyps.adapters.planner import ChildPlanner, MemoryPlanner, Planner
from hyps.formats.plan import Prediction
from hyps.formats.replanning import Answer, Question, Refusal, Reply
from replanning_fixtures import chain

_WAIT_S = 20.0


class Woken:
    """Waits for a planner's `wake`."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def reply(self, planner: Planner) -> Reply:
        """Return the next reply."""
        end_s = time.monotonic() + _WAIT_S
        while time.monotonic() < end_s:
            assert self.event.wait(_WAIT_S), "nobody was woken"
            self.event.clear()
            reply = planner.poll()
            if reply is not None:
                return reply
        raise AssertionError("no reply")


def _question(number: int, *, devices: int = 2, memory_bytes: int | None = None) -> Question:
    told = chain((0.1, 0.2, 0.1), {f"d{i}": 1 + i for i in range(devices)}, memory_bytes=memory_bytes)
    return Question(**{name: getattr(told, name) for name in told.__struct_fields__} | {"number": number})


def _scripted(folder: Path, body: str) -> tuple[str, ...]:
    """Return the command of a child that does as `body` says."""
    script = folder / "child.py"
    script.write_text(f"import os, sys, time, json, signal\n{body}\n")
    return (sys.executable, str(script))


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def planner(woken: Woken) -> Iterator[ChildPlanner]:
    before = set(psutil.Process().children())
    with ChildPlanner(woken.event.set) as made:
        yield made
    assert set(psutil.Process().children()) <= before, "a child was left"


def _answer(question: Question) -> Reply:
    placement = dict.fromkeys((part.id for part in question.partitions), question.devices[-1].name)
    return Answer(number=question.number, placement=placement, prediction=Prediction())


# Both kinds


@pytest.fixture(params=["child", "memory"])
def any_planner(request: pytest.FixtureRequest, woken: Woken) -> Iterator[tuple[Planner, Callable[[], None]]]:
    """Yield a planner, and what lets it work."""
    if request.param == "memory":
        twin = MemoryPlanner(woken.event.set, _answer)
        yield twin, twin.work
        return
    with ChildPlanner(woken.event.set) as child:
        yield child, lambda: None


def test_a_question_has_one_reply(any_planner: tuple[Planner, Callable[[], None]], woken: Woken) -> None:
    planner, work = any_planner
    planner.prepare()

    assert planner.missing() == ""
    assert planner.poll() is None
    planner.ask(_question(7))
    work()
    reply = woken.reply(planner)

    assert isinstance(reply, Answer)
    assert reply.number == 7
    assert set(reply.placement.values()) == {"d1"}
    assert planner.poll() is None


def test_only_the_latest_question_has_a_reply(any_planner: tuple[Planner, Callable[[], None]], woken: Woken) -> None:
    planner, work = any_planner

    for number in range(1, 6):
        planner.ask(_question(number, devices=number))
    work()

    assert woken.reply(planner).number == 5
    assert planner.poll() is None


def test_a_closed_planner_answers_nothing_more(any_planner: tuple[Planner, Callable[[], None]]) -> None:
    planner, work = any_planner
    planner.ask(_question(1))

    planner.close()
    work()

    assert planner.poll() is None


# The child


def test_the_child_stays_for_the_next_question(planner: ChildPlanner, woken: Woken) -> None:
    children = []
    for number in (1, 2):
        planner.ask(_question(number))
        woken.reply(planner)
        children.append({child.pid for child in psutil.Process().children()})

    assert children[0] == children[1]


def test_what_cannot_be_placed_is_refused_in_a_sentence(planner: ChildPlanner, woken: Woken) -> None:
    planner.ask(_question(4, memory_bytes=10**7))

    reply = woken.reply(planner)

    assert isinstance(reply, Refusal)
    assert (reply.number, reply.code) == (4, "E_INFEASIBLE")
    assert "have the memory" in reply.message


def test_asking_takes_no_time(planner: ChildPlanner, woken: Woken) -> None:
    start_s = time.monotonic()
    planner.ask(_question(1))
    asked_s = time.monotonic() - start_s
    woken.reply(planner)

    assert asked_s < 0.1


def test_a_child_that_was_killed_is_replaced(planner: ChildPlanner, woken: Woken) -> None:
    planner.ask(_question(1))
    woken.reply(planner)
    for child in psutil.Process().children():
        if "hyps_compiler.replanning" in child.cmdline():
            os.kill(child.pid, signal.SIGKILL)
            psutil.wait_procs([child], timeout=0.5)

    planner.ask(_question(2))

    reply = woken.reply(planner)
    if isinstance(reply, Refusal):  # it died while it was asked
        assert "signal 9" in reply.message
        planner.ask(_question(3))
        reply = woken.reply(planner)
    assert isinstance(reply, Answer)


@pytest.mark.parametrize(
    ("body", "told", "hint"),
    [
        (
            "sys.stdin.readline(); print('out of luck', file=sys.stderr); sys.exit(5)",
            "ended with status 5",
            "out of luck",
        ),
        ("sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11", ""),
        ("sys.exit(6)", "ended with status 6", ""),
        ("sys.stdin.readline(); time.sleep(60)", "took longer than 0.45 s", ""),
        ("time.sleep(60)", "took longer than 0.45 s", ""),
        ("sys.stdin.readline(); print('{\"type\": 3}', flush=True); time.sleep(60)", "not a placement", ""),
        ("sys.stdin.readline(); print('x' * 70_000_000, flush=True)", "more than 67108864 bytes", ""),
        (
            "sys.stdin.readline(); print(json.dumps({'type': 'refusal', 'number': 8, 'code': '', 'message': ''}))",
            "answered question 8, not 1",
            "",
        ),
    ],
    ids=["status", "signal", "early", "slow", "deaf", "nonsense", "flood", "other"],
)
def test_a_child_that_fails_is_a_refusal(tmp_path: Path, woken: Woken, body: str, told: str, hint: str) -> None:
    before = set(psutil.Process().children())
    grace_s = 0.3 if "took longer" in told else 10.0  # what is not about time has it: 67 MB may take half a second
    with ChildPlanner(woken.event.set, command=_scripted(tmp_path, body), grace_s=grace_s) as planner:
        planner.ask(_question(1))

        reply = woken.reply(planner)

        assert isinstance(reply, Refusal)
        assert (reply.number, reply.code) == (1, "E_SEARCH")
        assert told in reply.message
        assert hint in reply.hint
    assert set(psutil.Process().children()) <= before


def test_a_command_that_is_not_there_is_a_refusal(tmp_path: Path, woken: Woken) -> None:
    with ChildPlanner(woken.event.set, command=(str(tmp_path / "nowhere"),)) as planner:
        planner.prepare()
        planner.ask(_question(1))

        reply = woken.reply(planner)

    assert isinstance(reply, Refusal)
    assert reply.message == "the search for a placement cannot be started: No such file or directory"


def test_closing_does_not_wait_for_a_search(tmp_path: Path, woken: Woken) -> None:
    before = set(psutil.Process().children())
    planner = ChildPlanner(woken.event.set, command=_scripted(tmp_path, "time.sleep(60)"))
    planner.ask(_question(1))
    time.sleep(0.2)
    start_s = time.monotonic()

    planner.close()

    assert time.monotonic() - start_s < 2.0
    assert set(psutil.Process().children()) <= before


def test_a_child_whose_manager_is_killed_ends(tmp_path: Path) -> None:
    script = tmp_path / "manager.py"
    script.write_text(
        "import time\nfrom hyps.adapters.planner import ChildPlanner\n"
        "planner = ChildPlanner(print)\nplanner.prepare()\ntime.sleep(60)\n"
    )
    manager = psutil.Popen([sys.executable, str(script)])
    try:
        end_s = time.monotonic() + _WAIT_S
        while not (children := manager.children()) and time.monotonic() < end_s:
            time.sleep(0.02)
        assert children
    finally:
        manager.kill()
        manager.wait(_WAIT_S)

    _, alive = psutil.wait_procs(children, timeout=_WAIT_S)
    assert not alive


def test_without_the_compiler_the_sentence_says_what_installs_it(monkeypatch: pytest.MonkeyPatch, woken: Woken) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert ChildPlanner(woken.event.set).missing().endswith('pip install "hyps[compiler]"')
