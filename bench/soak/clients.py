"""The clients of a soak: each a process of one kind, which checks every answer and tells its counts each second.

    python -m soak.clients KIND ADDRESS QUESTIONS SEED PAUSE

QUESTIONS is a folder with `N.npz` files: the inputs, and outputs under `expected:NAME`. PAUSE is the mean of seconds
between requests. It runs until SIGTERM; lines of JSON are printed, a `Tally` each.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import hyps
from hyps.errors import HypsError
from soak.tally import Tally

_TOLERANCE = 1e-4
_EXPECTED = "expected:"
_TOLD_S = 1.0
_LONGEST_LIFE_S = 6.0
_BURST = 6


class Asker:
    """What the kinds of clients share: questions, a seeded generator, and the tally."""

    def __init__(self, address: str, folder: Path, seed: int, pause_s: float) -> None:
        self.address, self.pause_s = address, pause_s
        self.random = random.Random(seed)
        self.tally = Tally(failed={})
        self.questions = [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]

    def question(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return inputs and expected outputs."""
        told = self.random.choice(self.questions)
        inputs = {name: array for name, array in told.items() if not name.startswith(_EXPECTED)}
        expected = {name.removeprefix(_EXPECTED): array for name, array in told.items() if name.startswith(_EXPECTED)}
        return inputs, expected

    def rest_s(self) -> float:
        """Return how long to rest before the next request."""
        return self.random.uniform(0, 2 * self.pause_s)

    @contextlib.contextmanager
    def asking(self, expected: Mapping[str, Any]) -> Iterator[Callable[[list[Any]], None]]:
        """Count how a request ends; what is yielded takes its answer."""
        start_s = time.perf_counter()

        def take(answers: list[Any]) -> None:
            right = all(_is_right(a, e) for a, e in zip(answers, expected.values(), strict=True))
            self.tally.done += right
            self.tally.wrong += not right
            self.tally.longest_s = max(self.tally.longest_s, time.perf_counter() - start_s)

        try:
            yield take
        except HypsError as error:
            self.tally.failed[error.code] = self.tally.failed.get(error.code, 0) + 1
        except asyncio.CancelledError:
            self.tally.withdrawn += 1


def main() -> None:
    """Be a client until SIGTERM."""
    kind, address, folder, seed, pause = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asker = Asker(address, Path(folder), int(seed), float(pause))
    threading.Thread(target=_tell, args=(asker.tally,), daemon=True).start()
    if kind == "sync":
        ask_in_turn(asker)
    else:
        asyncio.run(KINDS[kind](asker))


def ask_in_turn(asker: Asker) -> None:
    """One request after another, now and then with a new session."""
    while True:
        with hyps.InferenceSession(asker.address) as session:
            for _ in range(50):
                inputs, expected = asker.question()
                with asker.asking(expected) as take:
                    take(session.run(list(expected), inputs))
                time.sleep(asker.rest_s())


async def ask_at_once(asker: Asker) -> None:
    """Bursts of requests that are on their way together."""
    async with hyps.AsyncSession(asker.address) as session:
        while True:
            await asyncio.gather(*(_ask(asker, session) for _ in range(_BURST)))
            await asyncio.sleep(_BURST * asker.rest_s())


async def withdraw(asker: Asker) -> None:
    """Requests that are mostly withdrawn before their answer."""
    async with hyps.AsyncSession(asker.address) as session:
        while True:
            tasks = [asyncio.create_task(_ask(asker, session)) for _ in range(_BURST)]
            for task in tasks:
                await asyncio.sleep(asker.random.uniform(0, 0.02))
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
                    raise ended
            await asyncio.sleep(_BURST * asker.rest_s())


async def press(asker: Asker) -> None:
    """Requests with deadlines, many of which are too near."""
    async with hyps.AsyncSession(asker.address) as session:
        while True:
            await _ask(asker, session, timeout_s=asker.random.choice([0.002, 0.02, 10.0, 60.0]))
            await asyncio.sleep(asker.rest_s())


async def die(asker: Asker) -> None:
    """Requests that nobody waits for: this process kills itself in between."""
    life_s = asker.random.uniform(0.5, _LONGEST_LIFE_S)
    asyncio.get_running_loop().call_later(life_s, os.kill, os.getpid(), signal.SIGKILL)
    await ask_at_once(asker)


KINDS: Mapping[str, Callable[[Asker], Coroutine[Any, Any, None]]] = {
    "async": ask_at_once,
    "slow": ask_at_once,
    "cancelling": withdraw,
    "deadlines": press,
    "dying": die,
}
"""The slow one is stopped now and then from outside, in the middle of its answers."""


async def _ask(asker: Asker, session: hyps.AsyncSession, timeout_s: float | None = None) -> None:
    inputs, expected = asker.question()
    with asker.asking(expected) as take:
        take(await session.run(list(expected), inputs, timeout_s=timeout_s))


def _is_right(answer: Any, expected: Any) -> bool:
    return bool(np.max(np.abs(answer - expected)) <= _TOLERANCE * np.max(np.abs(expected)))


def _tell(tally: Tally) -> None:
    while True:
        time.sleep(_TOLD_S)
        print(msgspec.json.encode(tally).decode(), flush=True)


if __name__ == "__main__":
    main()
