"""Asks for new placements without waiting: the search runs in a process of its own, where the compiler is installed."""

import contextlib
import importlib.util
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol, Self

from hyps.errors import HypsError, PeerError, PlanError, printable
from hyps.formats.replanning import MAX_QUESTION_NBYTES, Question, Refusal, Reply, decode_reply, encode_line

_COMMAND = (sys.executable, "-P", "-m", "hyps_compiler.replanning", "--serve")
"""`-P`: what lies in the working directory is not imported."""

_GRACE_S = 10.0
"""What starting the child and reading its reply may take beside the search."""

_ADDRESS_SPACE_NBYTES = 4 * 2**30

_CHUNK_NBYTES = 64 * 1024


class Planner(Protocol):
    """One question at a time. All belongs to the manager's thread; `wake` is called from another one.

    Whoever makes a planner gives it `wake`, a callable without arguments that is called once a reply can be polled
    (`Links.wake` is one).
    """

    def missing(self) -> str:
        """Return what is to be installed before anything can be asked, in a sentence; empty: nothing."""

    def prepare(self) -> None:
        """Start what takes time to start, so that the first question has its reply sooner."""

    def ask(self, question: Question) -> None:
        """Begin to search and return at once; a question that has no reply yet will have none."""

    def poll(self) -> Reply | None:
        """Return the reply to the latest question, once; None while it is not there."""

    def close(self) -> None:
        """End the search and its process."""


class ChildPlanner:
    """Asks a child process, which stays for the next question; what it dies of is the reason of a refusal.

    The child has a time limit for each question (the question's own and some seconds), a limit on its memory, and no
    way to outlive this process by more than that.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        *,
        command: Sequence[str] = _COMMAND,
        grace_s: float = _GRACE_S,
        address_space_nbytes: int = _ADDRESS_SPACE_NBYTES,
    ) -> None:
        """Prepare to ask; nothing is started before the first question, or `prepare`.

        Args:
            wake: called once a reply can be polled.
            command: what to run.
            grace_s: what a reply may take beside the question's own time limit.
            address_space_nbytes: the most that the child may take.
        """
        self._wake = wake
        self._command = (*command, "--address-space", str(address_space_nbytes))
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._question: Question | None = None
        self._reply: Reply | None = None
        self._asked = 0
        self._is_wanted = False
        """Whether the child is to be started without a question."""
        self._is_closed = False
        self._child: _Child | None = None
        self._thread: threading.Thread | None = None

    def missing(self) -> str:
        """See `Planner`."""
        if all(importlib.util.find_spec(package) for package in ("hyps_compiler", "hyps_passes")):
            return ""
        return 'placing anew needs the compiler, which is not installed: pip install "hyps[compiler]"'

    def prepare(self) -> None:
        """See `Planner`."""
        with self._changed:
            self._is_wanted = True
            self._start()

    def ask(self, question: Question) -> None:
        """See `Planner`."""
        with self._changed:
            self._question, self._reply = question, None
            self._asked += 1
            self._start()

    def poll(self) -> Reply | None:
        """See `Planner`."""
        with self._changed:
            reply, self._reply = self._reply, None
        return reply

    def close(self) -> None:
        """See `Planner`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            if self._child is not None:
                self._child.kill()  # its reader then wakes up
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        """Carry questions to the child and replies back, until closed."""
        try:
            while (question := self._next()) is not None:
                asked, told = question
                reply = self._answered(told)
                with self._changed:
                    if asked != self._asked or self._is_closed:
                        continue
                    self._reply = reply
                self._wake()
        finally:
            self._drop()

    def _next(self) -> tuple[int, Question] | None:
        while True:
            with self._changed:
                while not (self._is_closed or self._question or self._is_wanted):
                    self._changed.wait()
                question, self._question, self._is_wanted = self._question, None, False
                if self._is_closed:
                    return None
                if question is not None:
                    return self._asked, question
            with contextlib.suppress(OSError):  # the first question then meets it again, and tells
                self._running()

    def _answered(self, question: Question) -> Reply:
        try:
            reply = self._running().ask(question, question.time_limit_s + self._grace_s)
            if reply.number == question.number:
                return reply
            raise PeerError(f"the search for a placement answered question {reply.number}, not {question.number}")
        except HypsError as error:
            self._drop()
            return Refusal(number=question.number, code="E_SEARCH", message=error.message, hint=error.hint)
        except OSError as error:
            text = f"the search for a placement cannot be started: {error.strerror}"
            return Refusal(number=question.number, code="E_SEARCH", message=text)

    def _running(self) -> "_Child":
        """Return the child, started if it is not there."""
        if self._child is not None and not self._child.is_alive:
            self._drop()
        if self._child is None:
            child = _Child(self._command)
            with self._changed:
                self._child = child
                if self._is_closed:
                    child.kill()
        return self._child

    def _drop(self) -> None:
        with self._changed:
            child, self._child = self._child, None
        if child is not None:
            child.close()


