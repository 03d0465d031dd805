"""What `--quantize` and `--calibration` ask for, and which options they do not go with."""

from dataclasses import dataclass
from pathlib import Path

from hyps.errors import UsageError
from hyps_compiler.quantizing_job import Kind


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What `--quantize` was asked for."""

    kind: Kind
    calibration: Path | None = None
    """An `.npz` file, or a folder of them."""


def quantize_request(kind: Kind | None, calibration: Path | None, *, has_cluster: bool) -> QuantizeOptions | None:
    """Return what the options ask for; None without `--quantize`.

    Raises:
        UsageError: the options do not go together.
    """
    if kind is None:
        if calibration is not None:
            raise UsageError("--calibration is for --quantize, which was not given", "add --quantize int8")
        return None
    if has_cluster:
        raise UsageError(
            "--quantize cannot be given with --cluster, whose profile is of the layers as they are",
            "compile once with --quantize and without --cluster, then give the .onnx file in its partitions/ as MODEL",
        )
    return QuantizeOptions(kind, calibration)
