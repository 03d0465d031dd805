"""HyPS: runs neural networks in partitions, on devices too small for the whole.

`hyps.InferenceSession` stands in for `onnxruntime.InferenceSession`; `hyps.AsyncSession` is its twin for coroutines;
`hyps.load` reads a plan.
"""

import os
from typing import TYPE_CHECKING, Any

from hyps.errors import HypsError

if TYPE_CHECKING:
    from hyps.adapters.plan_files import read_plan as load
    from hyps.async_client import AsyncSession
    from hyps.client import InferenceSession
    from hyps.formats.plan import Plan

    __version__: str

# onnxruntime's Linux packages report sessions to their maker unless told not to, and write an identifier to the disk.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["AsyncSession", "HypsError", "InferenceSession", "Plan", "__version__", "load"]

_HOMES = {
    "AsyncSession": ("hyps.async_client", "AsyncSession"),
    "InferenceSession": ("hyps.client", "InferenceSession"),
    "Plan": ("hyps.formats.plan", "Plan"),
    "load": ("hyps.adapters.plan_files", "read_plan"),
}
"""Name to module and attribute, imported when first used: `hyps-worker --help` must not wait for onnxruntime."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        return import_module("importlib.metadata").version("hyps")
    if name not in _HOMES:
        raise AttributeError(f"module `hyps` has no attribute `{name}`")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
