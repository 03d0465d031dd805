"""Makes of raw seconds what a profile tells of layers and borders, the model of time where nothing was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyps.formats.profiles import BorderProfile, LayerProfile, Sample, Source, TimeModel
from hyps_compiler.profiling_jobs import Answer, Job
from hyps_compiler.profiling_split import CutSeconds, Shares, share_out, share_out_pairs
from hyps_passes.graph import MODEL, CutGraph, Layer
from hyps_passes.signatures import layer_signature
from hyps_passes.time_model import Work, fit_time_model, modelled_s

_GUESS_S_PER_MAC, _GUESS_S_PER_BYTE, _GUESS_S = 1e-11, 1e-10, 1e-6
"""How seconds are divided among layers that were measured together when nothing else is known; only ratios matter."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a profile says of the model."""

    layers: tuple[LayerProfile, ...]
    borders: tuple[BorderProfile, ...]
    time_model: TimeModel


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Layers that were measured together, and their seconds and spread by batch."""

    first: int
    last: int
    seconds: Mapping[int, float]
    spread: Mapping[int, float]
    """The 95th percentile in units of the median."""
    runs: Mapping[int, int]
    """How often they were timed."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """Seconds that a border costs beside the layers, by batch."""

    export_s: Mapping[int, float]
    import_s: Mapping[int, float]


def assemble(graph: CutGraph, job: Job, answer: Answer) -> Parts:
    """Return what the answer tells of the layers and borders of `graph`."""
    if answer.whole is not None:
        stretches, cuts = _from_cuts(job, answer, answer.whole)
    else:
        stretches, cuts = _from_layers(job, answer)
    batches = sorted(job.requests)
    time_model = _fit(graph, stretches, cuts, batches)
    layers = [profile for stretch in stretches for profile in _layers(graph, stretch, time_model, batches)]
    borders = [_border(graph, border, cuts, answer, time_model, batches) for border in graph.legal_borders()]
    return Parts(tuple(layers), tuple(borders), time_model)


def _from_cuts(job: Job, answer: Answer, whole: Mapping[int, Sample]) -> tuple[list[_Stretch], dict[int, _Cut]]:
    indices = [border.index for border in job.borders]
    shares = {}
    for batch, sample in whole.items():
        base_s = answer.session_s
        cuts = [
            CutSeconds(answer.heads[i][batch].median_s - base_s, answer.tails[i][batch].median_s - base_s)
            for i in indices
        ]
        shares[batch] = share_out(max(0.0, sample.median_s - base_s), cuts)
    spread = {batch: sample.p95_s / sample.median_s for batch, sample in whole.items()}
    runs = {batch: answer.heads[indices[0]][batch].n if indices else sample.n for batch, sample in whole.items()}
    starts = [0, *(index + 1 for index in indices)]
    windows = list(zip(starts, [*indices, job.whole.last], strict=True))
    return _stretches(windows, shares, spread, runs), _cuts(indices, shares)


def _from_layers(job: Job, answer: Answer) -> tuple[list[_Stretch], dict[int, _Cut]]:
    ends = [piece.last for piece in job.layers]
    shares, spread, runs = {}, {}, {}
    for batch in job.requests:
        alone = [answer.alone[place][batch] for place in range(len(job.layers))]
        pairs = [answer.pairs[p][batch].median_s if p in answer.pairs else None for p in range(len(job.layers) - 1)]
        shares[batch] = share_out_pairs([s.median_s for s in alone], pairs, answer.session_s)
        spread[batch] = max(sample.p95_s / sample.median_s for sample in alone)
        runs[batch] = min(sample.n for sample in alone)
    windows = [(piece.first, piece.last) for piece in job.layers]
    measured = {end for place, end in enumerate(ends[:-1]) if place in answer.pairs}
    cuts = _cuts(ends[:-1], shares)
    return _stretches(windows, shares, spread, runs), {end: cut for end, cut in cuts.items() if end in measured}


def _stretches(
    windows: Sequence[tuple[int, int]],
    shares: Mapping[int, Shares],
    spread: Mapping[int, float],
    runs: Mapping[int, int],
) -> list[_Stretch]:
    return [
        _Stretch(first, last, {batch: share.stretches[place] for batch, share in shares.items()}, spread, runs)
        for place, (first, last) in enumerate(windows)
    ]


def _cuts(indices: Sequence[int], shares: Mapping[int, Shares]) -> dict[int, _Cut]:
    return {
        index: _Cut(
            {batch: share.export_s[place] for batch, share in shares.items()},
            {batch: share.import_s[place] for batch, share in shares.items()},
        )
        for place, index in enumerate(indices)
    }


def _work(graph: CutGraph, layer: Layer, batch: int = 1, seconds: float = 0.0) -> Work:
    moved = batch * (_input_bytes(graph, layer) + _output_bytes(graph, layer)) + layer.weight_bytes
    return Work(layer.kind, batch * (layer.macs or 0), moved, seconds)


def _input_bytes(graph: CutGraph, layer: Layer) -> int:
    return sum(value.nbytes or 0 for value in graph.used_by.get(layer.index, ()))


def _output_bytes(graph: CutGraph, layer: Layer) -> int:
    return sum(value.nbytes or 0 for value in graph.made_by.get(layer.index, ()))


def _fit(
    graph: CutGraph,
    stretches: Sequence[_Stretch],
    cuts: Mapping[int, _Cut],
    batches: Sequence[int],
) -> TimeModel:
    """Return the model that fits the layers that were measured by themselves."""
    alone = [stretch for stretch in stretches if stretch.first == stretch.last]
    measured = [
        _work(graph, graph.layers[stretch.first], batch, stretch.seconds[batch])
        for stretch in alone
        for batch in batches
    ]
    nbytes = {border: float(sum(value.nbytes or 0 for value in graph.borders[border])) for border in cuts}
    exports = [(batch * nbytes[border], cut.export_s[batch]) for border, cut in cuts.items() for batch in batches]
    imports = [(batch * nbytes[border], cut.import_s[batch]) for border, cut in cuts.items() for batch in batches]
    return fit_time_model(measured, exports, imports)


def _layers(
    graph: CutGraph,
    stretch: _Stretch,
    time_model: TimeModel,
    batches: Sequence[int],
) -> list[LayerProfile]:
    """Return the layers of a stretch; of several, each has its part by the model of time."""
    layers = graph.layers[stretch.first : stretch.last + 1]
    source: Source = "measured" if len(layers) == 1 else "modelled"
    samples: list[dict[int, Sample]] = [{} for _ in layers]
    for batch in batches:
        shares = [_expected_s(time_model, _work(graph, layer, batch)) for layer in layers]
        for place, share in enumerate(shares):
            median_s = stretch.seconds[batch] * share / sum(shares)
            p95_s = median_s * stretch.spread[batch]
            samples[place][batch] = Sample(
                median_s=median_s, p95_s=p95_s, n=stretch.runs[batch] if len(layers) == 1 else 0
            )
    return [
        LayerProfile(
            name=layer.name,
            kind=layer.kind,
            signature=layer_signature(graph, layer),
            macs=layer.macs,
            input_bytes=_input_bytes(graph, layer),
            output_bytes=_output_bytes(graph, layer),
            weight_bytes=layer.weight_bytes,
            samples=samples[place],
            source=source,
        )
        for place, layer in enumerate(layers)
    ]


def _expected_s(time_model: TimeModel, work: Work) -> float:
    told = modelled_s(time_model.kinds, work)
    return told or _GUESS_S + _GUESS_S_PER_MAC * work.macs + _GUESS_S_PER_BYTE * work.nbytes


def _border(
    graph: CutGraph,
    border: int,
    cuts: Mapping[int, _Cut],
    answer: Answer,
    time_model: TimeModel,
    batches: Sequence[int],
) -> BorderProfile:
    values = graph.borders[border]
    nbytes = [value.nbytes for value in values]
    total = sum(size or 0 for size in nbytes)
    cut = cuts.get(border) or _Cut(
        {batch: batch * total * time_model.export_s_per_byte for batch in batches},
        {batch: batch * total * time_model.import_s_per_byte for batch in batches},
    )
    assert all(value.producer != MODEL for value in values)
    return BorderProfile(
        after=graph.layers[border].name,
        tensors=tuple(value.name for value in values),
        producers=tuple(graph.layers[value.producer].name for value in values),
        tensor_bytes=tuple(nbytes),
        nbytes=None if None in nbytes else total,
        export_s=dict(cut.export_s),
        import_s=dict(cut.import_s),
        head_s=answer.heads.get(border, {}),
        tail_s=answer.tails.get(border, {}),
        source="measured" if border in cuts else "modelled",
    )
