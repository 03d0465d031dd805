"""Managers in threads, and clients that follow a script, on any kind of links."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hyps.adapters.frames import from_frames, to_frames
from hyps.adapters.links import Heard, Links, Lost, Opened
from hyps.adapters.plan_files import read_plan
from hyps.adapters.zmq_links import ZmqLinks
from hyps.core.manager_options import ManagerOptions
from hyps.core.manager_state import ManagerState
from hyps.formats.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Hello,
    Status,
    Submit,
    Welcome,
    decode_from_worker,
    encode,
)
from hyps.formats.replanning import Question, Reply
from hyps.formats.status import Report, decode_report
from hyps.manager import Access, Manager

WAIT_S = 20.0


@dataclass
class ScriptedPlanner:
    """Answers questions as a test says."""

    answer: Callable[[Question], Reply] | None = None
    questions: list[Question] = field(default_factory=list)
    _reply: Reply | None = None

    def missing(self) -> str:
        return "" if self.answer is not None else "nothing can be searched here"

    def prepare(self) -> None:
        """Nothing is to be prepared."""

    def ask(self, question: Question) -> None:
        self.questions.append(question)
        assert self.answer is not None, "nothing was to be asked"
        self._reply = self.answer(question)

    def poll(self) -> Reply | None:
        reply, self._reply = self._reply, None
        return reply

    def close(self) -> None:
        """Nothing is to be closed."""


class RunningManager:
    """A manager in a thread of its own; `state` is to be looked at when it is over."""

    def __init__(
        self,
        links: Links,
        folder: Path,
        options: ManagerOptions,
        *,
        token: str = "",
        planner: ScriptedPlanner | None = None,
    ) -> None:
        self.planner = planner or ScriptedPlanner()
        self.is_whole: bool | None = None
        self._links = links
        secrets = iter(f"secret{number}" for number in range(10_000))
        self.state = ManagerState(read_plan(folder), options, lambda: next(secrets))
        self.state.set_planner(self.planner.missing())
        plan = self.state.plan
        access = Access(token, plan.cpu_family if plan.optimization == "native" else None)
        self.manager = Manager(self.state, links, folder, access=access, planner=self.planner, max_nbytes=2**20)
        self._thread = threading.Thread(target=self._run, name="manager", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.manager.leave()
        self.manager.leave()
        self.join()

    def leave(self) -> None:
        """Finish what was accepted, and end."""
        self.manager.leave()
        self.join()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the manager does not end"

    def _run(self) -> None:
        self.is_whole = self.manager.run()
        self._links.close()


class ScriptedClient:
    """One connection to a manager; `until` goes on with what comes until something holds."""

    def __init__(self, links: Links, address: str) -> None:
        self.links = links
        self.link = links.connect(address)
        self.welcome: Welcome | None = None
        self.accepted: list[str] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, Failed] = {}
        self.ended: list[str] = []
        """Names of requests in the order in which they ended."""
        self.other: list[FromWorker] = []
        self.reports: list[Report] = []
        self.is_lost = False
        self.say(Hello(PROTOCOL_VERSION))

    def say(self, message: Any, frames: Sequence[Any] = ()) -> None:
        self.links.send(self.link, [encode(message), *frames])

    def submit(self, name: str, feeds: Mapping[str, Any], **more: Any) -> None:
        headers, frames = to_frames(feeds)
        self.say(Submit(name, headers, **more), frames)

    def cancel(self, name: str) -> None:
        self.say(Cancel(name))

    def until(self, holds: Callable[[], bool], limit_s: float = WAIT_S) -> None:
        end_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < end_s, f"it took longer than {limit_s} s: {self.ended} {self.failures}"
            event = self.links.receive(0.05)
            if isinstance(event, Heard):
                self._hear(decode_from_worker(memoryview(event.frames[0])), event.frames[1:])
            elif isinstance(event, Lost):
                self.is_lost = True
            else:
                assert event is None or isinstance(event, Opened)
        if isinstance(self.links, ZmqLinks):
            self.links.flush()  # as clients do: nobody may be here to answer for a while

    def run(self, name: str, feeds: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        self.submit(name, feeds, **more)
        self.until(lambda: name in self.ended)
        return self.answers[name]

    def _hear(self, message: FromWorker, frames: Sequence[Any]) -> None:
        match message:
            case Welcome():
                self.welcome = message
            case Accepted():
                self.accepted.append(message.request)
            case Done():
                self.answers[message.request] = from_frames(message.tensors, frames)
                self.ended.append(message.request)
            case Failed():
                self.failures[message.request] = message
                self.ended.append(message.request)
            case Status():
                self.reports.append(decode_report(memoryview(frames[0])))
                self.other.append(message)
            case _:
                self.other.append(message)
