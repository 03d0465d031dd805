"""The plan: partitions, the tensors between them, and where they run, as `plan.json` holds them."""

import math
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from hyps.errors import PlanError, printable
from hyps.formats.documents import Document
from hyps.formats.dtypes import ITEM_NBYTES

FORMAT = "hyps-plan"
VERSION = 1
"""Rises only when an older reader would go wrong; new fields come with defaults instead."""

MOST_AXES = 32
"""Of a weight that is read: what every numpy has. A plan with more would make its reader multiply for hours."""

Optimization = Literal["none", "portable", "native"]


class TensorInfo(Struct, frozen=True, kw_only=True):
    """Element type and shape of one tensor that crosses a border."""

    dtype: str
    """numpy's name of the element type, or `string`."""
    shape: tuple[int | str | None, ...] | None
    """A number is fixed, a word names a dimension requests may choose, null is unknown; null alone: rank unknown."""
    nbytes: int | None = None
    """Bytes at the sizes the plan was made for (`Plan.assumed_dims`); null where nothing could tell."""


class NamedTensor(Struct, frozen=True, kw_only=True):
    """An input or output of the model."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class ModelInfo(Struct, frozen=True, kw_only=True):
    """The model that the plan computes."""

    name: str
    sha256: str
    """Of the model file and, in the order of their names, its external data files."""
    ir_version: int
    opset: dict[str, int]
    """Version per operator domain; the standard domain is `ai.onnx`."""
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[NamedTensor, ...]
    parameters: int = 0
    weight_bytes: int = 0


class FileRef(Struct, frozen=True, kw_only=True):
    """A file of the plan folder: its relative path with forward slashes, digest and length."""

    path: str
    sha256: str
    nbytes: int


class Shard(Struct, frozen=True, kw_only=True):
    """Which part of which layer an H-partition computes."""

    layer: str
    axis: int
    """The axis of the layer's output that is divided, counted from the end: -1 is the rows of a dense layer."""
    index: int
    count: int
    range: tuple[int, int]
    """First and past-the-last output row; of a sum, first and past-the-last of what is added."""
    merge: Literal["concat", "sum"] = "concat"
    """How the parts become the layer's output: put side by side along `axis`, or added."""


class StreamedWeight(Struct, frozen=True, kw_only=True):
    """A weight that a form takes as an input: where its bytes lie, and how they are read."""

    path: str
    """One of the files in `Partition.weights`."""
    offset: int
    nbytes: int
    dtype: str
    """numpy's name of the element type."""
    shape: tuple[int, ...]
    looked_up_by: tuple[str, ...] = ()
    """Inputs of the partition, of integers: the form only reads rows of the weight that one of them names, so that
    others need not be read. Empty: it reads all."""


class Form(Struct, frozen=True, kw_only=True):
    """The partition once more, as a model whose large weights are inputs; partitions of one shape share its file.

    Its inputs are `x0`, `x1`, ... and then the weights `w0`, `w1`, ...; its outputs are `y0`, `y1`, ... Weights can so
    be read into memory that is used again, instead of being mapped, and one session serves every such partition.
    """

    file: str
    """Path of the ONNX file, relative to the plan folder."""
    sha256: str
    inputs: tuple[str, ...]
    """Names of the tensors that are `x0`, `x1`, ...; those of `Partition.inputs`, in any order."""
    outputs: tuple[str, ...]
    """Names of the tensors that are `y0`, `y1`, ...; those of `Partition.outputs`, in any order."""
    weights: tuple[StreamedWeight, ...]


