"""What a budget says of one model: how it is compiled, and what must not be passed."""

import os
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from hyps.errors import printable
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

    def differences(self, before: "CompileOptions") -> tuple[str, ...]:
        """Return what divides or changes a model otherwise than `before` did, a phrase each; of files, their names."""
        pairs = [(word, self._told(name), before._told(name)) for name, word in _DECIDING.items()]
        return tuple(f"`{word}` was {was} and is {now}" for word, now, was in pairs if now != was)

    def _told(self, name: str) -> str:
        value = getattr(self, name)
        if value is None:
            return "not given"
        if name in ("calibration", "cluster"):
            value = os.path.basename(value)
        return f"`{printable(','.join(value) if isinstance(value, tuple) else str(value))}`"


_DECIDING = {
    "memory_bytes": "memory",
    "max_params": "max_params",
    "cut": "cut",
    "partitions": "partitions",
    "optimize": "optimize",
    "quantize": "quantize",
    "calibration": "calibration",
    "cluster": "cluster",
    "objective": "objective",
    "strategy": "strategy",
}
"""Options on which it depends what a plan is, with their names in a budget."""


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