class MemoryPlanner:
    """The in-memory twin: replies are given by a function, when `work` is called."""

    def __init__(self, wake: Callable[[], None], answer: Callable[[Question], Reply], *, missing: str = "") -> None:
        """Prepare to answer.

        Args:
            wake: called once a reply can be polled.
            answer: the search.
            missing: what `missing` returns.
        """
        self._wake = wake
        self._answer = answer
        self._missing = missing
        self._question: Question | None = None
        self._reply: Reply | None = None
        self.asked: list[Question] = []
        """All questions so far."""

    def missing(self) -> str:
        """See `Planner`."""
        return self._missing

    def prepare(self) -> None:
        """See `Planner`; there is nothing to start."""

    def ask(self, question: Question) -> None:
        """See `Planner`."""
        self.asked.append(question)
        self._question, self._reply = question, None

    def poll(self) -> Reply | None:
        """See `Planner`."""
        reply, self._reply = self._reply, None
        return reply

    def close(self) -> None:
        """See `Planner`."""
        self._question = self._reply = None

    def work(self) -> None:
        """Answer the question that is open, if there is one."""
        if self._question is not None:
            self._reply, self._question = self._answer(self._question), None
            self._wake()


class _Child:
    """The process that searches; what it says on stderr is kept in a file without a name."""

    def __init__(self, command: Sequence[str]) -> None:
        self._stderr: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl+C is for the manager, which then ends it
                bufsize=0,
            )
        except OSError:
            self._stderr.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._writer, self._reader = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._writer, self._reader):
            os.set_blocking(descriptor, False)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, question: Question, limit_s: float) -> Reply:
        """Return the reply to a question.

        Raises:
            PlanError: what it said is no reply.
            PeerError: it ended, or took longer than `limit_s` and was ended.
        """
        end_s = time.monotonic() + limit_s
        self._write(encode_line(question), end_s, limit_s)
        return decode_reply(self._read_line(end_s, limit_s))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it and leave nothing of it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _write(self, data: bytes, end_s: float, limit_s: float) -> None:
        rest = memoryview(data)
        while rest:
            self._await(self._writer, select.POLLOUT, end_s, limit_s)
            try:
                rest = rest[os.write(self._writer, rest[:_CHUNK_NBYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._died() from error

    def _read_line(self, end_s: float, limit_s: float) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            self._await(self._reader, select.POLLIN, end_s, limit_s)
            data = os.read(self._reader, _CHUNK_NBYTES)
            if not data:
                raise self._died()
            line += data
            if len(line) > MAX_QUESTION_NBYTES:
                raise PlanError(f"its reply has more than {MAX_QUESTION_NBYTES} bytes")
        return bytes(line)

    def _await(self, descriptor: int, events: int, end_s: float, limit_s: float) -> None:
        poll = select.poll()
        poll.register(descriptor, events)
        if not poll.poll(max(0.0, end_s - time.monotonic()) * 1000):
            self.kill()
            raise PeerError(f"the search for a placement took longer than {limit_s:.3g} s", self._said())

    def _died(self) -> PeerError:
        status = self._process.wait()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return PeerError(f"the search for a placement ended {how}", self._said())

    def _said(self) -> str:
        """Return the last line of what it said on stderr."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4096))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1], 300) if lines else ""
