"""What cutting costs when every partition fits: latency of plans as ratios to the unsplit model in the same run.

The rival is unsplit onnxruntime at its best: default options (all graph optimizations, prepacked weights), the model
file itself, one warm session. Plan and rival alternate, so that what disturbs one disturbs the other; every sample is
kept. Each has a process of its own, as it would have in use (onnxruntime cannot share one pool of threads among the
partitions beside a session of default options). Between samples there is a pause: the threads of an idle session of
default options spin for 30 ms after a run, and would hold a core that the other one needs.

    python bench/speed.py                     # VGG16, ResNet-50 and MobileNetV2, one and two threads
    python bench/speed.py --model mobilenetv2 --threads 1 --repeats 60
"""

import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort

import hyps_models
from common import machine, write_results
from hyps.local import LocalRunner
from hyps.terminal import table

CASES = (
    ("uncut", ["--cut", "mandatory", "--optimize", "portable"]),
    ("pooling", ["--cut", "pooling", "--optimize", "native"]),
    ("pooling+strided", ["--cut", "pooling,strided", "--optimize", "native"]),
    ("every layer", ["--cut", "all", "--optimize", "native"]),
    ("pooling, portable", ["--cut", "pooling", "--optimize", "portable"]),
    ("every layer, portable", ["--cut", "all", "--optimize", "portable"]),
)
"""Name and options of `hypsc compile`."""

PAUSE_S, WARM_UP = 0.06, 4


@click.command()
@click.option("--model", "models", multiple=True, default=("vgg16", "resnet50", "mobilenetv2"), show_default=True)
@click.option("--threads", "thread_counts", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--repeats", default=30, show_default=True, help="Samples of each variant.")
@click.option("--child", hidden=True, nargs=3, type=str, help="Be one side.")
def main(models: tuple[str, ...], thread_counts: tuple[int, ...], repeats: int, child: tuple[str, ...] | None) -> None:
    """Measure every case and print the ratios."""
    if child:
        serve_side(*child)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            model = Path(folder) / f"{name}.onnx"
            hyps_models.save(name, model)
            for case, options in CASES:
                plan = Path(folder) / f"{name}-{case.replace(' ', '-')}"
                subprocess.run(["hypsc", "compile", model, "-o", plan, "-q", *options], check=True, capture_output=True)
                for threads in thread_counts:
                    results.append(run_case(name, case, model, plan, threads, repeats))
                    show(results[-1:])
                subprocess.run(["rm", "-r", plan], check=True)
            model.unlink()
    print(show(results))
    write_results("speed", {"machine": machine(), "results": results})


def run_case(name: str, case: str, model: Path, plan: Path, threads: int, repeats: int) -> dict[str, object]:
    """Return the samples of the unsplit model and of the plan, taken in turns."""
    sides = {key: start_side(name, path, threads) for key, path in (("whole", model), ("plan", plan))}
    samples: dict[str, list[float]] = {key: [] for key in sides}
    for index in range(repeats + WARM_UP):
        for key, side in sides.items():
            time.sleep(PAUSE_S)
            seconds = ask(side, "run")
            if index >= WARM_UP:
                samples[key].append(float(seconds))
    digests = {key: ask(side, "digest") for key, side in sides.items()}
    partitions = int(ask(sides["plan"], "partitions"))
    for side in sides.values():
        side.communicate("")
    return {
        "model": name,
        "case": case,
        "threads": threads,
        "partitions": partitions,
        "ratio": statistics.median(samples["plan"]) / statistics.median(samples["whole"]),
        "identical": digests["whole"] == digests["plan"],
        "whole_s": samples["whole"],
        "plan_s": samples["plan"],
    }


def start_side(name: str, path: Path, threads: int) -> "subprocess.Popen[str]":
    """Start the process of one side."""
    command = [sys.executable, __file__, "--child", name, str(path), str(threads)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(side: "subprocess.Popen[str]", word: str) -> str:
    """Return the line that the process answers."""
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(word + "\n")
    side.stdin.flush()
    return side.stdout.readline().strip()


def serve_side(name: str, path: str, threads: str) -> None:
    """Answer the other process's words: seconds of a run, a digest of the outputs, the number of partitions."""
    feeds = hyps_models.sample_inputs(name)
    run, partitions = open_side(Path(path), int(threads))
    for word in map(str.strip, sys.stdin):
        if word == "run":
            start = time.perf_counter()
            run(feeds)
            answer = str(time.perf_counter() - start)
        elif word == "digest":
            outputs = run(feeds)
            joined = b"".join(np.ascontiguousarray(outputs[key]).tobytes() for key in sorted(outputs))
            answer = hashlib.sha256(joined).hexdigest()
        else:
            answer = str(partitions)
        print(answer, flush=True)


def open_side(path: Path, threads: int) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], int]:
    """Return how to run a model file or a plan folder, and its partitions."""
    if path.is_dir():
        runner = LocalRunner(path, threads=threads, own_process=True)  # as hyps-worker opens it
        return runner.run, len(runner.plan.partitions)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True)), 1


def show(results: list[dict[str, object]]) -> str:
    """Return the results as a table; says the latest on stderr while the bench goes on."""
    rows = [
        (
            r["model"],
            r["case"],
            r["threads"],
            r["partitions"],
            f"{statistics.median(r['whole_s']) * 1e3:.1f}",  # type: ignore[call-overload]  # a list of floats
            f"{r['ratio']:.3f}",
            "yes" if r["identical"] else "no",
        )
        for r in results
    ]
    text = table(rows, ("model", "cut", "threads", "parts", "whole ms", "ratio", "same bits"), "llrrrrl")
    if len(results) == 1:
        print(text.splitlines()[-1], file=sys.stderr)
    return text


if __name__ == "__main__":
    main()
