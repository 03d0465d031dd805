"""A plan's partitions under one memory budget: the worker's core, sessions and a store of tensors, joined."""

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from hyps.adapters.ceiling import Ceiling
from hyps.adapters.deadlines import Turn, Watchdog
from hyps.adapters.feeds import nbytes_of
from hyps.adapters.guard import deadline_error, guarded
from hyps.adapters.lanes import Lanes, Leg, spec_of
from hyps.adapters.machine import hold_memory_down
from hyps.adapters.plan_files import check_cpu, check_files, read_plan
from hyps.adapters.resident import CODE_NBYTES, give_back
from hyps.adapters.sessions import ORT_ERRORS, Mode, Sessions, execution_error
from hyps.adapters.spill_file import SpillCounts
from hyps.adapters.yardstick import macs_per_s
from hyps.core.events import (
    Drop,
    Event,
    Execute,
    Executed,
    ExecuteFailed,
    Fail,
    Instruction,
    Load,
    Loaded,
    LoadFailed,
    ReadAhead,
    Reply,
    Submitted,
    TensorArrived,
    Unload,
)
from hyps.core.residency import (
    Residency,
    Task,
    by_weight,
    decide_residency,
    decide_with_read_ahead,
    live_activations,
    tasks_of,
)
from hyps.core.spilling import Forecast, forecast_spills
from hyps.core.worker_state import WorkerState
from hyps.errors import ExecutionError, HypsError, InfeasibleError, InternalError, PlanError, UsageError, printable
from hyps.formats.plan import Partition, Plan
from hyps.formats.signature import assumed_shapes, growth
from hyps.loading import Loader, choose_modes
from hyps.tensor_store import TensorStore

logger = logging.getLogger(__name__)

OnActivation = Callable[[str, Any], None]
"""Called with the name and the value of each tensor that a partition makes."""

Outcome = dict[str, Any] | HypsError
"""A request's outputs by name, or why there are none."""

GENEROUS_NBYTES = 2_000_000
"""What is left free beside what is kept, if it can be; and by what a plan may miss its budget and is run all the same:
base and peaks are reckoned too high by so much at least, and each partition looks at what is really there first."""

_ENDLESS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Request:
    """What one inference brings and wants; checked by whoever makes it."""

    feeds: Mapping[str, Any]
    outputs: tuple[str, ...] | None = None
    """None: all."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a plan is run."""

    memory_bytes: int | None = None
    """The most that this process may have resident; None: the budget the plan was made for."""
    threads: int | None = None
    """Threads for one partition; None: one per core."""
    exact: bool = False
    """Run as onnxruntime does without graph optimizations, bit for bit."""
    variant: str | None = None
    """The variant's name; None: the first. Every partition runs here, whatever device it names."""
    check: bool = True
    """Compare every file with its digest first."""
    own_process: bool = False
    """No other onnxruntime session is ever made in this process, whose threads all partitions may then share: faster
    with many small partitions and more than one thread."""
    reserved_nbytes: int = 0
    """Part of the budget that is used for something else, such as a queue of requests."""
    timeout_s: float | None = None
    """Longest that the partitions may compute for one request; None: as long as they do."""
    present_nbytes: int = 0
    """What is in memory already of a request to come: it counts as the request's, not as the process's."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A kept partition, ready to run."""

    id: str
    run: Callable[[list[str], dict[str, Any], Any], list[Any]]
    inputs: tuple[str, ...]
    outputs: list[str]
    drops: tuple[str, ...]
    """What no later partition needs and nobody asked for."""
    run_s: deque[float]


def open_engine(folder: str | Path, options: Options, plan: Plan | None = None) -> "Engine":
    """Return the plan in `folder`, checked and ready to run; `plan` is its plan, where that was read before.

    Raises:
        PlanError: the plan is missing, wrong, altered, or made for another CPU.
        InfeasibleError: one partition alone needs more than the budget; names the smallest that would do.
    """
    plan = read_plan(folder) if plan is None else plan
    check_cpu(plan)
    _check_variant(plan, options.variant)
    if options.check:
        check_files(folder, plan, drop_cache=(options.memory_bytes or plan.memory_bytes) is not None)
    opener = Sessions(options.threads, share_pool=options.own_process, is_alone=len(plan.partitions) == 1)
    return Engine(Path(folder), plan, opener, options)


