"""Pieces of work under way: what of each is still to come, and which do not come on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hyps.core.course_book import LiveCourse
from hyps.core.request_queue import Request
from hyps.errors import InternalError

_SLOW_BYTES_PER_S = 500_000.0
"""Of a network on which tensors are still waited for."""

_PATIENT_FACTOR = 6


@dataclass(slots=True, eq=False)
class Work:
    """A request, or several that are computed together, on their way through the devices."""

    number: int
    requests: tuple[Request, ...]
    rows: int
    scale: float
    """How many times the bytes that the plan tells of."""
    epoch: int = 0
    """Of the attempt under way, or the last one; 0: none yet."""
    course: LiveCourse | None = None
    """None: it waits for its turn."""
    unfinished: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    """Of these, what a device computes."""
    awaited: set[str] = field(default_factory=set)
    """Outputs that are not here."""
    charged: dict[str, float] = field(default_factory=dict)
    """Seconds expected, per partition that is not finished."""
    progress_s: float = 0.0
    """When something was heard of it last."""
    lost: int = 0
    """Attempts that ended with a device."""
    cause: str = ""
    """Of the last loss."""

    @property
    def is_merged(self) -> bool:
        """Whether several requests are computed together."""
        return len(self.requests) > 1

    @property
    def within(self) -> frozenset[str] | None:
        """The partitions of a relayed request that are to run; None: it is none."""
        return self.requests[0].partitions

    @property
    def live_requests(self) -> list[Request]:
        """Return those that somebody still waits for."""
        return [request for request in self.requests if request.work == self.number]


class Leases:
    """The work under way, and how it is charged to the devices."""

    def __init__(self) -> None:
        self._works: dict[int, Work] = {}

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[Work]:
        return iter(self._works.values())

    def get(self, number: int, epoch: int) -> Work | None:
        """Return the work of that number, unless its attempt is another one."""
        work = self._works.get(number)
        return work if work is not None and work.epoch == epoch else None

    def find(self, number: int) -> Work | None:
        """Return the work of that number, whatever its epoch."""
        return self._works.get(number)

    def begin(
        self, work: Work, course: LiveCourse, needed: dict[str, float], awaited: Iterable[str], now_s: float
    ) -> None:
        """An attempt begins: `needed` has the seconds expected of each partition that has to run."""
        work.epoch += 1
        work.course, work.progress_s = course, now_s
        work.unfinished, work.awaited, work.charged = set(needed), set(awaited), needed
        work.started = set()
        self._works[work.number] = work
        course.in_flight += 1
        for device, node in course.nodes.items():
            node.in_flight += 1
            node.in_flight_nbytes += course.nbytes_on(device, work.scale)
        for part, seconds in needed.items():
            course.nodes[course.whole.placement[part]].backlog_s += seconds

    def finish_part(self, work: Work, part: str, now_s: float) -> bool:
        """A partition of it has run; return False when that was known."""
        work.progress_s = now_s
        if part not in work.unfinished:
            return False
        work.unfinished.remove(part)
        self._discharge(work, part)
        return True

    def end(self, work: Work) -> LiveCourse:
        """The attempt is over, one way or the other; return its course."""
        course = work.course
        if course is None or self._works.pop(work.number, None) is not work:
            raise InternalError(f"work {work.number} was not under way and has ended")
        for part in list(work.charged):
            self._discharge(work, part)
        course.in_flight -= 1
        for device, node in course.nodes.items():
            node.in_flight -= 1
            node.in_flight_nbytes -= course.nbytes_on(device, work.scale)
            if not node.in_flight:
                node.backlog_s = 0.0  # what is left of adding and subtracting
        work.course = None
        return course

    def on_course(self, course: LiveCourse) -> list[Work]:
        """Return the work on a course."""
        return [work for work in self if work.course is course]

    def stalled(self, now_s: float, stall_s: float) -> list[Work]:
        """Return the work of which nothing was heard for too long although its devices have nothing to do."""
        return [work for work in self if now_s - work.progress_s > stall_s and self._is_stalled(work, now_s, stall_s)]

    def check_invariants(self) -> None:
        """Raise InternalError unless everything that must always hold does."""
        for work in self:
            _require(work.course is not None, f"work {work.number} is under way on no course")
            _require(set(work.charged) == work.unfinished, f"work {work.number} is charged for what is done")
            _require(bool(work.awaited), f"work {work.number} is done and under way")
            _require(bool(work.live_requests), f"work {work.number} is under way for nobody")

    def _is_stalled(self, work: Work, now_s: float, stall_s: float) -> bool:
        course = work.course
        if course is None:
            return False
        nbytes = sum(course.whole.device_nbytes.values()) * max(1.0, work.scale)
        patience_s = stall_s + nbytes / _SLOW_BYTES_PER_S
        silent_s = now_s - work.progress_s
        if silent_s > _PATIENT_FACTOR * patience_s:
            return not any(item.request == work.number for node in course.nodes.values() for item in node.beat.running)
        nodes = [course.nodes[course.whole.placement[part]] for part in work.unfinished]
        return silent_s > patience_s and all(
            not node.beat.running and not node.beat.waiting and node.beat_s > work.progress_s for node in nodes
        )

    def _discharge(self, work: Work, part: str) -> None:
        course = work.course
        if course is not None:
            course.nodes[course.whole.placement[part]].backlog_s -= work.charged.pop(part)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(otherwise)
