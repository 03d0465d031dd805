"""What is known of one checked model: values that are stored, compared with limits, and told in every form."""

import math
import sys

from msgspec import Struct

from hyps.errors import HypsError
from hyps.formats.plan import Plan
from hyps_compiler.checking.rules import CompileOptions

VERSION = 1
"""Of everything here; what another version stored is not read."""


class Layer(Struct, frozen=True, kw_only=True):
    """One layer, with what its partition's file holds of it; the parts of a divided layer count together."""

    name: str
    kind: str
    """Operators that have weights, joined by `+`; of a layer without any, all of them."""
    parameters: int
    weight_bytes: int


class PartitionFacts(Struct, frozen=True, kw_only=True):
    """One partition of the plan."""

    id: str
    layers: tuple[Layer, ...]
    parameters: int
    weight_bytes: int
    outputs: tuple[str, ...]
    memory_bytes: int | None = None
    """Resident at most in a worker process that runs it, the process's own base included; null: sizes unknown."""
    device: str = ""
    """Where the plan's first variant places it; empty: the plan is for one device."""
    latency_s: float | None = None
    """Predicted, on its device."""


class Measured(Struct, frozen=True, kw_only=True):
    """A figure, and what it is of: a partition, device, tensor or output, by name."""

    value: float
    where: str = ""


class PlanFacts(Struct, frozen=True, kw_only=True):
    """One plan."""

    digest: str
    """SHA-256 of its `plan.json`."""
    producer: str
    partitions: tuple[PartitionFacts, ...]
    peak_memory_bytes: Measured | None = None
    """Of the device or partition that needs most; null: sizes unknown."""
    is_memory_measured: bool = False
    latency_s: float | None = None
    border_bytes: int | None = None
    """Of all tensors between partitions, each counted once; null: sizes unknown."""
    largest_border: str = ""
    """The largest of these tensors."""
    quantization: str = ""
    """How the model was quantized; empty: it was not."""
    options: CompileOptions | None = None
    """How the model was compiled, of a previous plan; null: nothing says so."""
    quantization_loss: Measured | None = None
    """Largest difference of an output to the unquantized model's, relative to its largest value; null: not measured."""


class ConversionFacts(Struct, frozen=True, kw_only=True):
    """How the model was made an ONNX model."""

    kind: str
    converter: str
    framework: str
    difference: Measured | None = None
    """Largest difference to the source framework's outputs, relative to the largest value; null: not compared."""
    unverified: str = ""


class Facts(Struct, frozen=True, kw_only=True):
    """A model that was converted, compiled and verified."""

    plan: PlanFacts
    difference: Measured | None = None
    """Largest difference of an output to the model's, relative to its largest value; null: not compared."""
    unverified: str = ""
    """Why it was not compared; empty where it was."""
    conversion: ConversionFacts | None = None
    """Null: it is an ONNX model."""
    notes: tuple[str, ...] = ()


class Problem(Struct, frozen=True, kw_only=True):
    """Why there is nothing to compare with limits."""

    message: str
    hint: str
    code: str
    exit_status: int
    layers: tuple[Layer, ...] = ()
    """Of a model that cannot keep the limits it was compiled for: its layers as they are without these."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of one model: facts, or a problem."""

    version: int = VERSION
    facts: Facts | None = None
    problem: Problem | None = None
    seconds: float = 0.0
    """What it took when it was done."""


def measured_difference(value: float, where: str) -> Measured:
    """Return a difference; one that is no finite number, which JSON does not have, as the largest that there is."""
    return Measured(value=value if math.isfinite(value) else sys.float_info.max, where=where)


def problem_of(error: HypsError) -> Problem:
    """Return an error as a value."""
    return Problem(message=error.message, hint=error.hint, code=error.code, exit_status=error.exit_status)


def layers_of(partitions: tuple[PartitionFacts, ...]) -> dict[str, Layer]:
    """Return all layers by name, in running order; the parts of one that is divided added up."""
    found: dict[str, Layer] = {}
    for layer in (layer for partition in partitions for layer in partition.layers):
        known = found.get(layer.name)
        found[layer.name] = layer if known is None else _added(known, layer)
    return found


def _added(one: Layer, other: Layer) -> Layer:
    return Layer(
        name=one.name,
        kind=one.kind,
        parameters=one.parameters + other.parameters,
        weight_bytes=one.weight_bytes + other.weight_bytes,
    )


def partition_memory(plan: Plan) -> dict[str, int]:
    """Return the bytes that a worker process needs for each partition alone, its base included; none unknown."""
    told = plan.variants[0]
    peaks = {part.id: part.peak_memory_bytes for part in plan.partitions if part.peak_memory_bytes is not None}
    memory = told.prediction.memory_bytes
    if plan.entry is not None or len(memory) != 1 or len(peaks) != len(plan.partitions):
        return {}
    base = next(iter(memory.values())) - max(peaks.values(), default=0)
    return {name: base + peak for name, peak in peaks.items()}
