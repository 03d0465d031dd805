"""A profile for people: where the time goes, how sure that is, and how much of it was modelled."""

from hyps.errors import printable
from hyps.formats.profiles import LayerProfile, LinkProfile, Profile, Sample
from hyps.formats.quantities import format_count, format_nbytes, format_seconds
from hyps.terminal import table

_SLOWEST = 10
_RESTLESS = 1.5
"""How much slower the slowest runs may be than the typical one."""


def show_profile(profile: Profile) -> str:
    """Return the profile as text of at most 80 columns: the slowest layers, borders, totals."""
    parts = [_layer_table(profile)]
    if profile.borders:
        parts.append(_border_table(profile))
    parts.append("\n".join(_totals(profile)))
    return "\n\n".join(parts)


def show_link(link: LinkProfile) -> str:
    """Return a link as one line."""
    up, down = format_nbytes(link.up_bytes_per_s), format_nbytes(link.down_bytes_per_s)
    return (
        f"link to {printable(link.peer, 40)}: {up}/s up, {down}/s down, {format_seconds(link.latency_s)} each way,"
        f" {format_seconds(link.message_s)} a message"
    )


def _layer_table(profile: Profile) -> str:
    first = profile.batches[0]
    total = sum(layer.samples[first].median_s for layer in profile.layers) or 1.0
    slowest = sorted(profile.layers, key=lambda layer: -layer.samples[first].median_s)[:_SLOWEST]
    headers = ("slowest layers", "kind", "MACs", *(_batch_header(batch) for batch in profile.batches[:3]), "share", "")
    rows = [
        (
            printable(layer.name),
            printable(layer.kind, 20),
            "?" if layer.macs is None else format_count(layer.macs),
            *(format_seconds(layer.samples[batch].median_s) for batch in profile.batches[:3]),
            f"{layer.samples[first].median_s / total:.1%}",
            _source(layer),
        )
        for layer in slowest
    ]
    return table(rows, headers, "ll" + "r" * (len(headers) - 3) + "l")


def _batch_header(batch: int) -> str:
    return "seconds" if batch == 1 else f"batch {batch}"


def _source(layer: LayerProfile) -> str:
    return "" if layer.source == "measured" else "modelled"


def _border_table(profile: Profile) -> str:
    first = profile.batches[0]
    costly = sorted(profile.borders, key=lambda b: -(b.export_s[first] + b.import_s[first]))[: _SLOWEST // 2]
    rows = [
        (
            printable(border.after),
            len(border.tensors),
            "?" if border.nbytes is None else format_nbytes(border.nbytes),
            format_seconds(border.export_s[first]),
            format_seconds(border.import_s[first]),
            "" if border.source == "measured" else "modelled",
        )
        for border in costly
    ]
    return table(rows, ("costliest cuts behind", "tensors", "bytes", "producer", "consumer", ""), "lrrrrl")


def _is_restless(sample: Sample) -> bool:
    """Return whether the slowest runs took so much longer that others must have used the machine."""
    return sample.p95_s > _RESTLESS * sample.median_s


def _totals(profile: Profile) -> list[str]:
    lines = []
    for batch in profile.batches:
        layers_s = sum(layer.samples[batch].median_s for layer in profile.layers) + profile.session_s[batch]
        sample = (profile.whole or {}).get(batch)
        spread = "not run whole: too large" if sample is None else f"95th percentile {format_seconds(sample.p95_s)}"
        lines.append(f"batch {batch}: {format_seconds(sample.median_s if sample else layers_s)}, {spread}")
    if any(_is_restless(sample) for sample in (profile.whole or {}).values()):
        lines.append("runs differed much: the machine was busy; measure again on an idle one")
    modelled = sum(layer.source == "modelled" for layer in profile.layers)
    error = profile.time_model.error
    told = "" if error is None else f"; the model of time is off by {error:.0%} at the median"
    lines.append(f"{len(profile.layers)} layers, {modelled} of them modelled{told}")
    if profile.peak_memory_bytes is not None:
        lines.append(f"peak memory {format_nbytes(profile.peak_memory_bytes)}")
    scale = "" if profile.scaled_from is None else f", {profile.scale:g} times {printable(profile.scaled_from, 40)}"
    lines.append(f"device {printable(profile.device, 40)}{scale}, {profile.threads} of {profile.cores} cores")
    return [*lines, *map(show_link, profile.links)]
