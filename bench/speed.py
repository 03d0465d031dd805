"""What cutting costs when every partition fits: latency of plans as ratios to the unsplit model in the same run.

The rival is unsplit onnxruntime at its best: default options (all graph optimizations, prepacked weights), the model
file itself, one warm session. Plan and rival alternate, so that what disturbs one disturbs the other; every sample is
kept. Between samples there is a pause: the threads of an idle session of default options spin for 30 ms after a run,
and would hold a core that the other one needs.

    python bench/speed.py                     # VGG16, ResNet-50 and MobileNetV2, one and two threads
    python bench/speed.py --model mobilenetv2 --threads 1 --repeats 60
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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

PAUSE_S = 0.06


@click.command()
@click.option("--model", "models", multiple=True, default=("vgg16", "resnet50", "mobilenetv2"), show_default=True)
@click.option("--threads", "thread_counts", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--repeats", default=30, show_default=True, help="Samples of each variant.")
@click.option("--child", hidden=True, nargs=4, type=str, help="Measure one plan in this process.")
def main(models: tuple[str, ...], thread_counts: tuple[int, ...], repeats: int, child: tuple[str, ...] | None) -> None:
    """Measure every case and print the ratios."""
    if child:
        print(json.dumps(measure(*child)))
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
    """Measure one plan in a process of its own."""
    child = [sys.executable, __file__, "--child", name, str(model), str(plan), f"{threads}:{repeats}"]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    return {"model": name, "case": case, "threads": threads, **json.loads(done.stdout)}


def measure(name: str, model: str, plan: str, how: str) -> dict[str, object]:
    """Return the samples of the unsplit model and of the plan, taken in turns."""
    threads, repeats = map(int, how.split(":"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    feeds = hyps_models.sample_inputs(name)
    whole = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with LocalRunner(plan, threads=threads) as runner:
        outputs = [output.name for output in whole.get_outputs()]
        expected = dict(zip(outputs, whole.run(outputs, feeds), strict=True))
        got = runner.run(feeds)
        identical = all(np.array_equal(expected[name], got[name]) for name in outputs)
        samples: dict[str, list[float]] = {"whole_s": [], "plan_s": []}
        for index in range(repeats + 3):
            for label, call in (("whole_s", lambda: whole.run(outputs, feeds)), ("plan_s", lambda: runner.run(feeds))):
                pause_and_time(samples[label], call, keep=index >= 3)
        partitions = len(runner.plan.partitions)
    ratio = statistics.median(samples["plan_s"]) / statistics.median(samples["whole_s"])
    return {"partitions": partitions, "ratio": ratio, "identical": identical, **samples}


def pause_and_time(samples: list[float], call: object, *, keep: bool) -> None:
    """Time one call, after the threads of the one before have gone to sleep."""
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    call()  # type: ignore[operator]  # a lambda of this file
    if keep:
        samples.append(time.perf_counter() - start)


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
