"""How long compiling takes and how much memory: VGG16 in one file, and a model of 3 GB whose weights are external data.

The rival for scale is what any tool must do: load the model in onnxruntime (defaults), and copy its bytes once.

    python bench/compile.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

import hyps_models
from common import machine, write_results
from hyps.terminal import table

MB = 1_000_000
_CHILD = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(json.dumps([status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
LAYERS, WIDTH = 46, 4096
"""Dense layers of 67 MB: 3.1 GB in all."""


@click.command()
@click.option("--repeats", default=3, show_default=True)
def main(repeats: int) -> None:
    """Measure and print."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vgg16, large = folder / "vgg16.onnx", folder / "large.onnx"
        hyps_models.save("vgg16", vgg16)
        write_large(large)
        for label, model, options in (
            ("vgg16, --memory 256MB", vgg16, ("--memory", "256MB")),
            ("vgg16, --max-params 30M, no verify", vgg16, ("--max-params", "30M", "--no-verify")),
            ("3 GB external, --memory 512MB", large, ("--memory", "512MB")),
            ("3 GB external, no verify", large, ("--max-params", "100M", "--no-verify")),
        ):
            plan = folder / "plan"
            command = ["hypsc", "compile", str(model), "-o", str(plan), "-q", *options]
            figures = [measure(command, plan) for _ in range(repeats)]
            size = sum(file.stat().st_size for file in (model, model.with_suffix(".data")) if file.exists())
            results.append({"case": label, "model_bytes": size, "runs": figures, "copy_s": copy_seconds(model, folder)})
            print(results[-1], file=sys.stderr)
    print(show(results))
    write_results("compile", {"machine": machine(), "results": results})


def write_large(path: Path) -> None:
    """Write a chain of dense layers with its weights in one external file, a layer at a time."""
    rng = np.random.default_rng(0)
    nodes, inits, offset = [], [], 0
    with path.with_suffix(".data").open("wb") as data:
        for index in range(LAYERS):
            weight = (rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(np.sqrt(WIDTH))).tobytes()
            data.write(weight)
            init = TensorProto(
                name=f"w{index}", data_type=TensorProto.FLOAT, dims=(WIDTH, WIDTH), data_location=TensorProto.EXTERNAL
            )
            for key, value in (
                ("location", path.with_suffix(".data").name),
                ("offset", offset),
                ("length", len(weight)),
            ):
                init.external_data.add(key=key, value=str(value))
            inits.append(init)
            offset += len(weight)
            nodes.append(
                helper.make_node("Gemm", [f"t{index}", f"w{index}"], [f"s{index}"], name=f"fc{index}", transB=1)
            )
            nodes.append(helper.make_node("Relu", [f"s{index}"], [f"t{index + 1}"], name=f"relu{index}"))
    ends = [helper.make_tensor_value_info(name, 1, ["batch", WIDTH]) for name in ("t0", f"t{LAYERS}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], inits)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def measure(command: list[str], plan: Path) -> dict[str, Any]:
    """Run the compiler; return seconds, and the peak resident bytes of the largest of its processes."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _CHILD, *command], capture_output=True, text=True, check=True)
    status, peak_kib = json.loads(done.stdout.splitlines()[-1])
    seconds = time.perf_counter() - start
    if status != 0:
        raise click.ClickException(done.stderr)
    shutil.rmtree(plan)
    return {"seconds": seconds, "peak_rss_bytes": peak_kib * 1024}


def copy_seconds(model: Path, folder: Path) -> float:
    """Return the seconds of one copy of the model's bytes on the same disk, written through."""
    start = time.perf_counter()
    for file in (model, model.with_suffix(".data")):
        if file.exists():
            copy = folder / "copy"
            shutil.copyfile(file, copy)
            with copy.open("rb") as stream:
                os.fsync(stream.fileno())
            copy.unlink()
    return time.perf_counter() - start


def show(results: list[dict[str, Any]]) -> str:
    """Return the results as a table."""
    rows = [
        (
            r["case"],
            f"{r['model_bytes'] / MB:.0f}",
            f"{sorted(run['seconds'] for run in r['runs'])[len(r['runs']) // 2]:.1f}",
            f"{max(run['peak_rss_bytes'] for run in r['runs']) / MB:.0f}",
            f"{r['copy_s']:.1f}",
        )
        for r in results
    ]
    return table(rows, ("case", "model MB", "seconds", "peak MB", "one copy s"), "lrrrr")


if __name__ == "__main__":
    main()
