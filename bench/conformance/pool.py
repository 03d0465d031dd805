"""A few processes that try models one after another; one that crashes or hangs costs its model only."""

import contextlib
import multiprocessing as mp
import os
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_CONTEXT = mp.get_context("spawn")  # a fork of a process in which onnxruntime has threads would hang
_START_S = 60.0


@dataclass(slots=True)
class _Hand:
    """A process and what it is at."""

    process: Any
    pipe: Connection
    task: tuple[str, str] | None = None
    since: float = 0.0
    step: str = "start"


def run_all(
    tasks: Sequence[tuple[str, str]], effort: Any, *, jobs: int, timeout_s: float
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield each task with its record, in the order in which they end."""
    waiting = list(reversed(tasks))
    hands: list[_Hand] = []
    try:
        hands += [_start(effort) for _ in range(min(jobs, len(tasks)))]
        while waiting or any(hand.task for hand in hands):
            for index, hand in enumerate(hands):
                if not hand.process.is_alive() and hand.task is None:
                    hands[index] = hand = _start(effort)
                if hand.task is None and waiting:
                    hand.task, hand.since, hand.step = waiting.pop(), time.monotonic(), "start"
                    hand.pipe.send(hand.task)
            busy = [hand for hand in hands if hand.task]
            wait([hand.pipe for hand in busy], timeout=1.0)
            for hand in busy:
                task, record = hand.task, _record(hand, timeout_s)
                if task is not None and record is not None:
                    hand.task = None
                    yield task, record
    finally:
        for hand in hands:
            _stop(hand)


def _start(effort: Any) -> _Hand:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, effort), daemon=True)
    process.start()
    theirs.close()
    return _Hand(process, ours)


def _stop(hand: _Hand) -> None:
    hand.process.kill()
    hand.process.join()
    hand.pipe.close()


def _record(hand: _Hand, timeout_s: float) -> dict[str, Any] | None:
    """Return what the process says of its task, or what became of it; None while it works."""
    try:
        while hand.pipe.poll():
            message = hand.pipe.recv()
            if isinstance(message, dict):
                return message
            hand.step = message
    except (EOFError, ConnectionError):
        hand.process.join(_START_S)
        return _broken(hand, f"the process died with exit status {hand.process.exitcode}")
    if time.monotonic() - hand.since > timeout_s:
        _stop(hand)
        return _broken(hand, f"it took longer than {timeout_s:g} s")
    return None


def _broken(hand: _Hand, what: str) -> dict[str, Any]:
    """Return the record of a task that did not end: onnxruntime's fault while it runs the whole model, ours after."""
    status = "refused" if hand.step == "start" else "wrong"
    reason = f"onnxruntime: {what}" if hand.step == "start" else f"{what} at {hand.step}"
    counts = {"identical": 0, "tolerance": 0, "refused": 0, "wrong": 0, status: 1}
    finding = {"level": "", "cut": hand.step, "status": status, "reason": reason}
    seconds = round(time.monotonic() - hand.since, 3)
    return {"status": status, "counts": counts, "seconds": seconds, "notes": [], "undivided": {}, "findings": [finding]}


def _work(pipe: Connection, effort: Any) -> None:
    from conformance.suites import load_suite
    from conformance.trial import as_record, try_model

    warnings.simplefilter("ignore")  # what the suites' own generators say
    with open(os.devnull, "w") as nowhere:  # onnxruntime's messages come from the whole model as well
        os.dup2(nowhere.fileno(), 2)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            word, name = pipe.recv()
            with TemporaryDirectory(prefix="hyps-model-") as scratch:
                try:
                    trial = try_model(load_suite(word).load(name, Path(scratch)), effort, pipe.send)
                    pipe.send(as_record(trial))
                except Exception as error:  # a bug of the suite's loader or ours: the record says so
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
                    finding = {"level": "", "cut": "", "status": "wrong", "reason": reason[:300]}
                    counts = {"identical": 0, "tolerance": 0, "refused": 0, "wrong": 1}
                    record = {
                        "status": "wrong",
                        "counts": counts,
                        "seconds": 0.0,
                        "notes": [],
                        "undivided": {},
                        "findings": [finding],
                    }
                    pipe.send(record)
