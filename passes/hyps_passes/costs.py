"""What layers and borders cost on a device, from its profile: a measured figure first, the model of time otherwise."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyps.formats.profiles import BorderProfile, LayerProfile, Profile
from hyps_passes.graph import MODEL, CutGraph, CutValue, Layer
from hyps_passes.signatures import layer_signature
from hyps_passes.time_model import Work, modelled_s

_SWEEPS = 400
_SETTLED = 1e-9
"""Change of a border's seconds, relative to the largest, below which another sweep changes nothing that matters."""
_PULL = 1e-4
"""How much an expectation from bytes weighs beside a measured border: it only decides what borders leave open."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds on one device for one batch size.

    A partition takes `session_s`, the seconds of its layers, `export_s` of each value that leaves it for another
    partition, and `import_s` of each value that enters it from another one.
    """

    layer_s: list[float]
    """By the index of the layer."""
    export_s: dict[str, float]
    """By the name of the value: every one has an entry; those of the model's inputs and final outputs are 0, because
    the layers' own seconds hold what it takes to read and write them."""
    import_s: dict[str, float]
    """Likewise."""
    session_s: float
    """What any partition costs, whatever it holds."""
    modelled: int
    """How many layers' seconds come from the model of time."""


def profile_costs(graph: CutGraph, profile: Profile, batch: int) -> Costs:
    """Return what the layers and values of `graph` cost on the profiled device.

    Layers are found by name and signature, or by signature alone where the model was compiled anew; what is not found
    is told by the model of time. Between measured batches seconds are interpolated, beyond them they go on as between
    the last two, and in proportion where only one was measured.

    Args:
        graph: the layers to cost, their sizes those of one request.
        profile: of the device.
        batch: requests computed at once.

    Raises:
        ValueError: `batch` is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch {batch} is below 1")
    signatures = [layer_signature(graph, layer) for layer in graph.layers]
    found = _found_layers(graph, profile, signatures)
    layer_s, modelled = [], 0
    for layer in graph.layers:
        samples = found[layer.index]
        modelled += not samples or any(sample.source == "modelled" for sample in samples)
        seconds = [at_batch({b: s.median_s for b, s in sample.samples.items()}, batch) for sample in samples]
        layer_s.append(statistics.fmean(seconds) if seconds else _modelled_layer_s(graph, layer, profile, batch))
    rates = (profile.time_model.export_s_per_byte * batch, profile.time_model.import_s_per_byte * batch)
    exports, imports = (
        _tensor_seconds(profile.borders, [at_batch(side(border), batch) for border in profile.borders], rate)
        for side, rate in ((_exported, rates[0]), (_imported, rates[1]))
    )
    return Costs(
        layer_s,
        _value_seconds(graph, profile, signatures, exports, rates[0]),
        _value_seconds(graph, profile, signatures, imports, rates[1]),
        at_batch(profile.session_s, batch, constant=True),
        modelled,
    )


def at_batch(seconds: Mapping[int, float], batch: int, *, constant: bool = False) -> float:
    """Return seconds at a batch size from those at others, never below 0.

    >>> at_batch({1: 2.0, 4: 5.0}, 2), at_batch({1: 2.0, 4: 5.0}, 8), at_batch({2: 3.0}, 4)
    (3.0, 9.0, 6.0)

    Args:
        seconds: by batch size; at least one.
        batch: the size wanted.
        constant: whether a single figure holds for every size, instead of growing in proportion.
    """
    known = sorted(seconds)
    if batch in seconds:
        return seconds[batch]
    if len(known) == 1:
        return seconds[known[0]] * (1.0 if constant else batch / known[0])
    above = next((place for place, size in enumerate(known) if size > batch), len(known) - 1)
    left, right = known[max(0, above - 1)], known[max(1, above)]
    slope = (seconds[right] - seconds[left]) / (right - left)
    is_between = left < batch < right
    return max(0.0, seconds[left] + (slope if is_between else max(0.0, slope)) * (batch - left))


def _exported(border: BorderProfile) -> Mapping[int, float]:
    return border.export_s


def _imported(border: BorderProfile) -> Mapping[int, float]:
    return border.import_s


def _found_layers(graph: CutGraph, profile: Profile, signatures: Sequence[str]) -> list[list[LayerProfile]]:
    """Return what the profile has of each layer: its own figures, those of its equals, or nothing."""
    by_name = {layer.name: layer for layer in profile.layers}
    by_signature: dict[str, list[LayerProfile]] = {}
    for measured in profile.layers:
        by_signature.setdefault(measured.signature, []).append(measured)
    found = []
    for layer, signature in zip(graph.layers, signatures, strict=True):
        own = by_name.get(layer.name)
        is_own = own is not None and own.signature == signature
        found.append([own] if own is not None and is_own else by_signature.get(signature, []))
    return found


def _modelled_layer_s(graph: CutGraph, layer: Layer, profile: Profile, batch: int) -> float:
    used = sum(value.nbytes or 0 for value in graph.used_by.get(layer.index, ()))
    made = sum(value.nbytes or 0 for value in graph.made_by.get(layer.index, ()))
    work = Work(layer.kind, batch * (layer.macs or 0), batch * (used + made) + layer.weight_bytes)
    return modelled_s(profile.time_model.kinds, work) if profile.time_model.kinds else 0.0


def _tensor_seconds(borders: Sequence[BorderProfile], seconds: Sequence[float], rate: float) -> dict[str, float]:
    """Divide what measured borders cost among the tensors that cross them; none costs less than 0.

    A tensor that crosses a border alone costs what that does. The others come as close to the borders' costs as they
    can together (least squares), and where that leaves a choice, to what their bytes let expect.
    """
    measured = [(b, s) for b, s in zip(borders, seconds, strict=True) if b.source == "measured"]
    alone: dict[str, list[float]] = {}
    for border, cost in measured:
        if len(border.tensors) == 1:
            alone.setdefault(border.tensors[0], []).append(cost)
    told = {name: statistics.fmean(costs) for name, costs in alone.items()}
    rows: list[list[str]] = []
    rest: list[float] = []
    expected: dict[str, float] = {}
    for border, cost in measured:
        unknown = [name for name in border.tensors if name not in told]
        if unknown:
            rows.append(unknown)
            rest.append(cost - sum(told.get(name, 0.0) for name in border.tensors))
            expected |= {n: rate * (size or 0) for n, size in zip(border.tensors, border.tensor_bytes, strict=True)}
    unknowns = {name: expected[name] for names in rows for name in names}
    return {**told, **_solve(rows, rest, unknowns)}


def _solve(rows: Sequence[Sequence[str]], wanted: Sequence[float], expected: Mapping[str, float]) -> dict[str, float]:
    """Return seconds from 0 on whose sums over the rows come closest to those wanted; one by one until they settle."""
    places: dict[str, list[int]] = {}
    for place, names in enumerate(rows):
        for name in names:
            places.setdefault(name, []).append(place)
    seconds = dict.fromkeys(places, 0.0)
    rest = list(wanted)
    enough = _SETTLED * max(map(abs, wanted), default=0.0)
    for _ in range(_SWEEPS):
        largest = 0.0
        for name, own in places.items():
            before = seconds[name]
            pulled = sum(rest[place] + before for place in own) + _PULL * expected[name]
            after = max(0.0, pulled / (len(own) + _PULL))
            seconds[name] = after
            for place in own:
                rest[place] -= after - before
            largest = max(largest, abs(after - before))
        if largest <= enough:
            break
    return seconds


def _value_seconds(
    graph: CutGraph, profile: Profile, signatures: Sequence[str], seconds: Mapping[str, float], rate: float
) -> dict[str, float]:
    """Return seconds of the graph's values: by name, by what makes them, or by their bytes."""
    made_by = _producers(profile)
    by_maker: dict[tuple[str, int], list[float]] = {}
    for name, maker in made_by.items():
        if name in seconds:
            by_maker.setdefault(maker, []).append(seconds[name])
    found = {}
    for value, maker in _crossing(graph, signatures):
        equals = by_maker.get(maker)
        if value.name in seconds and made_by[value.name] == maker:
            found[value.name] = seconds[value.name]
        else:
            found[value.name] = statistics.fmean(equals) if equals else rate * (value.nbytes or 0)
    return {value.name: found.get(value.name, 0.0) for value in graph.values}


def _producers(profile: Profile) -> dict[str, tuple[str, int]]:
    """Return of each tensor in the profile the signature of the layer that makes it, and its place among that's."""
    signatures = {layer.name: layer.signature for layer in profile.layers}
    made: dict[str, set[str]] = {}
    for border in profile.borders:
        for tensor, producer in zip(border.tensors, border.producers, strict=True):
            made.setdefault(producer, set()).add(tensor)
    return {
        tensor: (signatures[producer], place)
        for producer, tensors in made.items()
        for place, tensor in enumerate(sorted(tensors))
    }


def _crossing(graph: CutGraph, signatures: Sequence[str]) -> list[tuple[CutValue, tuple[str, int]]]:
    """Return the values that layers make for others, each with its maker's signature and its place among that's."""
    return [
        (value, (signatures[producer], place))
        for producer, values in graph.made_by.items()
        if producer != MODEL
        for place, value in enumerate(value for value in values if value.consumers)
    ]
