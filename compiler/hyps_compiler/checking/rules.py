"""What a budget says of one model: how it is compiled, and what must not be passed."""

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from hyps.formats.plan import Optimization


class CompileOptions(Struct, frozen=True, kw_only=True):
    """How a model is compiled; as `hypsc compile` takes it."""

    memory_bytes: int | None = None
    max_params: int | None = None
    cut: tuple[str, ...] = ("mandatory",)
    partitions: int | None = None
    optimize: Optimization = "portable"
    quantize: Literal["int8", "fp16"] | None = None
    calibration: str | None = None
    """Path of the requests from which the quantizer takes its ranges: an .npz file, or a folder of them."""
    cluster: str | None = None
    profile: str | None = None
    objective: str = "latency"
    strategy: str = "exact"
    input: dict[str, tuple[int, ...]] = {}
    """Shapes of inputs with open dimensions."""
    inputs: str | None = None
    """Path of a request to verify on."""
    max_tensor_bytes: int | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Rule:
    """All that a budget says of one model."""

    options: CompileOptions = field(default_factory=CompileOptions)
    limits: dict[str, float] = field(default_factory=dict)
    """By name of the row in `limits.LIMITS`, the most that is allowed."""
    growth: dict[str, float] = field(default_factory=dict)
    """By name of the row, by how much it may be above the previous plan's, as a share: 0.05 is 5 per cent."""
    patterns: tuple[str, ...] = ()
    """Those of the budget's `[models]` that fit."""
