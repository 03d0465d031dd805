"""Profiles without a device: round figures, for tests of what reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hyps.formats.profiles import BorderProfile, KindModel, LayerProfile, Profile, Sample, TimeModel


def sample(seconds: float) -> Sample:
    """Return a sample that took so long."""
    return Sample(median_s=seconds, p95_s=1.1 * seconds, n=9)


def layer(name: str, seconds: Mapping[int, float], **changes: Any) -> LayerProfile:
    """Return a layer by its seconds per batch; its signature is its name unless told."""
    fields = {"kind": "Made", "signature": name, "source": "measured", **changes}
    return LayerProfile(name=name, samples={batch: sample(s) for batch, s in seconds.items()}, **fields)


def border(
    after: str,
    tensors: Sequence[str],
    producers: Sequence[str],
    export_s: Mapping[int, float],
    import_s: Mapping[int, float],
    **changes: Any,
) -> BorderProfile:
    """Return a border whose tensors have 100 bytes each."""
    fields: dict[str, Any] = {"source": "measured", **changes}
    return BorderProfile(
        after=after,
        tensors=tuple(tensors),
        producers=tuple(producers),
        tensor_bytes=(100,) * len(tensors),
        nbytes=100 * len(tensors),
        export_s=dict(export_s),
        import_s=dict(import_s),
        **fields,
    )


def profile(
    layers: Sequence[LayerProfile], borders: Sequence[BorderProfile], session_s: Mapping[int, float]
) -> Profile:
    """Return a profile whose time model says 1 s + 1 ms a MAC + 1 ms a byte, and 2 ms or 3 ms a byte at borders."""
    kinds = {"": KindModel(fixed_s=1.0, per_mac_s=1e-3, per_byte_s=1e-3, layers=5)}
    return Profile(
        device="pi",
        versions={"hyps": "0.1.0"},
        cpu_family="aarch64",
        cores=4,
        threads=2,
        optimization="portable",
        date="2026-01-01T00:00:00+00:00",
        model="made",
        sha256="00",
        batches=tuple(sorted(session_s)),
        layers=tuple(layers),
        borders=tuple(borders),
        session_s=dict(session_s),
        peak_memory_bytes=10**8,
        time_model=TimeModel(kinds=kinds, export_s_per_byte=2e-3, import_s_per_byte=3e-3),
    )
