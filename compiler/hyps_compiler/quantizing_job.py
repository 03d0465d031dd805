"""What is asked of the process that quantizes a model, and what it answers; both travel as JSON."""

from typing import Literal

import msgspec

Kind = Literal["int8", "fp16"]

PREPARED = "prepared.onnx"
"""The file in a job's folder that the child prepares: constants folded, batch norms in their convolutions."""
QUANTIZED = "quantized.onnx"
"""The file that the child leaves there, its weights beside it."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One quantization."""

    kind: Kind
    source: str
    """Absolute path of the model file, which has been checked."""
    folder: str
    """Absolute path of a folder of the child's own."""
    requests: tuple[str, ...] = ()
    """`.npz` files to calibrate with."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    methods: tuple[str, ...] = ()
    """As in `Quantization.methods`, those that found weights."""
    weight_bytes: tuple[int, int] = (0, 0)
    left_bytes: int = 0
    refusal: str = ""
    """What onnxruntime's quantizer says where it fails; empty where it does not."""
    needs_calibration: bool = False
    """Nothing was done: most weights are of convolutions, whose ranges only requests can tell."""
