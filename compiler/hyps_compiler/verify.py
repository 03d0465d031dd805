"""Proves that a plan computes what its model computes, on every border and on the outputs.

Each partition is run twice where it has to be: in the plan's own run, on what the partitions before it made, and on
what the uncut model has there. A partition that differs on the model's own activations is itself at fault; one that
differs only in the plan's own run was given wrong inputs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as with_fields

from hyps.adapters.machine import rss_nbytes
from hyps.errors import DifferenceError, ExecutionError, HypsError, ModelError, PlanError, printable
from hyps.formats.plan import Partition, Plan
from hyps.local import LocalRunner
from hyps_compiler.compare import Difference, compare
from hyps_compiler.measure import Feeds
from hyps_compiler.oracle import expose, open_oracle
from hyps_compiler.ort import Level, open_session, run
from hyps_compiler.source import Source

_LARGE_BYTES = 10**9
"""Above this many bytes of weights none are copied into the kernels' layouts, which would double them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A partition that is wrong although it was given the uncut model's own activations."""

    partition: str
    outputs: tuple[Difference, ...]
    """Those of its outputs that are wrong, in the partition's order, of the request that shows it."""
    failure: str = ""
    """What onnxruntime says where it refuses or fails to run the partition; empty where it runs."""
    seen_in: str = ""
    """The partition that makes `outputs`, where it is another one: what this one makes is no tensor of the model."""

    @property
    def request(self) -> int:
        """Which request shows it, counted from 0."""
        return self.outputs[0].request if self.outputs else 0

    def __str__(self) -> str:
        """Return the fault as a phrase."""
        if self.failure:
            return f"partition `{printable(self.partition)}` fails: {self.failure}"
        first = self.outputs[0]
        named = f"partition `{printable(self.partition)}` is wrong on the uncut model's own activations"
        return f"{named}: `{printable(first.tensor)}` {first}"


@dataclass(frozen=True, slots=True)
class Reasons:
    """How far each step between model and plan moves one output, relative to its largest value."""

    optimization: float
    """onnxruntime's own optimizations of the whole model."""
    preparation: float | None = None
    """What the model went through before the cut; None where the output is no border."""
    running: float | None = None
    """How a worker runs the partitions, against plain onnxruntime; None where the output is no border."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the verification found, the worst of all requests for each tensor."""

    borders: tuple[Difference, ...]
    """Parts against the whole, both without graph optimizations, on every tensor that crosses a border, in running
    order."""
    outputs: tuple[Difference, ...]
    """The plan as a worker runs it against the model in onnxruntime with its default options."""
    own_noise: dict[str, float]
    """How far onnxruntime's own optimizations move an output, relative; only of outputs beyond the tolerance."""
    must_be_identical: frozenset[str]
    """Borders that no H-partition lies before."""
    faults: tuple[Fault, ...] = ()
    """Partitions that are wrong on good inputs, in running order."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """The partition that makes each border."""
    reasons: Mapping[str, Reasons] = field(default_factory=dict)
    """Of outputs beyond the tolerance."""
    not_compared: tuple[str, ...] = ()
    """Borders that are no tensor of the model: seen only in what is made of them."""

    def is_right(self, border: Difference) -> bool:
        """Return whether a border is what the plan promises: the model's bits, or close to them behind slices."""
        return border.is_identical if border.tensor in self.must_be_identical else self._is_close(border)

    def _is_close(self, found: Difference) -> bool:
        """Return whether it differs by no more than slices may make of it.

        Each partition has been judged on the model's own activations, strictly. What one slice did to the last bits, a
        deep model behind it spreads: where no partition is wrong by itself, that is no fault.
        """
        if found.is_within_tolerance:
            return True
        is_spread = found.tensor not in self.must_be_identical and not self.faults and not found.is_unlike
        return is_spread and found.is_within_spread

    def first(self) -> Difference | None:
        """Return the first border, in running order, that differs in the plan's own run; None where none does."""
        return next((border for border in self.borders if not self.is_right(border)), None)

    def wrong_outputs(self) -> list[Difference]:
        """Return the outputs that differ by more than onnxruntime's own optimizations may explain."""
        return [
            output
            for output in self.outputs
            if not self._is_close(output)
            and (output.is_unlike or output.relative > 2 * self.own_noise.get(output.tensor, 0.0))
        ]

    def problems(self) -> list[str]:
        """Return what is wrong, one phrase each; empty when the plan is proved."""
        wrong = [border for border in self.borders if not self.is_right(border)]
        told = {border.tensor for border in wrong}
        found = [f"border tensor `{printable(border.tensor)}` {border}" for border in wrong]
        found += [str(f) for f in self.faults if f.failure or not told.intersection(d.tensor for d in f.outputs)]
        return [*found, *(f"output `{printable(output.tensor)}` {output}" for output in self.wrong_outputs())]

    def check(self) -> None:
        """Raise what is wrong.

        Raises:
            DifferenceError: names the first tensor that differs.
        """
        problems = self.problems()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DifferenceError(f"the plan does not compute what the model computes: {problems[0]}{more}")


