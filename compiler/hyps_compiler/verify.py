"""Proves that a plan computes what its model computes, on every border and on the outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from msgspec.structs import replace

from hyps.errors import DifferenceError, printable
from hyps.formats.plan import Plan
from hyps.local import LocalRunner
from hyps_compiler.compare import Difference, compare
from hyps_compiler.measure import Feeds
from hyps_compiler.ort import Level, open_session, run
from hyps_compiler.source import Source, read_proto

_LARGE_BYTES = 10**9
"""Above this many bytes of weights none are copied into the kernels' layouts, which would double them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the verification found, the worst of all requests for each tensor."""

    borders: tuple[Difference, ...]
    """Parts against the whole, both without graph optimizations, on every tensor that crosses a border."""
    outputs: tuple[Difference, ...]
    """The plan as a worker runs it against the model in onnxruntime with its default options."""
    own_noise: dict[str, float]
    """How far onnxruntime's own optimizations move an output, relative; only of outputs beyond the tolerance."""
    must_be_identical: frozenset[str]
    """Borders that no H-partition lies before."""

    def problems(self) -> list[str]:
        """Return what is wrong, one phrase each; empty when the plan is proved."""
        found = []
        for border in self.borders:
            exact = border.tensor in self.must_be_identical
            if not (border.is_identical if exact else border.is_within_tolerance):
                found.append(
                    f"border tensor `{printable(border.tensor)}` differs by {border.relative:.2g} of its largest value"
                )
        found += [
            f"output `{printable(output.tensor)}` differs by {output.relative:.2g} of its largest value"
            for output in self.outputs
            if not output.is_within_tolerance and output.relative > 2 * self.own_noise.get(output.tensor, 0.0)
        ]
        return found

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
) -> Report:
    """Run plan and model on the same requests and compare.

    Args:
        folder: the plan folder.
        plan: what it holds.
        source: the model file.
        staged: the model in the form in which it was cut.
        requests: inputs to run.
        answers: what the plan answered in another process; None runs it here, without a budget.
    """
    borders = _compare_borders(folder, plan, staged, requests)
    outputs = _compare_outputs(
        source, requests, answers if answers is not None else _plan_answers(folder, plan, requests)
    )
    doubtful = [difference.tensor for difference in outputs if not difference.is_within_tolerance]
    noise = _own_noise(source, doubtful, requests) if doubtful else {}
    return Report(tuple(borders), tuple(outputs), noise, _must_be_identical(plan))


def _compare_borders(folder: Path, plan: Plan, staged: Path, requests: Sequence[Feeds]) -> list[Difference]:
    proto = read_proto(staged)
    made = {name for node in proto.graph.node for name in node.output}
    names = [name for part in plan.partitions for name in part.outputs if name in made]
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    probe = staged.with_name("borders.onnx")
    probe.write_bytes(proto.SerializeToString())
    try:
        whole = open_session(probe, "none")
    finally:
        probe.unlink()
    expected = [run(whole, names, request) for request in requests]
    del whole  # its weights and the parts' need not be in memory together
    worst: dict[str, Difference] = {}
    for index, found in _run_parts(folder, plan, requests):
        wanted = expected[index]
        _keep_worst(worst, {name: wanted.pop(name) for name in found if name in wanted}, found)
    return list(worst.values())


def _run_parts(folder: Path, plan: Plan, requests: Sequence[Feeds]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what each partition makes of each request, by the request's index, in plain onnxruntime.

    One partition is open at a time, and a tensor is held no longer than a later partition needs it.
    """
    last_use = {name: index for index, part in enumerate(plan.partitions) for name in part.inputs}
    held = [dict(request) for request in requests]
    for index, part in enumerate(plan.partitions):
        session = open_session(folder / part.file, "none")
        for number, store in enumerate(held):
            made = run(session, part.outputs, {name: store[name] for name in part.inputs})
            yield number, made
            store.update((name, value) for name, value in made.items() if name in last_use)
            for name in [name for name in store if last_use.get(name, -1) <= index]:
                del store[name]


def _compare_outputs(
    source: Source, requests: Sequence[Feeds], answers: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    worst: dict[str, Difference] = {}
    for expected, answer in zip(_answers(source, "default", requests), answers, strict=True):
        _keep_worst(worst, expected, answer)
    return list(worst.values())


def _plan_answers(folder: Path, plan: Plan, requests: Sequence[Feeds]) -> list[dict[str, Any]]:
    """Run the plan as a worker with memory for all of it does; with large weights, as one that leaves them mapped."""
    large = plan.model.weight_bytes > _LARGE_BYTES
    budget = plan.model.weight_bytes + _LARGE_BYTES if large else None
    with LocalRunner(folder, plan=replace(plan, memory_bytes=budget), check=False) as parts:
        return [parts.run(request) for request in requests]


def _own_noise(source: Source, names: Sequence[str], requests: Sequence[Feeds]) -> dict[str, float]:
    plain, optimized = (_answers(source, level, requests) for level in ("none", "default"))
    worst: dict[str, Difference] = {}
    for left, right in zip(plain, optimized, strict=True):
        _keep_worst(worst, {name: left[name] for name in names}, right)
    return {name: difference.relative for name, difference in worst.items()}


def _answers(source: Source, level: Level, requests: Sequence[Feeds]) -> list[dict[str, Any]]:
    session = open_session(source.path, level, prepack=source.nbytes <= _LARGE_BYTES)
    names = [output.name for output in session.get_outputs()]
    return [run(session, names, request) for request in requests]


def _keep_worst(worst: dict[str, Difference], expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        difference = compare(name, value, actual.get(name))
        if name not in worst or difference.relative >= worst[name].relative:
            worst[name] = difference


def _must_be_identical(plan: Plan) -> frozenset[str]:
    """Return the tensors that no H-partition has touched.

    None where half floats cross borders that onnxruntime did not make: the whole model keeps float32 between the nodes
    that it computes as float32, and a border rounds.
    """
    if plan.optimization == "none" and any(info.dtype == "float16" for info in plan.tensors.values()):
        return frozenset()
    touched: set[str] = set()
    clean: set[str] = set()
    for part in plan.partitions:
        dirty = part.kind == "horizontal" or any(name in touched for name in part.inputs)
        (touched if dirty else clean).update(part.outputs)
    return frozenset(clean)