class Engine:
    """Runs requests through the partitions of a plan; closed by `close`.

    Attributes:
        plan: the plan that is run.
        memory_bytes: the budget of this process; None: unlimited.
        base_nbytes: what the process takes without any partition, what is reserved included.
        kept: ids of the partitions that stay loaded, in the plan's order.
        swapped: ids of those that are loaded for their turn and released.
        timings: seconds per partition id.
    """

    def __init__(self, folder: Path, plan: Plan, opener: Sessions, options: Options) -> None:
        """Decide what stays loaded, and load it; `open_engine` checks the plan first.

        Raises:
            InfeasibleError: one partition alone needs more than the budget.
            PlanError: onnxruntime refuses a partition.
        """
        self._folder, self.plan = folder, plan
        self.memory_bytes = plan.memory_bytes if options.memory_bytes is None else options.memory_bytes
        self._partitions = {partition.id: partition for partition in plan.partitions}
        self._opener = opener
        self.base_nbytes = self._opener.measure_base() + CODE_NBYTES + options.reserved_nbytes - options.present_nbytes
        self._tasks = tasks_of(plan)
        self._scratch = {task.id: task.scratch_nbytes for task in self._tasks}
        self._ceiling = None if self.memory_bytes is None else Ceiling(self.memory_bytes)
        self._input_names = [tensor.name for tensor in plan.model.inputs]
        self._output_names = [tensor.name for tensor in plan.model.outputs]
        self._sizes = {name: info.nbytes for name, info in plan.tensors.items() if info.nbytes is not None}
        self._assumed = assumed_shapes(plan.model.inputs, plan.assumed_dims)
        self._residency, self._spills, modes = self._decide(options.exact)
        self.kept = tuple(task.id for task in self._tasks if task.id in self._residency.kept)
        self.swapped = tuple(task.id for task in self._tasks if task.id not in self._residency.kept)
        self._loader = Loader(folder, plan, opener, modes)
        self.timings = self._loader.timings
        self._store = TensorStore(self._tasks, self._output_names, self._sizes, self._spills)
        self._numbers = itertools.count()
        self._one_batch = threading.Lock()
        self._is_closed = False
        self._watchdog = None if options.timeout_s is None else Watchdog(options.timeout_s)
        if not {Mode.FAST, Mode.EXACT}.issuperset(modes.values()):
            hold_memory_down()
        for partition in by_weight(self._tasks, self.kept):
            self._loader.load(partition)
        for partition in self.swapped:
            self._loader.prepare(partition)
        if self.memory_bytes is not None:
            give_back()  # code that making sessions needed, and running does not
        self._core = self._new_core()
        self._steps = [] if self._goes_in_turns else self._steps_for(None)
        self._lanes = self._new_lanes()

    def close(self) -> None:
        """Release every partition; nothing can be run any more."""
        self._is_closed = True
        if self._watchdog is not None:
            self._watchdog.close()
        self._steps = []
        self._lanes = Lanes([], [], [])
        self._loader.close()
        self._store.close()

    @property
    def modes(self) -> Mapping[str, Mode]:
        """How each partition is run, by its id."""
        return self._loader.modes

    @property
    def spilled(self) -> SpillCounts:
        """Feature maps that went to a scratch file and came back, in bytes and seconds."""
        return self._store.counts

    @property
    def _goes_in_turns(self) -> bool:
        """Whether something must be loaded or sent away for the turn of a partition."""
        return bool(self.swapped) or self._spills is not None

    @property
    def threads(self) -> int:
        """Threads that one partition has."""
        return self._opener.threads

    def measure_speed(self) -> float:
        """Return the multiply-accumulates per second of a matrix product here (`yardstick`)."""
        return macs_per_s(self._opener)

    def call_when_stuck(self, on_stuck: Callable[[int], None]) -> None:
        """Have `on_stuck` called, by another thread, with the index of a request of `run_each` that cannot be ended."""
        if self._watchdog is not None:
            self._watchdog.call_when_stuck(on_stuck)

    def run_one(self, request: Request, on_activation: OnActivation | None = None) -> dict[str, Any]:
        """Return the outputs of one request by name.

        Raises:
            ExecutionError: onnxruntime failed in a partition.
            DeadlineError: the request took longer than the engine's `timeout_s`.
            PlanError: it refuses a partition that is loaded for its turn.
            UsageError: the engine was closed.
        """
        if self._is_closed:
            raise UsageError("the plan was closed and cannot be run any more", "open it again")
        if not self._goes_in_turns:
            return self._run_kept(request, 0, on_activation)
        outcomes: list[Outcome] = []
        self._run_in_turns([request], lambda _, outcome: outcomes.append(outcome), on_activation)
        if isinstance(outcomes[0], HypsError):
            raise outcomes[0]
        return outcomes[0]

    def run_each(self, requests: Sequence[Request], on_done: Callable[[int, Outcome], None]) -> None:
        """Run `requests` and call `on_done` with the index and the outcome of each as it ends.

        While all is kept they run one after another, otherwise side by side, a partition at a time.
        """
        if self._goes_in_turns:
            self._run_in_turns(requests, on_done, None)
            return
        for index, request in enumerate(requests):
            try:
                outcome: Outcome = self._run_kept(request, index, None)
            except HypsError as error:
                outcome = error
            on_done(index, outcome)

    def _decide(self, exact: bool) -> tuple[Residency, Forecast | None, dict[str, Mode]]:
        if exact and self.memory_bytes is not None:
            # Exact sessions lay weights out anew, beside the mapped ones, so that the bits are onnxruntime's own.
            self._tasks = [_with_weight(task, 2 * (task.weight_nbytes + task.table_nbytes)) for task in self._tasks]
        live = live_activations(self._tasks, self._input_names, self._output_names, self._sizes)
        self._most_alive = max((live[task.id] + task.scratch_nbytes for task in self._tasks), default=0)
        available = None if self.memory_bytes is None else self.memory_bytes - self.base_nbytes
        names = self._input_names, self._output_names
        spills = forecast_spills(self._tasks, *names, self._sizes, live, available)
        present = live if spills is None else spills.live_nbytes
        can_read = spills is None and not exact and all(part.form is not None for part in self.plan.partitions)
        decide = decide_with_read_ahead if can_read else decide_residency
        residency = self._generous(lambda base_nbytes: decide(self._tasks, present, self.memory_bytes, base_nbytes))
        if exact:
            return residency, spills, {task.id: Mode.EXACT for task in self._tasks}
        is_spilling = spills is not None
        modes = choose_modes(self.plan, self._tasks, residency, self._most_alive, is_spilling=is_spilling)
        return residency, spills, modes

    def _generous(self, decide: Callable[[int], Residency]) -> Residency:
        """Return what is decided beside the base: what is kept leaves some room free, what must fit need not."""
        for more_nbytes in (GENEROUS_NBYTES, 0):
            with contextlib.suppress(InfeasibleError):
                return decide(self.base_nbytes + more_nbytes)
        return decide(self.base_nbytes - GENEROUS_NBYTES)

    def _new_core(self) -> WorkerState:
        names = self._input_names, self._output_names
        core = WorkerState(self._tasks, self._residency, *names, self._sizes, self._spills)
        for partition in self.kept:
            core.handle(Loaded(partition))
        return core

    # Everything kept: the order never changes, so that it is worked out once.

    def _run_kept(self, request: Request, index: int, on_activation: OnActivation | None) -> dict[str, Any]:
        times = self._growth(request.feeds)
        if self._ceiling is not None and times > 1.0:
            needed = int(self._most_alive * times)
            self._ceiling.make_room(self.plan.partitions[0].id, needed, self._opener.shrink, needed)
        try:
            with self._turn(index, 0.0) as turn, guarded(), self._backstop(times):
                return self._run_steps(request, on_activation, turn)
        finally:
            if self._ceiling is not None:
                self._ceiling.settle(self._opener.shrink)

    def _turn(self, index: int, used_s: float) -> contextlib.AbstractContextManager[Turn | None]:
        return _ENDLESS if self._watchdog is None else self._watchdog.watch(index, used_s)

    def _failure(self, partition: str, error: Exception, turn: Turn | None) -> HypsError:
        if turn is not None and turn.is_over and self._watchdog is not None:
            return deadline_error(partition, self._watchdog.timeout_s)
        return execution_error(partition, error)

    def _run_steps(self, request: Request, on_activation: OnActivation | None, turn: Turn | None) -> dict[str, Any]:
        options = None if turn is None else turn.options
        is_plain = request.outputs is None and on_activation is None
        answer = self._lanes.run(request.feeds, options) if is_plain else None
        if answer is not None:
            return answer
        seen = None
        if is_plain and self._lanes.wants(request.feeds):
            seen = {name: spec_of(value) for name, value in request.feeds.items()}
        steps = self._steps if request.outputs is None else self._steps_for(request.outputs)
        store = dict(request.feeds)
        for step in steps:
            start = time.perf_counter()
            try:
                made = step.run(step.outputs, {name: store[name] for name in step.inputs}, options)
            except ORT_ERRORS as error:
                raise self._failure(step.id, error, turn) from error
            step.run_s.append(time.perf_counter() - start)
            store.update(zip(step.outputs, made, strict=True))
            if on_activation is not None:
                for name, value in zip(step.outputs, made, strict=True):
                    on_activation(name, value)
            if seen is not None:
                seen.update((name, spec_of(value)) for name, value in zip(step.outputs, made, strict=True))
            for name in step.drops:
                del store[name]
        if seen is not None:
            self._lanes.learn(seen)
        wanted = request.outputs or self._output_names
        return {name: store[name] for name in self._output_names if name in wanted}

    def _steps_for(self, outputs: Sequence[str] | None) -> list[_Step]:
        """Return the partitions to run, in order: all, or those that `outputs` need."""
        wanted = set(self._output_names if outputs is None else outputs)
        used = set(wanted)
        steps = []
        for partition in reversed(self.plan.partitions):
            if outputs is not None and not used.intersection(partition.outputs):
                continue
            drops = [name for name in (*partition.inputs, *partition.outputs) if name not in used]
            used.update(partition.inputs)
            steps.append(self._step(partition, tuple(dict.fromkeys(drops))))
        return steps[::-1]

    def _new_lanes(self) -> Lanes:
        legs = [
            Leg(self._loader.session(step.id), step.inputs, step.outputs, self.timings[step.id].run_s)
            for step in self._steps
        ]
        return Lanes(legs, self._input_names, self._output_names)

    def _step(self, partition: Partition, drops: tuple[str, ...]) -> _Step:
        session = self._loader.session(partition.id)
        run_s = self.timings[partition.id].run_s
        return _Step(partition.id, session.run, partition.inputs, list(partition.outputs), drops, run_s)

    # Some swapped: the core says what comes next.

    def _run_in_turns(
        self, requests: Sequence[Request], on_done: Callable[[int, Outcome], None], on_activation: OnActivation | None
    ) -> None:
        with self._one_batch:
            batch = _Batch({str(next(self._numbers)): index for index in range(len(requests))}, on_done, on_activation)
            batch.growth = {name: self._growth(requests[index].feeds) for name, index in batch.indices.items()}
            try:
                events = [event for name, i in batch.indices.items() for event in self._take_in(name, requests[i])]
                self._follow(self._core.handle(*events), batch)
            except BaseException:
                self._forget()
                raise

    def _take_in(self, name: str, request: Request) -> list[Event]:
        self._store.add(name, request.feeds)
        arrivals = [TensorArrived(name, tensor, nbytes_of(value)) for tensor, value in request.feeds.items()]
        return [Submitted(name, request.outputs), *arrivals]

    def _follow(self, steps: list[Instruction], batch: "_Batch") -> None:
        todo = deque(steps)
        while todo:
            todo.extend(self._carry_out(todo.popleft(), batch))

    def _carry_out(self, step: Instruction, batch: "_Batch") -> list[Instruction]:
        match step:
            case Load(partition):
                return self._load(partition, batch)
            case ReadAhead(partition):
                self._read_ahead(partition)
            case Unload(partition):
                self._loader.unload(partition)
            case Execute(request, partition):
                return self._execute(request, partition, batch)
            case Drop(request, tensor):
                self._store.drop(request, tensor)
            case Reply(request):
                batch.end(request, self._answer(request))
            case Fail(request, reason):
                self._store.forget(request)
                batch.end(request, batch.failure or InternalError(f"request failed without a cause: {reason}"))
            case _:
                assert_never(step)
        return []

    def _answer(self, request: str) -> Outcome:
        try:
            return self._store.answer(request, self._output_names)
        except HypsError as error:
            return error
        finally:
            self._store.forget(request)

    def _load(self, partition: str, batch: "_Batch") -> list[Instruction]:
        try:
            self._store.make_room(partition)
            self._loader.load(partition, self._core.room_nbytes())
        except HypsError as error:
            batch.failure = error
            return self._core.handle(LoadFailed(partition, error.message))
        return self._core.handle(Loaded(partition))

    def _read_ahead(self, partition: str) -> None:
        """Begin to read a partition; what is wrong with it shows when it is loaded."""
        with contextlib.suppress(PlanError):
            self._loader.read_ahead(partition, self._core.room_nbytes())

    def _execute(self, request: str, partition: str, batch: "_Batch") -> list[Instruction]:
        names = self._partitions[partition]
        try:
            feeds = self._store.feeds(request, partition)
        except HypsError as error:
            batch.failure = error
            return self._core.handle(ExecuteFailed(request, partition, error.message))
        room_nbytes = self._core.room_nbytes()
        if room_nbytes is not None:
            self._loader.shrink(room_nbytes)
        try:
            backstop = self._room_for(partition, feeds, batch.growth[request])
        except ExecutionError as error:
            batch.failure = error
            return self._core.handle(ExecuteFailed(request, partition, error.message))
        start = time.perf_counter()
        with self._turn(batch.indices[request], batch.used_s.get(request, 0.0)) as turn, guarded(), backstop:
            try:
                made = self._loader.session(partition).run(list(names.outputs), feeds, turn and turn.options)
            except PlanError as error:  # rows of a table could not be read
                batch.failure = error
                return self._core.handle(ExecuteFailed(request, partition, error.message))
            except ORT_ERRORS as error:
                batch.failure = self._failure(partition, error, turn)
                return self._core.handle(ExecuteFailed(request, partition, batch.failure.message))
        seconds = time.perf_counter() - start
        batch.used_s[request] = batch.used_s.get(request, 0.0) + seconds
        self.timings[partition].run_s.append(seconds)
        self._store.put(request, dict(zip(names.outputs, made, strict=True)))
        if batch.on_activation is not None:
            for name, value in zip(names.outputs, made, strict=True):
                batch.on_activation(name, value)
        tensors = tuple((name, nbytes_of(value)) for name, value in zip(names.outputs, made, strict=True))
        return self._core.handle(Executed(request, partition, tensors))

    def _room_for(
        self, partition: str, feeds: Mapping[str, Any], times: float
    ) -> contextlib.AbstractContextManager[None]:
        """Make sure that the partition can run on `feeds` within the budget; return what to run it in.

        The request's own inputs are `times` times as large as foreseen.

        Raises:
            ExecutionError: it cannot (`E_MEMORY`).
        """
        if self._ceiling is None:
            return _ENDLESS
        names = self._partitions[partition]
        made = self._scratch[partition] + sum(self._sizes.get(name, 0) for name in names.outputs)
        times = max(times, self._more_bytes(names.inputs, feeds))
        most = int(self._most_alive * times)
        self._ceiling.make_room(partition, int(made * times), lambda: self._loader.shrink(0), most)
        return self._backstop(times)

    def _backstop(self, times: float) -> contextlib.AbstractContextManager[None]:
        """Return what to run larger inputs in than the plan was made for: nobody knows what they need."""
        return _ENDLESS if self._ceiling is None or times <= 1.0 else self._ceiling.backstop()

    def _growth(self, feeds: Mapping[str, Any]) -> float:
        """Return how much larger a request is than those that the plan was made for, in bytes or along its axes."""
        if self._ceiling is None:
            return 1.0
        shapes = {name: np.shape(feeds[name]) for name in self._assumed if isinstance(feeds.get(name), np.ndarray)}
        along = [growth(shape, self._assumed[name]) for name, shape in shapes.items()]
        return max(1.0, self._more_bytes(self._input_names, feeds), *along)

    def _more_bytes(self, names: Sequence[str], feeds: Mapping[str, Any]) -> float:
        foreseen = sum(self._sizes.get(name, 0) for name in names)
        return sum(nbytes_of(feeds[name]) for name in names if name in feeds) / max(1, foreseen)

    def _forget(self) -> None:
        """Start over after a batch was broken off: none of it is left."""
        for partition in self.swapped:
            self._loader.unload(partition)
        self._store.clear()
        self._core = self._new_core()


@dataclass(slots=True)
class _Batch:
    """The requests that are at work together, and whom to tell."""

    indices: dict[str, int]
    on_done: Callable[[int, Outcome], None]
    on_activation: OnActivation | None
    failure: HypsError | None = None
    """The latest refusal: the core's `Fail` follows it at once."""
    used_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each request has been computed for."""
    growth: dict[str, float] = field(default_factory=dict)
    """How much larger than foreseen each request is; 1 at least."""

    def end(self, request: str, outcome: Outcome) -> None:
        self.on_done(self.indices[request], outcome)


def _check_variant(plan: Plan, name: str | None) -> None:
    names = [variant.name for variant in plan.variants]
    if name is not None and name not in names:
        listed = ", ".join(f"`{printable(known)}`" for known in names[:8])
        raise PlanError(f"the plan has no variant `{printable(name)}`", f"it has {listed}")


def _with_weight(task: Task, weight_nbytes: int) -> Task:
    return Task(task.id, task.inputs, task.outputs, weight_nbytes, task.scratch_nbytes)
