"""`hypsc run`: requests from files through a plan, a running worker or a manager, answers into a file."""

import contextlib
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyps.adapters.feeds import numpy_dtype
from hyps.adapters.plan_files import read_plan
from hyps.errors import OutputError, TensorError, printable
from hyps.formats.plan import NamedTensor
from hyps.formats.quantities import counted, format_seconds
from hyps.formats.signature import check_names, shape_text
from hyps.local import LocalRunner
from hyps.terminal import table
from hyps_compiler.arrays import IMAGE_SUFFIXES, read_image, read_npy, read_npz, write_npz
from hyps_compiler.output import check_output_file, output_file

if TYPE_CHECKING:
    from concurrent.futures import Future

    from hyps.remote import RemoteRunner
    from hyps_compiler.explaining import Explanation

Array = np.ndarray[Any, Any]

_SEED = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What a run gave."""

    outputs: dict[str, Any]
    """By name; of a batch, the requests' answers stacked as the inputs were."""
    requests: int
    seconds: float
    """From the first request to the last answer, loading included."""
    partitions: tuple[tuple[str, float, float], ...]
    """Id, seconds loading and seconds running, all requests together; empty for a remote worker."""
    latencies_s: tuple[float, ...] = ()
    """Of a remote worker's requests, in their order: from when each was sent off to its answer."""
    explanation: "Explanation | None" = None
    """Where time and memory went, where that was asked for."""

    @property
    def throughput_rps(self) -> float | None:
        """Requests per second; None where there was one request only."""
        return self.requests / self.seconds if self.requests > 1 and self.seconds else None

    def summary(self) -> dict[str, Any]:
        """Return the answers without their values, for machines."""
        outputs = {
            name: {"dtype": str(getattr(value, "dtype", "")), "shape": list(np.shape(value))}
            for name, value in self.outputs.items()
        }
        parts = [{"id": i, "load_s": load_s, "run_s": run_s} for i, load_s, run_s in self.partitions]
        return {
            "requests": self.requests,
            "seconds": self.seconds,
            "throughput_rps": self.throughput_rps,
            "latencies_s": list(self.latencies_s),
            "outputs": outputs,
            "partitions": parts,
            **({} if self.explanation is None else {"explanation": self.explanation.as_json()}),
        }


def run_plan(
    plan: Path | None,
    endpoint: str | None,
    inputs: Sequence[str],
    output: Path | None,
    *,
    memory_bytes: int | None,
    threads: int | None,
    force: bool,
    timeout_s: float | None = None,
    explain: bool = False,
) -> Answers:
    """Run the requests that `inputs` name and write the outputs.

    Args:
        plan: the plan's folder; None: `endpoint` is asked.
        endpoint: the address of a worker or manager.
        inputs: files, as `hypsc run -i` takes them.
        output: the file for the outputs.
        memory_bytes: the most that this process may have resident; None: what the plan was made for.
        threads: for one partition; None: one per core.
        force: whether to replace the output file.
        timeout_s: each request's deadline at `endpoint`; None: as long as it takes.
        explain: whether to watch where time and memory go in a plan that is run here; a batch then goes through it
            request by request.

    Raises:
        TensorError: an input cannot be read or does not fit.
        OutputError: the output file exists or cannot be written.
        PlanError, PeerError: the plan or the worker is not as it should be.
        DeadlineError: a request was not answered by its deadline.
    """
    if output is not None:
        check_output_file(output, force=force)
    if plan is not None:
        answers = _run_local(plan, inputs, memory_bytes, threads, explain=explain)
    else:
        answers = _run_remote(endpoint or "", inputs, timeout_s)
    if output is not None:
        _write_npz(output, answers.outputs)
    return answers