class Partition(Struct, frozen=True, kw_only=True):
    """One ONNX file that plain onnxruntime runs; tensor names tie it to the others."""

    id: str
    kind: Literal["vertical", "horizontal"]
    file: str
    """Path of the ONNX file, relative to the plan folder."""
    sha256: str
    weights: tuple[FileRef, ...] = ()
    """External data of the file. A file may serve several partitions (tied weights)."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    parameters: int
    weight_bytes: int
    peak_memory_bytes: int | None = None
    """What the process has resident beside its own base, at most, while it runs: its weights, all activations alive
    then, and what its kernels take. Null: sizes unknown."""
    memory_measured: bool = False
    """Whether the peak was measured where the plan was made; else it is reckoned."""
    macs: int | None = None
    """Multiply-accumulates per run; null: sizes unknown."""
    shard: Shard | None = None
    """For an H-partition."""
    form: Form | None = None
    """Null where the partition can only be run as it is."""


class SplitPoint(Struct, frozen=True, kw_only=True):
    """A border where the model may be, or has been, cut."""

    tensors: tuple[str, ...]
    nbytes: int | None
    kind: Literal["mandatory", "optional", "chosen"]
    chosen: bool
    reason: str
    after: str = ""
    """The last layer before the border."""


class Prediction(Struct, frozen=True, kw_only=True):
    """What the estimate says of a variant; null where it was not computed."""

    latency_s: float | None = None
    throughput_rps: float | None = None
    lower_bound_s: float | None = None
    memory_bytes: dict[str, int] = {}
    """Peak per device, the process's base included."""
    link_bytes: dict[str, int] = {}
    energy_joules: float | None = None
    partition_s: dict[str, float] = {}
    """Seconds of each partition on its device, what its borders cost there included."""
    batch: int = 1
    """Requests that it takes together; seconds and bytes are those of all."""
    bound_over: str | None = None
    """Among which placements nothing is better than the lower bound; null: nothing is known of others."""


class Regime(Struct, frozen=True, kw_only=True):
    """What a variant costs at any bandwidth and server load, and where it is the best of all cuts in two.

    A request takes `fixed_s` + `wire_bytes` / bandwidth + `server_s` / (1 - load); bandwidth in bytes per second, of
    the link both ways, load the part of the server's power that others use.
    """

    variant: str
    batch: int
    fixed_s: float
    wire_bytes: float
    server_s: float
    corners: tuple[tuple[float, float], ...]
    """Of the convex area in which it is best, in turn: seconds per byte, and 1 / (1 - load)."""


class Variant(Struct, frozen=True, kw_only=True):
    """One placement of the partitions on devices."""

    name: str
    placement: dict[str, str]
    """Partition id to device name."""
    prediction: Prediction = Prediction()
    replicas: dict[str, tuple[str, ...]] = {}
    """Partition id to further devices that run it as well, for requests that come meanwhile."""
    bytes_per_s: tuple[float, float | None] | None = None
    """The interval of bandwidth it is best for, at a batch of one and no load; null: any, or none."""
    hub_tensors: tuple[str, ...] = ()
    """Tensors between partitions that the hub keeps while their request lives: what made them need not run again when
    a device is lost."""


class OutputLoss(Struct, frozen=True, kw_only=True):
    """How far the quantized model is from the unquantized one in one output, all measured requests together."""

    output: str
    largest: float | None
    """Largest absolute difference; null where it is no finite number, or the output no tensor of numbers."""
    relative: float | None
    """The largest of all requests, relative to the largest value of the output in that request."""
    mean: float | None
    """Of the absolute differences, relative to the same."""
    same_top1: float | None = None
    """Of vectors along the last axis, the share whose largest entry is at the same place; null: no such axis."""


class Quantization(Struct, frozen=True, kw_only=True):
    """How the model was quantized before it was divided, and what that was measured to do to its answers."""

    kind: Literal["int8", "fp16"]
    methods: tuple[str, ...]
    """`static`: activations in 8 bits, of ranges seen in calibration. `dynamic`: of each request's own range.
    `weights`: weights alone are stored narrower, and widened to be computed with."""
    weight_bytes: tuple[int, int]
    """Of all weights before and after."""
    left_bytes: int = 0
    """Of weights that stayed in float32."""
    calibration_requests: int = 0
    """How many told the ranges; 0: none were needed."""
    measured_requests: int = 0
    """On how many the loss was measured; 0: it could not be, and `unmeasured` says why."""
    measured_on: Literal["held-out", "calibration", "given", "made-up"] = "made-up"
    """`held-out`: requests given for calibration that told no ranges; `calibration`: those that did; `given`: the
    request to verify on; `made-up`: seeded random ones."""
    unmeasured: str = ""
    losses: tuple[OutputLoss, ...] = ()


