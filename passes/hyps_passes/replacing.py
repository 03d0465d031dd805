"""A new placement of a plan's partitions, as they are, on the devices that are there.

Rows of consecutive stages are searched exactly, with replicas where throughput is wanted. Where partitions can run side
by side (shards of a layer, branches), where there are more devices than that search takes, or where nothing consecutive
fits, placements are built task by task and bettered by moves, and by a mixed-integer program where ortools is installed
and nothing is urgent. What runs now stays where it is nearly as good.
"""

import contextlib
import importlib.util
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hyps.errors import DependencyError, InfeasibleError, printable
from hyps.formats.plan import Prediction
from hyps.formats.quantities import format_nbytes, format_seconds
from hyps.formats.replanning import Aim, Answer, Question
from hyps_passes.found import TOLERANCE
from hyps_passes.objectives import OBJECTIVES
from hyps_passes.replacing_moves import bettered, listed, packed
from hyps_passes.replacing_placement import Judge, Judged, Placement, assignment_of, placement_of
from hyps_passes.replacing_problem import HubProblem, Posed, pose
from hyps_passes.replacing_rows import RowSearch
from hyps_passes.searches.group_dp import Row, most_machines

_URGENT_S = 0.5
"""What runs now cannot go on, and requests wait: the first good placement will do."""
_IN_TURNS = "devices load partitions in turn, for they do not fit all at once"
_LEAST_SOLVING_S = 0.2
"""A mixed-integer program that has less time is not begun."""


@dataclass(frozen=True, slots=True)
class _Proof:
    """What is known of all placements of a kind."""

    bound: float
    space: str

    def holds_for(self, score: float) -> bool:
        """Whether a placement with that score is none that the proof knows nothing of: it is not better."""
        return 0 < self.bound * (1 - TOLERANCE) <= score


def place_again(question: Question) -> Answer:
    """Return where the partitions of a question shall run.

    Raises:
        InfeasibleError: the devices cannot hold the partitions, or the deadline cannot be met; the message has the
            smallest relaxation.
    """
    start_s = time.monotonic()
    _require_devices(question)
    posed = pose(question)
    if question.aim == "energy" and not any(d.active_w or d.joules_per_byte for d in question.devices):
        question = replace(question, aim="latency")
        posed = Posed(posed.problem, (*posed.assumptions, "no device tells its power: latency stands for energy"))
    chosen, best, proof = _Replacing(question, posed.problem).run(start_s)
    return _answer(question, posed, chosen, _reason(question.aim, chosen, best, proof), proof, start_s)


def _require_devices(question: Question) -> None:
    if not question.devices:
        raise InfeasibleError("no device is there to run the partitions", "start `hyps-worker --manager ENDPOINT`")
    for part in question.partitions:
        if all(part.id in device.refused for device in question.devices):
            raise InfeasibleError(
                f"no device that is there can load partition `{printable(part.id)}`", "let another worker join"
            )


