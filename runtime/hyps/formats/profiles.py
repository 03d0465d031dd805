"""The profile: seconds and bytes of a model's layers and borders, measured on one device, as a JSON file holds them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from hyps.errors import ProfileError, UsageError, printable
from hyps.formats.documents import Document
from hyps.formats.plan import Optimization

FORMAT = "hyps-profile"
VERSION = 1
"""Rises only when an older reader would go wrong; new fields come with defaults instead."""

_MOST_S = 1e7
"""Four months: no layer takes that long."""

Source = Literal["measured", "modelled"]


class Sample(Struct, frozen=True, kw_only=True):
    """Seconds of one thing, done several times."""

    median_s: float
    p95_s: float
    n: int
    """How often it was timed; 0: not at all, the model of time says so."""


class LayerProfile(Struct, frozen=True, kw_only=True):
    """One layer on this device."""

    name: str
    kind: str
    """Its operators, joined by `+`."""
    signature: str
    """Digest of operators, attributes, element types and shapes: a layer of any model with the same one costs the
    same."""
    macs: int | None = None
    """Multiply-accumulates of one request; null: a size is unknown."""
    input_bytes: int = 0
    """Activations that it reads for one request, as far as sizes are known; so below."""
    output_bytes: int = 0
    weight_bytes: int = 0
    samples: dict[int, Sample]
    """By batch: its seconds within the model run as a whole, without `session_s`."""
    source: Source


class BorderProfile(Struct, frozen=True, kw_only=True):
    """A place between two layers of the running order, and what a cut there costs on this device beside the layers.

    `head_s` is the first part: `session_s`, the layers up to the border, and `export_s`. `tail_s` is the second:
    `session_s`, the layers behind it, and `import_s`.
    """

    after: str
    """The last layer before it."""
    tensors: tuple[str, ...]
    """What crosses it."""
    producers: tuple[str, ...]
    """The layer that makes each of `tensors`."""
    tensor_bytes: tuple[int | None, ...]
    """Bytes of each of `tensors` for one request; null: unknown."""
    nbytes: int | None
    """Of all together."""
    export_s: dict[int, float]
    """By batch: seconds that a cut here adds on the side that produces (layouts put back, fusions lost)."""
    import_s: dict[int, float]
    """By batch: seconds that it adds on the side that consumes."""
    head_s: dict[int, Sample] = {}
    """By batch: seconds of everything before it as one partition; empty where it was not run."""
    tail_s: dict[int, Sample] = {}
    """By batch: seconds of everything behind it as one partition."""
    source: Source


class LinkProfile(Struct, frozen=True, kw_only=True):
    """The way to another worker, seen from this device."""

    peer: str
    """Its address."""
    device: str = ""
    """What it calls itself."""
    up_bytes_per_s: float
    """From here to there."""
    down_bytes_per_s: float
    latency_s: float
    """Of one crossing in one direction, whatever crosses."""
    message_s: float
    """What each message adds to a crossing, whatever its bytes."""
    n: int
    """How many bursts of messages were timed for each rate."""
    partitions: dict[str, Sample] = {}
    """What the partitions took that the worker there runs, by their ids, where it had requests before."""


class KindModel(Struct, frozen=True, kw_only=True):
    """Seconds of a layer of one kind: `fixed_s` + `per_mac_s` x MACs + `per_byte_s` x bytes moved."""

    fixed_s: float
    per_mac_s: float
    per_byte_s: float
    layers: int
    """How many measured layers it was fitted to."""


class TimeModel(Struct, frozen=True, kw_only=True):
    """What stands in for layers that were not measured: fitted to those that were, without negative coefficients."""

    kinds: dict[str, KindModel]
    """By the layer's first operator that computes; the empty name stands for all others."""
    export_s_per_byte: float = 0.0
    """What a border costs on the producing side for each byte that crosses it."""
    import_s_per_byte: float = 0.0
    error: float | None = None
    """Median relative error on measured layers that were left out of the fit; null: too few layers to tell."""