class Plan(Struct, frozen=True, kw_only=True):
    """A model divided into partitions, and where they run."""

    format: str = FORMAT
    version: int = VERSION
    producer: str = ""
    model: ModelInfo
    optimization: Optimization = "none"
    """`none`: the model's own nodes. `portable`: onnxruntime's fusions made before the cut. `native`: its layouts for
    one CPU family as well, so that `cpu_family` must match the device's."""
    cpu_family: str | None = None
    passes: str = ""
    """The rewrites that made it, in their text form."""
    kept_tensors: tuple[str, ...] = ()
    """Tensors that the optimization had to leave as they are because the user cuts there."""
    memory_bytes: int | None = None
    """The budget of one worker process that the plan was made for."""
    max_params: int | None = None
    assumed_dims: dict[str, int] = {}
    """The size that each symbolic dimension was given where the plan states bytes."""
    lossy: tuple[str, ...] = ()
    """What was asked for that changes answers; empty: the model's own answers."""
    quantization: Quantization | None = None
    """Null: the model was not quantized here. `model` is then the unquantized one by name and digest; what it says of
    operators and weights is of the quantized one."""
    tensors: dict[str, TensorInfo]
    partitions: tuple[Partition, ...]
    """In an order in which they can run."""
    split_points: tuple[SplitPoint, ...] = ()
    variants: tuple[Variant, ...]
    """The first is the one to use unless told otherwise."""
    entry: str | None = None
    """The device at which requests arise; null: the plan is for one device."""
    strategy: str | None = None
    """What placed it."""
    objective: str | None = None
    regimes: tuple[Regime, ...] = ()
    """Which variant is best when; exact, not sampled. Empty: not two devices."""


_DOCUMENT = Document(Plan, FORMAT, VERSION, "plan.json", "plan", PlanError, "compile the model again")


def encode_plan(plan: Plan) -> bytes:
    """Return the bytes of `plan.json`; equal plans give equal bytes."""
    return _DOCUMENT.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """Return the plan that `plan.json` holds, checked for everything that the file alone can tell.

    Raises:
        PlanError: no plan, from the future, or wrong in itself; the message has every problem found.
    """
    plan = _DOCUMENT.decode(data)
    _DOCUMENT.refuse(plan_problems(plan))
    return plan


