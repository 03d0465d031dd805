"""What the clients of a soak count; pure but for reading their logs."""

from pathlib import Path

import msgspec
from msgspec import Struct


class Tally(Struct):
    """What a client has seen since it began."""

    done: int = 0
    wrong: int = 0
    withdrawn: int = 0
    failed: dict[str, int] = {}
    """By error code."""
    longest_s: float = 0.0


def tally_of(log: Path) -> Tally:
    """Return the sum of what the incarnations of a client told last; one that counts less than before is a new one."""
    total, before = Tally(failed={}), Tally(failed={})
    for line in (*log.read_text().splitlines(), ""):
        now = msgspec.json.decode(line, type=Tally) if line.startswith("{") else None
        if line and now is None:
            continue
        if now is None or seen(now) < seen(before):
            add(total, before)
        before = now or before
    return total


def seen(tally: Tally) -> int:
    """Return how many requests have ended."""
    return tally.done + tally.wrong + tally.withdrawn + sum(tally.failed.values())


def add(total: Tally, more: Tally) -> None:
    """Add one tally to another."""
    total.done += more.done
    total.wrong += more.wrong
    total.withdrawn += more.withdrawn
    total.longest_s = max(total.longest_s, more.longest_s)
    for code, count in more.failed.items():
        total.failed[code] = total.failed.get(code, 0) + count