def verify_plan(
    folder: Path,
    plan: Plan,
    source: Source,
    staged: Path,
    requests: Sequence[Feeds],
    *,
    answers: Sequence[Mapping[str, Any]] | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run plan and model on the same requests and compare.

    Args:
        folder: the plan folder.
        plan: what it holds.
        source: the model file.
        staged: the model in the form in which it was cut.
        requests: inputs to run, at least one.
        answers: what the plan answered in another process; None runs it here, without a budget.
        step: called with the partition that is run next, for a progress display.
    """
    assert requests, "nothing would be compared"
    parts = _Parts(folder, plan, staged, requests)
    parts.check(step)
    if answers is None:
        answers = _plan_answers(folder, plan, requests, parts.has_failed)
    outputs = _compare_outputs(source, requests, answers)
    report = replace(parts.report(), outputs=tuple(outputs))
    doubtful = [output.tensor for output in outputs if not output.is_within_tolerance]
    if not doubtful:
        return report
    reasons = _reasons(source, doubtful, requests, parts.outputs, answers)
    return replace(report, reasons=reasons, own_noise={name: reason.optimization for name, reason in reasons.items()})


def must_be_identical(plan: Plan) -> frozenset[str]:
    """Return the tensors that no H-partition has touched.

    None where half floats cross borders that onnxruntime did not make: the whole model keeps float32 between the nodes
    that it computes as float32, and a border rounds.
    """
    if not _can_be_identical(plan):
        return frozenset()
    touched: set[str] = set()
    clean: set[str] = set()
    for part in plan.partitions:
        dirty = part.kind == "horizontal" or any(name in touched for name in part.inputs)
        (touched if dirty else clean).update(part.outputs)
    return frozenset(clean)


def is_right(plan: Plan, part: Partition, difference: Difference, untold: Collection[str] = ()) -> bool:
    """Return whether what a partition makes of good inputs is right: a V-partition must have the model's bits.

    One that adds up parts of a sum, or is given something else of `untold`, cannot have them: what is not a tensor of
    the model was made in another order, and the partition's layers may spread it.
    """
    given_other = any(name in untold for name in part.inputs)
    if part.kind == "vertical" and not given_other and _can_be_identical(plan):
        return difference.is_identical
    return difference.is_within_tolerance or (given_other and difference.is_within_spread)


def _can_be_identical(plan: Plan) -> bool:
    return plan.optimization != "none" or all(info.dtype != "float16" for info in plan.tensors.values())


class _Parts:
    """Runs the partitions in plain onnxruntime, one open at a time, and judges what they make.

    A tensor is held no longer than a later partition needs it, or the answer.
    """

    def __init__(self, folder: Path, plan: Plan, staged: Path, requests: Sequence[Feeds]) -> None:
        """Run the uncut model, which is then released: its weights and the parts' need not be in memory together."""
        self.folder, self.plan = folder, plan
        oracle = open_oracle(staged, folder, plan)
        made = [name for part in plan.partitions for name in part.outputs]
        names = [name for name in made if name in oracle.makers]
        self.not_compared = tuple(name for name in made if name not in oracle.makers)
        scales = oracle.scales(names)
        wanted = list(dict.fromkeys((*names, *scales.values())))
        whole = expose(oracle, wanted)
        self.good: list[dict[str, Any]] = []
        """The uncut model's tensors at the borders, and what partitions make of them that the model does not have."""
        self._largest: list[dict[str, float]] = []
        """The largest magnitude in the tensors of which borders are parts."""
        for request in requests:
            told = run(whole, wanted, request)
            self._largest.append({name: float(told[scale]) for name, scale in scales.items()})
            self.good.append({**request, **{name: told[name] for name in names}})
        self.own: list[dict[str, Any]] = [dict(request) for request in requests]
        self.same = [set(request) for request in requests]
        self.outputs: list[dict[str, Any]] = [{} for _ in requests]
        """What the plan answers in plain onnxruntime, of those outputs that are borders."""
        self.has_failed = False
        """Whether onnxruntime could not run a partition on what it was given."""
        self._worst: dict[str, Difference] = {}
        self._faults: list[Fault] = []
        self._last_use = {name: index for index, part in enumerate(plan.partitions) for name in part.inputs}
        self._answers = {tensor.name for tensor in plan.model.outputs}

    def check(self, step: Callable[[str], None]) -> None:
        """Run every partition on every request."""
        for index, part in enumerate(self.plan.partitions):
            step(f"comparing partition {printable(part.id)}")
            session, refusal = _open(self.folder / part.file)
            found = [self._check_request(number, part, session, refusal) for number in range(len(self.own))]
            self._faults += [_worst_fault(faults)] if (faults := [fault for fault in found if fault]) else []
            for number in range(len(self.own)):
                self._release(number, index, part)

    def report(self) -> Report:
        """Return what was found, without the plan's answers."""
        return Report(
            borders=tuple(self._worst.values()),
            outputs=(),
            own_noise={},
            must_be_identical=must_be_identical(self.plan),
            faults=tuple(self._faults),
            made_by={name: part.id for part in self.plan.partitions for name in part.outputs},
            not_compared=self.not_compared,
        )

    def _check_request(self, number: int, part: Partition, session: Any, refusal: str) -> Fault | None:
        """Run a partition in the plan's own run and, where that gives it other inputs, on the model's own."""
        own, good, same = self.own[number], self.good[number], self.same[number]
        expected = {name: good[name] for name in part.outputs if name in good}
        made, failure = self._run(part, session, refusal, own)
        self.has_failed |= bool(failure)
        found = self._differences(expected, made, failure, number)
        for difference in found:
            _keep_worst(self._worst, difference)
        own.update(made)
        if not all(name in same for name in part.inputs):
            if not all(name in good for name in part.inputs):
                return None  # an input that the model does not have was not made: nothing can be said
            same.update(difference.tensor for difference in found if difference.is_identical)
            made, failure = self._run(part, session, refusal, good)
            found = self._differences(expected, made, failure, number)
        else:
            same.update(difference.tensor for difference in found if difference.is_identical)
            same.update(name for name in made if name in self.not_compared)
        good.update((name, value) for name, value in made.items() if name in self.not_compared)
        wrong = tuple(d for d in found if not is_right(self.plan, part, d, self.not_compared))
        return Fault(part.id, wrong, failure) if wrong or failure else None

    def _differences(
        self, expected: Mapping[str, Any], made: Mapping[str, Any], failure: str, number: int
    ) -> list[Difference]:
        largest = self._largest[number]
        found = [
            compare(name, value, made.get(name)).beside(largest.get(name, 0.0)) for name, value in expected.items()
        ]
        told = [replace(difference, request=number) for difference in found]
        return [replace(d, problem=f"was not made: {failure}") for d in told] if failure else told

    def _run(
        self, part: Partition, session: Any, refusal: str, values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], str]:
        """Return what a partition makes, or why it makes nothing."""
        if refusal:
            return {}, refusal
        if not all(name in values for name in part.inputs):
            return {}, "the partition lacks a tensor that was not made either"
        try:
            return run(session, part.outputs, {name: values[name] for name in part.inputs}), ""
        except ExecutionError as error:
            return {}, _reason(error)

    def _release(self, number: int, index: int, part: Partition) -> None:
        own = self.own[number]
        self.outputs[number].update((name, own[name]) for name in part.outputs if name in own and name in self._answers)
        for store in (own, self.good[number]):
            for name in [name for name in store if self._is_done(name, index, part)]:
                del store[name]

    def _is_done(self, name: str, index: int, part: Partition) -> bool:
        if name in self._last_use:
            return self._last_use[name] <= index
        return name in part.outputs