def plan_problems(plan: Plan) -> list[str]:
    """Return what is wrong in the plan, one phrase each; empty when all holds.

    It must be of a known version; ids, names and files unique and inside the folder; every input made by exactly one
    earlier partition or by the request; every output of the model made; every variant must place every partition.
    """
    problems = []
    if plan.format != FORMAT or plan.version != VERSION:
        problems.append(f"format `{printable(plan.format)}` version {plan.version} is not `{FORMAT}` version {VERSION}")
    problems += _path_problems(plan)
    problems += [problem for partition in plan.partitions for problem in _form_problems(partition, plan.tensors)]
    problems += _dataflow_problems(plan)
    ids = [partition.id for partition in plan.partitions]
    problems += [f"partition `{printable(i)}` stands twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    made = {name for partition in plan.partitions for name in partition.outputs}
    names = [variant.name for variant in plan.variants]
    if not names or len(set(names)) < len(names):
        problems.append("there must be at least one variant, each with a name of its own")
    for variant in plan.variants:
        if set(variant.placement) != set(ids) or not set(variant.replicas) <= set(ids):
            problems.append(f"variant `{printable(variant.name)}` does not place exactly the plan's partitions")
        problems += [
            f"variant `{printable(variant.name)}` keeps `{printable(name)}`, which no partition makes"
            for name in variant.hub_tensors
            if name not in made
        ]
    for regime in plan.regimes:
        if regime.variant not in names or regime.batch < 1:
            problems.append(f"a regime names `{printable(regime.variant)}`, batch {regime.batch}, which is no variant")
    return problems


def partition_files(partition: Partition) -> tuple[str, ...]:
    """Return the relative paths of the files that the partition needs."""
    return tuple(path for path, _ in file_digests(partition))


def file_digests(partition: Partition) -> tuple[tuple[str, str], ...]:
    """Return path and SHA-256 of the files that the partition needs, its own first."""
    forms = [] if partition.form is None else [(partition.form.file, partition.form.sha256)]
    return ((partition.file, partition.sha256), *((ref.path, ref.sha256) for ref in partition.weights), *forms)


def is_inside(path: str) -> bool:
    """Return whether `path` is a plain relative path with forward slashes that stays inside its folder."""
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
    return plain and "\\" not in path and ":" not in path


def json_schema() -> bytes:
    """Return the JSON Schema of `plan.json`, generated from the types that decode it."""
    return _DOCUMENT.schema()


def _path_problems(plan: Plan) -> list[str]:
    paths = [path for partition in plan.partitions for path in partition_files(partition)]
    problems = [f"path `{printable(path)}` leaves the plan folder" for path in paths if not is_inside(path)]
    models = [partition.file for partition in plan.partitions]
    if len(set(models)) < len(models):
        problems.append("two partitions name the same file")
    return problems


def _form_problems(partition: Partition, tensors: Mapping[str, TensorInfo]) -> list[str]:
    form = partition.form
    if form is None:
        return []
    shown = f"the form of partition `{printable(partition.id)}`"
    problems = []
    for side, own in ((form.inputs, partition.inputs), (form.outputs, partition.outputs)):
        if sorted(side) != sorted(own):
            problems.append(f"{shown} takes or makes other tensors than the partition")
    lengths = {ref.path: ref.nbytes for ref in partition.weights}
    for weight in form.weights:
        item = ITEM_NBYTES.get(weight.dtype, -1)
        if len(weight.shape) > MOST_AXES:
            problems.append(f"{shown} has a weight of {len(weight.shape)} axes, more than {MOST_AXES}")
        elif min(weight.shape, default=0) < 0 or weight.nbytes != item * math.prod(weight.shape):
            problems.append(f"{shown} has a weight of {weight.nbytes} bytes that is no `{printable(weight.dtype)}`")
        elif weight.offset < 0 or weight.offset + weight.nbytes > lengths.get(weight.path, 0):
            problems.append(f"{shown} has a weight outside of `{printable(weight.path)}`")
        elif weight.offset % item or not weight.nbytes:
            problems.append(f"{shown} has a weight at {weight.offset} where no `{printable(weight.dtype)}` can lie")
        elif weight.looked_up_by and not weight.shape:
            problems.append(f"{shown} looks up rows of a single number")
    if sum({(w.path, w.offset): w.nbytes for w in form.weights}.values()) > partition.weight_bytes:
        problems.append(f"{shown} takes more weights than the partition has")  # a budget would be kept by word only
    integers = {name for name in partition.inputs if name in tensors and "int" in tensors[name].dtype}
    problems += [
        f"{shown} looks up rows by `{printable(name)}`, which is no input of integers"
        for name in sorted({name for weight in form.weights for name in weight.looked_up_by} - integers)
    ]
    return problems


def _dataflow_problems(plan: Plan) -> list[str]:
    known = {tensor.name for tensor in plan.model.inputs}
    problems = []
    for partition in plan.partitions:
        missing = [name for name in partition.inputs if name not in known]
        twice = [name for name in partition.outputs if name in known]
        untold = [name for name in (*partition.inputs, *partition.outputs) if name not in plan.tensors]
        problems += [
            f"partition `{printable(partition.id)}` needs `{printable(n)}`, which nothing makes before it"
            for n in missing
        ]
        problems += [f"tensor `{printable(n)}` is made twice" for n in twice]
        problems += [f"tensor `{printable(n)}` has no entry in `tensors`" for n in untold]
        known.update(partition.outputs)
    absent = [tensor.name for tensor in plan.model.outputs if tensor.name not in known]
    return problems + [f"output `{printable(name)}` is made by no partition" for name in absent]