def show_answers(answers: Answers) -> str:
    """Return the answers as text for people."""
    rows = [
        (i, format_seconds(load_s) if load_s else "kept", format_seconds(run_s))
        for i, load_s, run_s in answers.partitions
    ]
    shapes = [
        (
            printable(name),
            str(getattr(value, "dtype", "")),
            shape_text(np.shape(value)),
            _peek(value),
        )
        for name, value in answers.outputs.items()
    ]
    lines = [f"{counted(answers.requests, 'request')} in {format_seconds(answers.seconds)}{_rate_text(answers)}"]
    if len(answers.latencies_s) > 1:
        lines.append(_latency_text(answers.latencies_s))
    if answers.explanation is not None:
        from hyps_compiler.explaining import show_explanation

        lines += ["", show_explanation(answers.explanation)]
    elif rows:
        lines += ["", table(rows, ("partition", "load", "run"), "lrr")]
    return "\n".join([*lines, "", table(shapes, ("output", "dtype", "shape", "values"), "llll")])


def _run_local(
    plan: Path, inputs: Sequence[str], memory_bytes: int | None, threads: int | None, *, explain: bool
) -> Answers:
    known = read_plan(plan)
    requests, stack = _requests(known.model.inputs, inputs, known.assumed_dims)  # first: they take memory as well
    present = max((sum(array.nbytes for array in request.values()) for request in requests), default=0)
    with LocalRunner(plan, plan=known, memory_bytes=memory_bytes, threads=threads, present_nbytes=present) as runner:
        start = time.perf_counter()
        results, explanation = _explained(runner, requests) if explain else (runner.run_batch(requests), None)
        seconds = time.perf_counter() - start
        times = tuple((i, sum(t.load_s), sum(t.run_s)) for i, t in runner.timings.items())
    return Answers(_stacked(results, stack), len(requests), seconds, times, explanation=explanation)


def _explained(runner: LocalRunner, requests: Sequence[dict[str, Array]]) -> "tuple[list[dict[str, Any]], Explanation]":
    from hyps_compiler.explaining import explained

    return explained(runner, requests)


def _run_remote(endpoint: str, inputs: Sequence[str], timeout_s: float | None) -> Answers:
    from hyps.remote import connect  # a plan that is run here does without ZeroMQ and the 2 MB that it takes

    with contextlib.closing(connect(endpoint, timeout_s=timeout_s)) as runner:
        requests, stack = _requests(runner.inputs, inputs, {})
        start_s = time.perf_counter()
        results, latencies_s = _ask_all(runner, requests)
        seconds = time.perf_counter() - start_s
    return Answers(_stacked(results, stack), len(requests), seconds, (), latencies_s)


def _ask_all(
    runner: "RemoteRunner", requests: Sequence[dict[str, Array]]
) -> tuple[list[dict[str, Any]], tuple[float, ...]]:
    """Return the answers and their latencies, with as many requests under way as the connection takes."""
    latencies_s = [0.0] * len(requests)
    pending: deque[Future[dict[str, Any]]] = deque()
    results = []

    def note(index: int, start_s: float, _: "Future[dict[str, Any]]") -> None:
        latencies_s[index] = time.perf_counter() - start_s

    for index, request in enumerate(requests):
        pending.append(runner.submit(request))
        pending[-1].add_done_callback(partial(note, index, time.perf_counter()))
        while pending and pending[0].done():
            results.append(pending.popleft().result())
    results += [future.result() for future in pending]
    return results, tuple(latencies_s)


def _requests(
    declared: Sequence[NamedTensor], inputs: Sequence[str], dims: dict[str, int]
) -> tuple[list[dict[str, Array]], str]:
    """Return the requests, and how they were taken apart: `single`, `stack` (a new first axis) or `concatenate`."""
    arrays = _read_inputs(declared, inputs) if inputs else random_request(declared, dims)
    check_names(declared, arrays)
    kinds = {_batch_kind(tensor, arrays[tensor.name]) for tensor in declared}
    if kinds == {"single"} or len(kinds) != 1:
        return [arrays], "single"
    kind = kinds.pop()
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        told = ", ".join(map(str, sorted(counts)))
        raise TensorError(f"the inputs of a batch have different lengths: {told}", "give as many of each")
    count = counts.pop()
    if not count:
        raise TensorError("the batch is empty", "give at least one request")
    return [
        {name: array[i : i + 1] if kind == "concatenate" else array[i] for name, array in arrays.items()}
        for i in range(count)
    ], kind


def _batch_kind(tensor: NamedTensor, array: Array) -> str:
    shape = tensor.shape
    if shape is not None and array.ndim == len(shape) + 1:
        return "stack"
    if shape and shape[0] == 1 and array.ndim == len(shape) and len(array) != 1:
        return "concatenate"
    return "single"