class Profile(Struct, frozen=True, kw_only=True):
    """What one model costs on one device."""

    format: str = FORMAT
    version: int = VERSION
    device: str
    versions: dict[str, str]
    """Of hyps, numpy, onnxruntime and python."""
    cpu_family: str
    cpu: str = ""
    """The processor's name."""
    cores: int
    threads: int
    """Of one partition, when it was measured."""
    optimization: Optimization
    """Of the plans it is for."""
    date: str
    """When it was measured, as ISO 8601 in UTC."""
    model: str
    sha256: str
    """Of the model, as in its plans."""
    assumed_dims: dict[str, int] = {}
    """The size that each symbolic dimension was given; a batch dimension has those of the samples."""
    batches: tuple[int, ...]
    """The batch sizes that were measured, ascending."""
    layers: tuple[LayerProfile, ...]
    """In running order."""
    borders: tuple[BorderProfile, ...] = ()
    """In running order."""
    whole: dict[int, Sample] | None = None
    """By batch: seconds of the model as one partition; null: the device cannot hold it."""
    session_s: dict[int, float]
    """By batch: seconds that any partition costs, whatever it holds."""
    peak_memory_bytes: int | None = None
    """The most that the measuring process had resident; null: the system does not tell."""
    time_model: TimeModel
    links: tuple[LinkProfile, ...] = ()
    scale: float = 1.0
    """Its speed relative to the device that was measured: 0.25 takes four times as long."""
    scaled_from: str | None = None
    """The device that was measured, where this one was not."""


_DOCUMENT = Document(
    Profile, FORMAT, VERSION, "profile", "profile", ProfileError, "measure again with `hypsc profile`", order=None
)


def encode_profile(profile: Profile) -> bytes:
    """Return the bytes of a profile's file."""
    return _DOCUMENT.encode(profile)


def decode_profile(data: bytes) -> Profile:
    """Return the profile that a file holds, checked for everything that the file alone can tell.

    Raises:
        ProfileError: no profile, from the future, or wrong in itself.
    """
    profile = _DOCUMENT.decode(data)
    _DOCUMENT.refuse(profile_problems(profile))
    return profile


def profile_problems(profile: Profile) -> list[str]:
    """Return what is wrong in the profile, one phrase each; empty when all holds.

    Layers have names of their own and samples; borders name known layers; seconds and rates are numbers that can be.
    """
    problems = []
    if profile.format != FORMAT or profile.version != VERSION:
        shown = printable(profile.format)
        problems.append(f"format `{shown}` version {profile.version} is not `{FORMAT}` version {VERSION}")
    if not profile.batches or list(profile.batches) != sorted(set(profile.batches)) or profile.batches[0] < 1:
        problems.append("`batches` are not ascending numbers from 1 on")
    if not 0 < profile.scale < math.inf:
        problems.append(f"`scale` {profile.scale:g} is not above zero")
    if profile.threads < 1 or profile.cores < 1:
        problems.append("`threads` and `cores` are not both from 1 on")
    return [*problems, *_layer_problems(profile), *_border_problems(profile), *_number_problems(profile)]


def scaled(profile: Profile, factor: float, device: str) -> Profile:
    """Return the profile of a device that is `factor` times as fast: 0.25 takes four times as long everywhere.

    Links, memory and the processor's own name are the measured device's and are left out.

    Raises:
        UsageError: `factor` is not above zero.
    """
    if not 0 < factor < math.inf:
        raise UsageError(f"scale `{factor:g}` is not above zero", "0.25 describes a device of a quarter of the speed")
    return replace(
        profile,
        device=device,
        cpu="",
        layers=tuple(replace(layer, samples=_slower(layer.samples, factor)) for layer in profile.layers),
        borders=tuple(_slower_border(border, factor) for border in profile.borders),
        whole=None if profile.whole is None else _slower(profile.whole, factor),
        session_s=_divided(profile.session_s, factor),
        peak_memory_bytes=None,
        time_model=_slower_model(profile.time_model, factor),
        links=(),
        scale=profile.scale * factor,
        scaled_from=profile.scaled_from or profile.device,
    )


def json_schema() -> bytes:
    """Return the JSON Schema of a profile's file, generated from the types that decode it."""
    return _DOCUMENT.schema()


