"""A lane: partitions bound once to fixed memory for the tensors between them, for requests of one set of shapes.

Without it onnxruntime allocates every activation anew: half of what many small partitions cost, most of it page faults.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from hyps.adapters.arena import Lifetime, lay_out
from hyps.adapters.sessions import ORT_ERRORS, Session

Array = np.ndarray[Any, Any]

_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Leg:
    """One partition on the lane."""

    session: Session
    inputs: Sequence[str]
    outputs: Sequence[str]
    run_s: deque[float]
    """Takes the seconds of each run."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and element type of one tensor of a request; None where it is nothing that can lie in a lane."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


class Lanes:
    """Keeps the lane for the shapes of late; makes one when two requests in a row have the same.

    One request at a time is on the lane: another goes the ordinary way meanwhile. Where a tensor's shape depends on
    the data, onnxruntime refuses the lane's memory; then there is none any more.
    """

    def __init__(self, legs: Sequence[Leg], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._legs, self._inputs, self._outputs = legs, inputs, outputs
        self._lane: Lane | None = None
        self._latest: tuple[Any, ...] = ()
        self._is_possible = len(legs) > 1
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Any], options: Any = None) -> dict[str, Any] | None:
        """Return the model's outputs by name; None where there is no lane for such a request now.

        `options` are an `onnxruntime.RunOptions`, by which the run may be ended.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            lane = self._lane
            if lane is None or not lane.fits(feeds):
                return None
            return lane.run(feeds, options)
        except ORT_ERRORS:
            if options is None or not options.terminate:
                self._lane, self._is_possible = None, False  # the ordinary way says what is wrong, if anything is
            return None
        finally:
            self._lock.release()

    def wants(self, feeds: Mapping[str, Any]) -> bool:
        """Return whether `learn` should be told of the request with these feeds, which goes the ordinary way."""
        if not self._is_possible:
            return False
        arrays = [feeds[name] for name in self._inputs]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            return False  # a sequence, a map, nothing at all
        shapes = tuple((array.shape, array.dtype) for array in arrays)
        again, self._latest = shapes == self._latest, shapes
        return again

    def learn(self, seen: Mapping[str, Spec | None]) -> None:
        """Make a lane for requests whose tensors are like those `seen`."""
        specs = {name: spec for name, spec in seen.items() if spec is not None}
        if len(specs) < len(seen):
            self._is_possible = False
            return
        with self._lock:
            self._lane = None  # its memory goes before the new one's comes
            self._lane = Lane(self._legs, specs, self._inputs, self._outputs)


class Lane:
    """Runs partitions in order, one request at a time; what it returns is the caller's own."""

    def __init__(
        self, legs: Sequence[Leg], seen: Mapping[str, Spec], inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        """Bind the partitions to memory for tensors like those of one request.

        Args:
            legs: the partitions in running order.
            seen: every tensor of that request, by name.
            inputs: names of the model's inputs.
            outputs: names of the model's outputs.
        """
        self._fed = {name: seen[name] for name in inputs}
        self._made = {name: seen[name] for name in outputs if name not in self._fed}
        self._answer = tuple(outputs)
        lifetimes: dict[str, Lifetime] = {}
        for step, leg in enumerate(legs):
            for name in (*leg.outputs, *leg.inputs):
                if name not in self._fed and name not in self._made:
                    first = lifetimes[name].first if name in lifetimes else step
                    lifetimes[name] = Lifetime(seen[name].nbytes, first, step)
        layout = lay_out(lifetimes)
        block = np.empty(layout.nbytes + _ALIGN, np.uint8)
        self._block = block[-block.ctypes.data % _ALIGN :]  # onnxruntime points into it
        self._values = {
            name: _ort_value(self._block[offset : offset + seen[name].nbytes], seen[name])
            for name, offset in layout.offsets.items()
        }
        self._anew: list[tuple[Callable[[str, Any], None], str]] = []
        """What every request binds: the model's inputs and outputs."""
        self._steps = [self._bind(leg) for leg in legs]

    def fits(self, feeds: Mapping[str, Array]) -> bool:
        """Return whether a request is like the one that the lane was made for."""
        return all(
            feeds[name].shape == spec.shape and feeds[name].dtype == spec.dtype and feeds[name].flags.c_contiguous
            for name, spec in self._fed.items()
        )

    def run(self, feeds: Mapping[str, Array], options: Any = None) -> dict[str, Array]:
        """Return the model's outputs by name; an output that is an input is the array that was fed.

        Raises:
            RuntimeError: of onnxruntime's kinds, also where a tensor turns out to have another shape than before.
        """
        arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in self._made.items()}
        arrays.update((name, feeds[name]) for name in self._fed)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for bind, name in self._anew:
            bind(name, values[name])
        start = time.perf_counter()
        for run, binding, run_s in self._steps:
            run(binding, options)
            end = time.perf_counter()
            run_s.append(end - start)
            start = end
        return {name: arrays[name] for name in self._answer}

    def _bind(self, leg: Leg) -> tuple[Callable[[Any, Any], None], Any, deque[float]]:
        binding = leg.session.io_binding()
        for names, bind in ((leg.inputs, binding.bind_ortvalue_input), (leg.outputs, binding.bind_ortvalue_output)):
            for name in names:
                if name in self._values:
                    bind(name, self._values[name])
                else:
                    self._anew.append((bind, name))
        return leg.session.run_with_iobinding, binding, leg.run_s


def spec_of(value: Any) -> Spec | None:
    """Return what a lane must know of a tensor; None of what cannot lie in one: text, sequences, empty tensors."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or not value.size:
        return None
    return Spec(value.shape, value.dtype, value.nbytes)


def _ort_value(part: Array, spec: Spec) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(part.view(spec.dtype).reshape(spec.shape))