def _read_inputs(declared: Sequence[NamedTensor], inputs: Sequence[str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for text in inputs:
        tensor, path = _input_and_file(declared, text)
        if path.suffix.lower() == ".npz" and tensor is None:
            arrays.update(read_npz(path))
            continue
        if tensor is None and len(declared) != 1:
            names = ", ".join(printable(t.name) for t in declared)
            raise TensorError(
                f"which input is `{printable(text)}` for?", f"give it as NAME=FILE; the inputs are {names}"
            )
        target = tensor or declared[0]
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        arrays[target.name] = read_image(path, target) if is_image else read_npy(path)
    return arrays


def _input_and_file(declared: Sequence[NamedTensor], text: str) -> tuple[NamedTensor | None, Path]:
    """Return the input that `NAME=FILE` names, None where it is a file alone, and the file."""
    for tensor in declared:  # a name may hold `=`, and so may a file's
        if text.startswith(f"{tensor.name}="):
            return tensor, Path(text[len(tensor.name) + 1 :])
    name, separator, _ = text.partition("=")
    if separator and not os.path.exists(text):
        known = ", ".join(printable(t.name) for t in declared)
        raise TensorError(f"`{printable(name)}` is no input of the plan", f"its inputs are {known}")
    return None, Path(text)


def random_request(declared: Sequence[NamedTensor], dims: dict[str, int]) -> dict[str, Array]:
    """Return a request of seeded values; `dims` has the sizes of open dimensions.

    Raises:
        TensorError: no values can be made up for an input.
    """
    from hyps_compiler.values import random_array  # needs onnx, which reading a file does not

    arrays = {}
    for position, tensor in enumerate(declared):
        if tensor.shape is None or (tensor.dtype != "string" and numpy_dtype(tensor.dtype) is None):
            what = "no known shape" if tensor.shape is None else f"the type {printable(tensor.dtype)}"
            raise TensorError(
                f"no values can be made up for input `{printable(tensor.name)}`, which has {what}",
                "give it with -i NAME=file.npy",
            )
        shape = tuple(
            size if isinstance(size, int) else dims.get(size or f"{tensor.name}:{axis}", 1)
            for axis, size in enumerate(tensor.shape)
        )
        arrays[tensor.name] = random_array(tensor.dtype, shape, np.random.default_rng([_SEED, position]))
    return arrays


def _stacked(results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    if kind == "single":
        return results[0]
    return {name: _joined(name, [result[name] for result in results], kind) for name in results[0]}


def _joined(name: str, values: list[Any], kind: str) -> Any:
    try:
        return np.concatenate(values) if kind == "concatenate" else np.stack(values)
    except ValueError as error:
        raise OutputError(
            f"the answers have different shapes in output `{printable(name)}`, so they make no batch",
            "run the requests one by one",
        ) from error


def _write_npz(path: Path, outputs: dict[str, Any]) -> None:
    """Write the outputs to a file that appears whole."""
    unfit = [name for name, value in outputs.items() if not isinstance(value, np.ndarray)]
    if unfit:
        raise OutputError(f"output `{printable(unfit[0])}` is no tensor, so an .npz file cannot hold it")
    with output_file(path) as beside:
        write_npz(beside, outputs)


def _rate_text(answers: Answers) -> str:
    return "" if answers.throughput_rps is None else f", {answers.throughput_rps:.4g} per second"


def _latency_text(latencies_s: Sequence[float]) -> str:
    ordered = sorted(latencies_s)
    late_s = ordered[math.ceil(0.95 * len(ordered)) - 1]
    figures = (("median", statistics.median(ordered)), ("95 %", late_s), ("longest", ordered[-1]))
    return "latency: " + ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in figures)


def _peek(value: Any) -> str:
    flat: Any = value.reshape(-1)[:4] if isinstance(value, np.ndarray) else []
    shown = ", ".join(
        f"{item:.4g}" if isinstance(item, (float, np.floating)) else printable(str(item), 12) for item in flat
    )
    return shown + (", …" if np.size(value) > 4 else "")
