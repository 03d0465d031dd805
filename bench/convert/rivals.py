"""tf2onnx's own command line, measured: its seconds, its peak memory, under a limit."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_BYTES = 12 * 2**30
"""What the rival may take: a laptop's worth, and half of what this machine has."""

LIMIT_S = 900.0


def tf2onnx_command(folder: Path, target: Path) -> dict[str, Any]:
    """Convert a SavedModel folder by `python -m tf2onnx.convert`; return whether it could, and what it took."""
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--output", str(target)]
    started_s = time.monotonic()
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    said = target.with_suffix(".said")
    with said.open("w") as file:
        process = subprocess.Popen(
            ["timeout", str(LIMIT_S), *command], stdout=file, stderr=file, env=environment, preexec_fn=_limit_memory
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = said.read_text(errors="replace").strip().splitlines()
    converts = process.returncode == 0 and target.exists()
    found: dict[str, Any] = {
        "converts": converts,
        "seconds": round(time.monotonic() - started_s, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        # of `timeout` and what it waited for: the larger one counts
        "peak_bytes": max(usage.ru_maxrss * 1024, 0),
        "said": "" if converts else (lines or [f"status {process.returncode}"])[-1][:300],
    }
    return found | (_described(target) if converts else {})


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))


def _described(target: Path) -> dict[str, Any]:
    import onnx

    graph = onnx.load(target, load_external_data=False).graph
    return {"nodes": len(graph.node), "inputs": len(graph.input)}
