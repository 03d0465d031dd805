"""What a manager asks of the search for a new placement, and what it is told: JSON, a line each way.

The partitions of a plan are as they are; which device runs which is asked anew when devices join, leave or slow down.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hyps.errors import PlanError, UsageError, printable
from hyps.formats.plan import Partition, Plan, Prediction, Variant

HUB = ""
"""The manager's name where devices are named: requests arise there, answers are wanted there, and it runs nothing."""

MAX_QUESTION_NBYTES = 64 * 2**20
"""Of one line, either way."""

Aim = Literal["latency", "throughput", "memory", "energy"]

AIMS: tuple[Aim, ...] = ("latency", "throughput", "memory", "energy")

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Nbytes = Annotated[int, Meta(ge=0, le=2**62)]


class Weight(Struct, frozen=True, kw_only=True):
    """Weights of a partition that a device holds once, however many of its partitions use them."""

    key: str
    """What tells them from others: a file's digest, or the partition's own id."""
    nbytes: Nbytes


class PartitionFacts(Struct, frozen=True, kw_only=True):
    """A partition, as the search sees it."""

    id: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[Weight, ...] = ()
    work_bytes: Nbytes = 0
    """What is alive while it runs, beside its weights, inputs and outputs."""
    macs: Nbytes | None = None
    """Null: unknown."""


class Timing(Struct, frozen=True, kw_only=True):
    """What a partition takes on a device, a session's run and its borders included."""

    partition: str
    device: str
    """May be one that is gone: what it took there still tells which partitions are long."""
    seconds: Seconds
    """0 where it was only predicted: nothing is known."""
    is_measured: bool
    """Of late, in this cluster; else somebody predicted it."""


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """A device that partitions can be placed on."""

    name: str
    memory_bytes: Nbytes | None = None
    """What its worker may use; null: no limit."""
    base_bytes: Nbytes = 0
    """What its worker takes without any partition, what it may keep of requests that wait included."""
    macs_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """Of a matrix product with its threads; 0: unknown, then as fast as the others."""
    max_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """The largest part of the model's weights that it may hold."""
    refused: tuple[str, ...] = ()
    """Partitions that it cannot load."""
    is_group: bool = False
    """Whether it has devices below it: it is never one of several that run a partition, since it would be given other
    partitions from request to request."""
    active_w: Annotated[float, Meta(ge=0)] = 0.0
    idle_w: Annotated[float, Meta(ge=0)] = 0.0
    joules_per_byte: Annotated[float, Meta(ge=0)] = 0.0
    """Of what it sends."""


class LinkFacts(Struct, frozen=True, kw_only=True):
    """One direction between two devices, or between a device and the hub (`HUB`)."""

    source: str
    target: str
    bytes_per_s: Annotated[float, Meta(gt=0)] | None = None
    """Null: unknown; then it is assumed, and the answer says so. See `Assumption`."""
    latency_s: Seconds | None = None
    """Null: unknown."""
    message_s: Seconds = 0.0
    """What each tensor costs whatever its size."""
    is_open: bool = True
    """Whether the two can reach each other; else what one makes for the other goes over the hub."""


class Assumption(Struct, frozen=True, kw_only=True):
    """What a link is taken to be of which nothing is known; a 100 Mbit/s network unless told otherwise.

    A link to the hub of which one direction is known is taken to be the same in the other. Between two devices whose
    links to the hub are known: the slower rate and the longer latency of these.
    """

    bytes_per_s: Annotated[float, Meta(gt=0)] = 12.5e6
    latency_s: Seconds = 0.001


class Question(Struct, frozen=True, kw_only=True):
    """Where shall the partitions run?"""

    number: int
    """The answer has the same."""
    partitions: tuple[PartitionFacts, ...]
    """In an order in which they can run."""
    tensor_bytes: dict[str, Nbytes]
    """Of every input and output of a partition."""
    model_inputs: tuple[str, ...]
    model_outputs: tuple[str, ...]
    devices: tuple[DeviceFacts, ...]
    """Those that are there and may be given something."""
    timings: tuple[Timing, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    """Those of which something is known; all others are assumed to be open."""
    is_via_hub: bool = False
    """Whether everything goes over the hub."""
    assumption: Assumption = Assumption()
    aim: Aim = "latency"
    allow_replicas: bool = True
    """Whether a partition may run on several devices, where throughput is wanted."""
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    current: dict[str, tuple[str, ...]] = {}
    """The devices that run each partition now, the one of the placement first, gone ones too; empty: none yet. Where
    it cannot go on with the devices that are there, the first good placement is answered, soon."""
    keep_within: Annotated[float, Meta(ge=0, le=10)] = 0.05
    """By which part a placement may fall short of the best if fewer weights have to move for it."""
    time_limit_s: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    """Of the search, where it could go on."""


class Answer(Struct, frozen=True, kw_only=True, tag="answer"):
    """Here."""

    number: int
    placement: dict[str, str]
    """Partition to device."""
    prediction: Prediction
    """`lower_bound_s` is of what was asked for: seconds of a request, or between two answers for throughput."""
    replicas: dict[str, tuple[str, ...]] = {}
    """Partition to further devices that run it as well."""
    moved_bytes: Nbytes = 0
    """Of weights that devices need and do not hold now."""
    is_kept: bool = False
    """Whether it is the current placement."""
    assumptions: tuple[str, ...] = ()
    """What was not known and had to be assumed, a phrase each."""
    reason: str = ""
    """Why so, in a phrase for people."""
    search_s: Seconds = 0.0


class Refusal(Struct, frozen=True, kw_only=True, tag="refusal"):
    """Nowhere; or nobody could tell."""

    number: int
    """-1: the question could not be read so far."""
    code: str
    """`E_INFEASIBLE`: the devices cannot hold the partitions, and the message has the smallest relaxation."""
    message: str
    hint: str = ""


Reply = Answer | Refusal

_ENCODER = msgspec.json.Encoder(order="deterministic")
_QUESTION = msgspec.json.Decoder(Question)
_REPLY: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode_line(told: Question | Reply) -> bytes:
    """Return one line of JSON, its end included."""
    return _ENCODER.encode(told) + b"\n"


def decode_question(line: bytes) -> Question:
    """Return the question that a line holds, checked for everything that it alone can tell.

    Raises:
        UsageError: it is none, or wrong in itself (`E_QUESTION`).
    """
    try:
        question = _QUESTION.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"not a question about a placement: {printable(str(error), 200)}", code="E_QUESTION"
        ) from error
    problems = question_problems(question)
    if problems:
        raise UsageError(f"the question about a placement is wrong: {problems[0]}", code="E_QUESTION")
    return question