def _divided(seconds: dict[int, float], factor: float) -> dict[int, float]:
    return {batch: value / factor for batch, value in seconds.items()}


def _slower(samples: dict[int, Sample], factor: float) -> dict[int, Sample]:
    return {
        batch: Sample(median_s=sample.median_s / factor, p95_s=sample.p95_s / factor, n=sample.n)
        for batch, sample in samples.items()
    }


def _slower_border(border: BorderProfile, factor: float) -> BorderProfile:
    return replace(
        border,
        export_s=_divided(border.export_s, factor),
        import_s=_divided(border.import_s, factor),
        head_s=_slower(border.head_s, factor),
        tail_s=_slower(border.tail_s, factor),
    )


def _slower_model(model: TimeModel, factor: float) -> TimeModel:
    kinds = {
        name: replace(
            kind, fixed_s=kind.fixed_s / factor, per_mac_s=kind.per_mac_s / factor, per_byte_s=kind.per_byte_s / factor
        )
        for name, kind in model.kinds.items()
    }
    exported, imported = model.export_s_per_byte / factor, model.import_s_per_byte / factor
    return replace(model, kinds=kinds, export_s_per_byte=exported, import_s_per_byte=imported)


def _layer_problems(profile: Profile) -> list[str]:
    counts = Counter(layer.name for layer in profile.layers)
    problems = [f"layer `{printable(name)}` stands twice" for name, count in sorted(counts.items()) if count > 1]
    batches = set(profile.batches)
    unsampled = [layer.name for layer in profile.layers if set(layer.samples) != batches]
    return problems + [f"layer `{printable(name)}` has no samples for exactly the batches" for name in unsampled]


def _border_problems(profile: Profile) -> list[str]:
    names = {layer.name for layer in profile.layers}
    problems = []
    for border in profile.borders:
        shown = printable(border.after)
        unknown = [name for name in (border.after, *border.producers) if name not in names]
        problems += [f"the border after `{shown}` names `{printable(n)}`, which is no layer" for n in unknown]
        if not len(border.tensors) == len(border.producers) == len(border.tensor_bytes):
            problems.append(f"the border after `{shown}` tells of more tensors than it has, or fewer")
        if set(border.export_s) != set(profile.batches) or set(border.import_s) != set(profile.batches):
            problems.append(f"the border after `{shown}` has no seconds for exactly the batches")
    return problems


def _number_problems(profile: Profile) -> list[str]:
    problems = [
        f"`{printable(where)}` has {value:g}, which is no time"
        for where, value in _seconds(profile)
        if not _is_time(value)
    ]
    for link in profile.links:
        rates = (link.up_bytes_per_s, link.down_bytes_per_s)
        if not all(0 < rate < math.inf for rate in rates):
            problems.append(f"the link to `{printable(link.peer)}` has a rate that is not above zero")
    return problems


def _is_time(value: float) -> bool:
    return 0 <= value <= _MOST_S


def _seconds(profile: Profile) -> Iterable[tuple[str, float]]:
    """Yield every number of seconds in the profile, and where it stands."""
    for layer in profile.layers:
        yield from ((layer.name, value) for value in _sampled(layer.samples))
    for border in profile.borders:
        parts = (*border.export_s.values(), *border.import_s.values())
        yield from ((border.after, v) for v in (*parts, *_sampled(border.head_s), *_sampled(border.tail_s)))
    yield from (("whole", value) for value in _sampled(profile.whole or {}))
    yield from (("session_s", value) for value in profile.session_s.values())
    for name, kind in profile.time_model.kinds.items():
        yield from ((name, value) for value in (kind.fixed_s, kind.per_mac_s, kind.per_byte_s))
    yield "export_s_per_byte", profile.time_model.export_s_per_byte
    yield "import_s_per_byte", profile.time_model.import_s_per_byte
    for link in profile.links:
        times = (link.latency_s, link.message_s, *_sampled(link.partitions))
        yield from ((link.peer, value) for value in times)


def _sampled(samples: Mapping[int, Sample] | Mapping[str, Sample]) -> list[float]:
    return [value for sample in samples.values() for value in (sample.median_s, sample.p95_s)]
