"""What the benchmarks share: the machine in words, and where raw numbers go."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return what the figures depend on, without names of hosts or people."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory[0] if memory else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("hyps", "onnxruntime", "onnx", "numpy", "pyzmq")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def load() -> float:
    """Return how many programs wanted a core in the last minute, this one included."""
    return round(os.getloadavg()[0], 2)


def quantile(samples: Sequence[float], fraction: float) -> float:
    """Return the sample below which that fraction of them lies."""
    return sorted(samples)[round(fraction * (len(samples) - 1))]


def write_results(name: str, value: dict[str, Any]) -> Path:
    """Write raw numbers to `bench/results/NAME.json` and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