def decode_reply(line: bytes) -> Reply:
    """Return the reply that a line holds.

    Raises:
        PlanError: it is none.
    """
    try:
        return _REPLY.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"not a placement: {printable(str(error), 200)}") from error


def question_problems(question: Question) -> list[str]:
    """Return what is wrong in a question, one phrase each: names that stand twice, or that nothing explains."""
    problems = []
    for noun, names in (
        ("partition", [p.id for p in question.partitions]),
        ("device", [d.name for d in question.devices]),
    ):
        problems += [f"{noun} `{printable(name)}` stands twice" for name in sorted(_doubled(names))]
    if any(device.name == HUB for device in question.devices):
        problems.append("a device has no name")
    known = set(question.model_inputs)
    for part in question.partitions:
        where = f"partition `{printable(part.id)}`"
        problems += [
            f"{where} needs `{printable(n)}`, which nothing makes before it" for n in part.inputs if n not in known
        ]
        problems += [f"{where} makes `{printable(n)}`, which is there already" for n in part.outputs if n in known]
        known.update(part.outputs)
    problems += [f"output `{printable(n)}` is made by no partition" for n in question.model_outputs if n not in known]
    problems += [f"tensor `{printable(n)}` has no size" for n in sorted(known - set(question.tensor_bytes))]
    return problems


def partition_facts(plan: Plan) -> tuple[PartitionFacts, ...]:
    """Return the partitions of a plan; weights in a file that several of them share are told once."""
    return tuple(_facts(plan, part) for part in plan.partitions)


def tensor_bytes_of(plan: Plan) -> dict[str, int]:
    """Return the bytes of every tensor that crosses a border, at the sizes the plan was made for.

    Those that nothing could tell count as nothing: `unsized` names them.
    """
    return {name: info.nbytes or 0 for name, info in plan.tensors.items()}


def unsized(plan: Plan) -> tuple[str, ...]:
    """Return the tensors of a plan whose bytes nothing could tell."""
    return tuple(name for name, info in plan.tensors.items() if info.nbytes is None)


def timings_of(plan: Plan) -> tuple[Timing, ...]:
    """Return what the plan predicts that its partitions take, each on the device of its variant."""
    told = {
        (part, variant.placement[part]): seconds
        for variant in reversed(plan.variants)
        if variant.prediction.batch == 1
        for part, seconds in variant.prediction.partition_s.items()
        if part in variant.placement
    }
    return tuple(
        Timing(partition=part, device=device, seconds=seconds, is_measured=False)
        for (part, device), seconds in sorted(told.items())
    )


def aim_of(plan: Plan, chosen: Aim | None = None) -> Aim:
    """Return what a new placement is to be good at: what was chosen, else what the plan was made for, else latency."""
    if chosen is not None:
        return chosen
    return next((aim for aim in AIMS if aim == plan.objective), "latency")


def variant_of(answer: Answer, name: str) -> Variant:
    """Return the answer as one more variant of the plan."""
    return Variant(name=name, placement=answer.placement, replicas=answer.replicas, prediction=answer.prediction)


def _facts(plan: Plan, part: Partition) -> PartitionFacts:
    filed = sum(ref.nbytes for ref in part.weights)
    own = (Weight(key=part.id, nbytes=part.weight_bytes - filed),) if part.weight_bytes > filed else ()
    passing = sum(plan.tensors[name].nbytes or 0 for name in (*part.inputs, *part.outputs))
    peak = part.peak_memory_bytes or 0
    return PartitionFacts(
        id=part.id,
        inputs=part.inputs,
        outputs=part.outputs,
        weights=(*(Weight(key=ref.sha256, nbytes=ref.nbytes) for ref in part.weights), *own),
        work_bytes=max(0, peak - part.weight_bytes - passing),
        macs=part.macs,
    )


def _doubled(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