def _open(path: Path) -> tuple[Any, str]:
    """Return a session of a partition, or why onnxruntime makes none."""
    try:
        return open_session(path, "none"), ""
    except ModelError as error:
        return None, _reason(error)


def _reason(error: HypsError) -> str:
    """Return what onnxruntime says, without what the caller says of it.

    Raises:
        HypsError: the error itself, where this machine is at fault and not the plan.
    """
    if error.code == "E_MEMORY":
        raise error
    return error.message.split(": ", 1)[-1].rstrip(".")


def _worst_fault(faults: Sequence[Fault]) -> Fault:
    """Return the fault of the request that shows it best: a failure, or the largest difference."""
    return max(faults, key=lambda fault: (bool(fault.failure), max((d.relative for d in fault.outputs), default=0.0)))


def _keep_worst(worst: dict[str, Difference], difference: Difference) -> None:
    before = worst.get(difference.tensor)
    if before is None or _badness(difference) > _badness(before):
        worst[difference.tensor] = difference


def _badness(difference: Difference) -> tuple[bool, float, bool, int]:
    """Return a key that orders differences: a tensor beyond its tolerance first, then by size and count."""
    beyond = not difference.is_within_tolerance
    return beyond, difference.relative, not difference.is_identical, difference.different


def _compare_outputs(
    source: Source, requests: Sequence[Feeds], answers: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    return _worst_of(_answers(source, "default", requests), answers, source.outputs)


def _worst_of(
    expected: Sequence[Mapping[str, Any]], actual: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[Difference]:
    """Return the worst difference of all requests for each name that the expected answers have."""
    worst: dict[str, Difference] = {}
    for number, (wanted, answer) in enumerate(zip(expected, actual, strict=True)):
        for name in names:
            _keep_worst(worst, replace(compare(name, wanted[name], answer.get(name)), request=number))
    return list(worst.values())


def _plan_answers(folder: Path, plan: Plan, requests: Sequence[Feeds], has_failed: bool) -> Sequence[Mapping[str, Any]]:
    """Run the plan as a worker with memory for all of it does; with large weights, as one that leaves them mapped.

    A plan of which a partition has failed before has no answers; any other failure is the caller's to know.
    """
    large = plan.model.weight_bytes > _LARGE_BYTES
    budget = (rss_nbytes() or 0) + plan.model.weight_bytes + _LARGE_BYTES if large else None
    try:
        with LocalRunner(folder, plan=with_fields(plan, memory_bytes=budget), check=False) as parts:
            return [parts.run(request) for request in requests]
    except (ExecutionError, PlanError):
        if not has_failed:
            raise
        return [{} for _ in requests]


def _reasons(
    source: Source,
    names: Sequence[str],
    requests: Sequence[Feeds],
    parts: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
) -> dict[str, Reasons]:
    """Return what moves each of the outputs `names`, so that a difference without a wrong border can be told."""
    plain, optimized = (_answers(source, level, requests) for level in ("none", "default"))
    optimization = {d.tensor: d.relative for d in _worst_of(plain, optimized, names)}
    bordering = [name for name in names if all(name in made for made in parts)]
    preparation = {d.tensor: d.relative for d in _worst_of(plain, parts, bordering)}
    running = {d.tensor: d.relative for d in _worst_of(parts, answers, bordering)}
    return {name: Reasons(optimization[name], preparation.get(name), running.get(name)) for name in names}


def _answers(source: Source, level: Level, requests: Sequence[Feeds]) -> list[dict[str, Any]]:
    session = open_session(source.path, level, prepack=source.nbytes <= _LARGE_BYTES)
    names = [output.name for output in session.get_outputs()]
    return [run(session, names, request) for request in requests]