class _Replacing:
    """One search."""

    def __init__(self, question: Question, problem: HubProblem) -> None:
        self.question = question
        self.problem = problem
        self.aim: Aim = question.aim
        self.has_groups = question.allow_replicas and self.aim == "throughput"
        self.machines = range(1, len(problem.machines))
        self.held = _held(question)
        self.judge = Judge(problem, OBJECTIVES[self.aim], self.held, problem.alone)
        self.rows = RowSearch(problem, self.held, problem.alone)
        self.proof: _Proof | None = None

    def run(self, start_s: float) -> tuple[Judged, float, _Proof | None]:
        """Return what to do, the best score that was found, and what is proven."""
        current = [judged for judged in self._current() if judged.score < math.inf]
        is_urgent = bool(self.question.current) and not current
        end_s = start_s + min(self.question.time_limit_s, _URGENT_S if is_urgent else math.inf)
        found = current + [judged for judged in self._rows() if judged.score < math.inf]
        if not found or not self._is_searched_out():
            found += [judged for judged in self._built(found, end_s) if judged.score < math.inf]
        if found and not is_urgent:
            found += [judged for judged in self._solved(found, end_s) if judged.score < math.inf]
        if not found:
            found = [judged for judged in self._in_turns() if judged.score < math.inf]
        if not found:
            raise self._refusal()
        best = min(judged.score for judged in found)
        near = [judged for judged in found if judged.score <= best * (1 + self.question.keep_within) * (1 + TOLERANCE)]
        chosen = min(near, key=lambda judged: (judged.moved_bytes, judged.score))
        return chosen, best, self.proof

    def _rows(self) -> Iterator[Judged]:
        """Yield rows of consecutive stages over as many machines as can be searched."""
        most = most_machines(self.rows.cuts, has_groups=self.has_groups)
        for machines in self._selections(most):
            rows = self.rows.best(machines, self.aim, has_groups=self.has_groups, keep_within=self.question.keep_within)
            if rows is None:
                continue
            if self.problem.is_chain and len(machines) == len(self.machines) and self.aim != "energy":
                kind = "replicated pipelines" if self.has_groups else "consecutive pipelines"
                self.proof = _Proof(rows.best.value, kind)
            for row in (rows.best, rows.near):
                yield self.judge.judged(placement_of(len(self.problem.tasks), row.stages), "consecutive stages")
            return

    def _selections(self, most: int) -> Iterator[tuple[int, ...]]:
        """Yield machines to search over: all, or the fastest, or else the largest."""
        if len(self.machines) <= most:
            yield tuple(self.machines)
            return
        speeds = {m: sum(row[m] for row in self.problem.seconds) for m in self.machines}
        yield tuple(sorted(sorted(self.machines, key=lambda m: (speeds[m], m))[:most]))
        yield tuple(sorted(sorted(self.machines, key=lambda m: (-self._memory(m), m))[:most]))

    def _current(self) -> Iterator[Judged]:
        """Yield what runs now, as far as it is still there."""
        numbers = {machine.name: number for number, machine in enumerate(self.problem.machines)}
        placement = tuple(
            tuple(numbers[name] for name in self.question.current.get(part.id, ()) if name in numbers)
            for part in self.question.partitions
        )
        if all(placement):
            yield self.judge.judged(placement, "what runs now")

    def _is_searched_out(self) -> bool:
        """Whether rows of consecutive stages are all that can be good."""
        if self.aim == "energy":
            return False
        return self.proof is not None and self.question.deadline_s is None

    def _built(self, found: Sequence[Judged], end_s: float) -> Iterator[Judged]:
        """Yield placements of any form."""
        starts = list(found)
        built = filter(None, (listed(self.problem), packed(self.problem)))
        starts += [self.judge.judged(placement, "built task by task") for placement in built]
        for start in sorted(starts, key=lambda judged: judged.score)[:2]:
            yield bettered(self.judge, start, has_groups=self.has_groups, end_s=end_s)

    def _solved(self, found: Sequence[Judged], end_s: float) -> Iterator[Judged]:
        """Yield what a mixed-integer program finds in the time that is left, where ortools is there.

        Latency of a chain is left out, since to come back to a device gains nothing there, and so are chains whose
        stages share devices: that balances as well.
        """
        left_s = end_s - time.monotonic()
        is_settled = self.aim == "energy" or (self.problem.is_chain and (self.aim == "latency" or self.has_groups))
        if is_settled or left_s < _LEAST_SOLVING_S or importlib.util.find_spec("ortools") is None:
            return
        with contextlib.suppress(DependencyError):  # too old
            from hyps_passes.searches.placement import best_placement  # its solver takes long to load

            start = min(found, key=lambda judged: judged.score).placement
            warm = assignment_of(tuple(machines[:1] for machines in start))
            solved = best_placement(self.problem, self.judge.objective, warm=warm, time_limit_s=left_s)
            if solved is not None:
                machine_of = solved.assignment.machine_of()
                placement = tuple((machine_of[task],) for task in range(len(self.problem.tasks)))
                yield self.judge.judged(placement, "by mixed-integer program")

    def _in_turns(self) -> Iterator[Judged]:
        """Yield the stages that lack the least memory, where each partition fits alone: their devices load in turn."""
        row = self._least_excess()
        if row is None or row.value <= 0 or self.question.deadline_s is not None:
            return
        for (machine, *_), start, end in row.stages:
            if any(self.rows.peak_bytes(machine, task, task + 1) > self._memory(machine) for task in range(start, end)):
                return
        placement = placement_of(len(self.problem.tasks), row.stages)
        yield self.judge.unlimited(placement, f"{_IN_TURNS}: consecutive stages")

    def _least_excess(self) -> Row | None:
        most = most_machines(self.rows.cuts, has_groups=False)
        return self.rows.least_excess(sorted(sorted(self.machines, key=lambda m: (-self._memory(m), m))[:most]))

    def _memory(self, machine: int) -> float:
        memory = self.problem.machines[machine].memory_bytes
        return math.inf if memory is None else memory

    def _refusal(self) -> InfeasibleError:
        """Return why nothing keeps the limits, and what would have to give."""
        row = self._least_excess()
        if row is None:
            return InfeasibleError(
                "no placement was found that heeds what devices cannot load and may hold at most (`max_share`)",
                "let more workers join",
            )
        if row.value > 0:
            return self._memory_refusal(row.stages)
        return self._deadline_refusal()

    def _memory_refusal(self, stages: Sequence[tuple[tuple[int, ...], int, int]]) -> InfeasibleError:
        """Return why even in turns they do not run: what single partitions need, each more than its device has."""
        short = []
        for (machine, *_), start, end in stages:
            told = self.problem.machines[machine]
            needed = max(self.rows.peak_bytes(machine, task, task + 1) for task in range(start, end))
            if told.memory_bytes is not None and needed > told.memory_bytes:
                shown = format_nbytes(math.ceil(needed * 1.005))
                short.append(f"{shown} on `{printable(told.name, 40)}` (it has {format_nbytes(told.memory_bytes)})")
        count = len(self.machines)
        devices = "the device that is there does" if count == 1 else f"the {count} devices that are there do"
        return InfeasibleError(
            f"{devices} not have the memory for the plan's partitions: it would take {' and '.join(short)}",
            "give the workers more --memory, let more of them join, or compile the model into smaller partitions",
        )

    def _deadline_refusal(self) -> InfeasibleError:
        rows = self.rows.best(
            next(self._selections(most_machines(self.rows.cuts, has_groups=False))),
            "latency",
            has_groups=False,
            keep_within=0.0,
        )
        needed = "" if rows is None else f"; {format_seconds(rows.best.value * 1.005)} would do"
        deadline = format_seconds(self.question.deadline_s or 0.0)
        return InfeasibleError(
            f"no placement that was found answers within the deadline of {deadline}{needed}",
            "allow more time, or let more or faster workers join",
        )


def _held(question: Question) -> list[list[int]]:
    """Return by machine, the hub first, the tasks that it holds now."""
    held: list[list[int]] = [[] for _ in range(len(question.devices) + 1)]
    numbers = {device.name: number for number, device in enumerate(question.devices, start=1)}
    for index, part in enumerate(question.partitions):
        for name in question.current.get(part.id, ()):
            if name in numbers:
                held[numbers[name]].append(index)
    return held


def _answer(
    question: Question, posed: Posed, chosen: Judged, reason: str, proof: _Proof | None, start_s: float
) -> Answer:
    problem, told = posed.problem, chosen.estimate
    names = [machine.name for machine in problem.machines]
    where = dict(zip((part.id for part in question.partitions), chosen.placement, strict=True))
    is_timed = question.aim in ("latency", "throughput")
    known = proof if proof is not None and is_timed and proof.holds_for(chosen.score) else None
    return Answer(
        number=question.number,
        placement={part: names[machines[0]] for part, machines in where.items()},
        replicas={part: tuple(names[m] for m in machines[1:]) for part, machines in where.items() if machines[1:]},
        prediction=Prediction(
            latency_s=told.latency_s,
            throughput_rps=told.throughput_rps if math.isfinite(told.throughput_rps) else None,
            lower_bound_s=None if known is None else min(known.bound, chosen.score),
            bound_over=None if known is None else known.space,
            memory_bytes={name: nbytes for name, nbytes in zip(names, told.peak_bytes, strict=True) if nbytes},
            link_bytes={
                f"{names[channel.source] or 'hub'} to {names[channel.target] or 'hub'}": nbytes
                for channel, nbytes in zip(problem.channels, told.channel_bytes, strict=True)
                if nbytes
            },
            energy_joules=told.joules if any(machine.active_w for machine in problem.machines) else None,
            partition_s={
                part: problem.seconds[task][machines[0]] for task, (part, machines) in enumerate(where.items())
            },
        ),
        moved_bytes=chosen.moved_bytes,
        is_kept=bool(question.current) and _is_current(question, chosen.placement, names),
        assumptions=posed.assumptions,
        reason=reason,
        search_s=time.monotonic() - start_s,
    )


def _is_current(question: Question, placement: Placement, names: Sequence[str]) -> bool:
    return all(
        tuple(names[m] for m in machines) == question.current.get(part.id)
        for part, machines in zip(question.partitions, placement, strict=True)
    )


def _reason(aim: Aim, chosen: Judged, best: float, proof: _Proof | None) -> str:
    """Return a phrase such as `consecutive stages over 3 devices, the best of consecutive pipelines`."""
    devices = {machine for machines in chosen.placement for machine in machines}
    count = "one device" if len(devices) == 1 else f"{len(devices)} devices"
    text = f"{chosen.reason} over {count} for {aim}"
    if proof is not None and proof.holds_for(chosen.score):
        gap = chosen.score / proof.bound - 1
        told = f"the best of {proof.space}" if gap <= TOLERANCE else f"within {gap:.1%} of the best of {proof.space}"
        return f"{text}, {told}"
    if chosen.score > best * (1 + TOLERANCE):
        return f"{text}, within {chosen.score / best - 1:.1%} of the best that was found"
    return text
