"""`make demo`: VGG16 on a device with too little memory for it, and a trained model's accuracy before and after.

Everything is real: the model is built here, compiled by `hypsc`, served by `hyps-worker` in a process whose memory the
kernel limits, and asked over a socket. It needs no network and takes under three minutes.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort

import hyps
import hyps_models
from hyps.formats.quantities import format_nbytes, format_seconds
from limits import Limit, memory_limit

MB = 1_000_000
BIN = Path(sys.executable).parent


@click.command()
@click.option("--memory-mb", default=256, show_default=True, help="Memory of the pretended device.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep models and plans in this folder.")
def main(memory_mb: int, keep: Path | None) -> None:
    """Show what HyPS is for, in under three minutes."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hyps-demo-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        vgg16(folder, memory_mb)
        digits(folder)
    click.echo(f"\ndone in {time.perf_counter() - begin:.0f} s")


def vgg16(folder: Path, memory_mb: int) -> None:
    """Serve VGG16 where it does not fit."""
    model, plan = folder / "vgg16.onnx", folder / "vgg16-plan"
    heading(f"VGG16 on a device with {memory_mb} MB")
    step("building VGG16, seeded weights, no download")
    hyps_models.save("vgg16", model)
    note(f"{format_nbytes(model.stat().st_size)}, {hyps_models.MODELS['vgg16'].parameters:,} parameters")
    image = hyps_models.sample_inputs("vgg16")
    expected = answer_whole(model, image)

    step(f"whole model in onnxruntime, default options, limited to {memory_mb} MB")
    with memory_limit(memory_mb * MB, name="hyps-demo") as limit:
        note(f"the limit is real: {limit.kind}")
        note(run_whole(model, limit))

    step(f"hypsc compile vgg16.onnx -o vgg16-plan --memory {memory_mb}MB")
    options = ["--memory", f"{memory_mb}MB", "--optimize", "native", "--force"]
    subprocess.run([BIN / "hypsc", "compile", model, "-o", plan, *options], check=True)

    step(f"hyps-worker vgg16-plan, limited to {memory_mb} MB")
    with memory_limit(memory_mb * MB, name="hyps-demo") as limit:
        serve_and_ask(plan, image, expected, limit)


def run_whole(model: Path, limit: Limit) -> str:
    """Return what becomes of the unsplit model under the limit."""
    command = [sys.executable, Path(__file__).with_name("whole.py"), model, "default", 1]
    process = limit.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = process.wait()
    if status == 0:
        return "it survives: give the demo a smaller --memory-mb"
    return "killed by the kernel: out of memory" if status == -9 else "it fails: memory cannot be allocated"


def serve_and_ask(plan: Path, image: dict[str, Any], expected: np.ndarray[Any, Any], limit: Limit) -> None:
    """Start a worker under the limit, send it requests, stop it."""
    endpoint = f"ipc://{plan}.socket"
    worker = limit.popen([BIN / "hyps-worker", plan, "--bind", endpoint], stderr=subprocess.PIPE)
    assert worker.stderr is not None
    try:
        note(worker.stderr.readline().strip())
        with hyps.InferenceSession(endpoint) as session:
            samples = []
            for _ in range(5):
                start = time.perf_counter()
                answer = session.run(None, image)[0]
                samples.append(time.perf_counter() - start)
        status = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        gap = float(np.max(np.abs(answer - expected)) / np.max(np.abs(expected)))
        note(f"answers in {format_seconds(statistics.median(samples))}, at most {format_nbytes(peak)} resident")
        note(f"the whole model's answer: largest difference {gap:.1g} of the largest value")
    finally:
        worker.terminate()
        worker.wait()


def digits(folder: Path) -> None:
    """Show the accuracy of a trained model before and after partitioning."""
    heading("accuracy of a CNN trained on handwritten digits, before and after")
    model, plan = folder / "digits.onnx", folder / "digits-plan"
    hyps_models.save("digits", model)
    step("hypsc compile digits.onnx -o digits-plan --max-params 8000 --cut pooling")
    options = ["--max-params", "8000", "--cut", "pooling", "--force"]
    subprocess.run([BIN / "hypsc", "compile", model, "-o", plan, *options], check=True)
    images, labels = hyps_models.digits_test()
    whole = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = whole.get_inputs()[0].name
    with hyps.InferenceSession(plan) as parts:
        for label, session in (("whole", whole), ("in parts", parts)):
            hits = np.argmax(session.run(None, {name: images})[0], axis=1) == labels
            note(f"{label:9} {100 * float(np.mean(hits)):.2f} % of {len(labels)} images it was not trained on")


def answer_whole(model: Path, image: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the unsplit model's answer, with all the memory it wants."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = session.run(None, image)[0]
    return answer


def heading(text: str) -> None:
    """Print a heading."""
    click.secho(f"\n== {text}", bold=True)


def step(text: str) -> None:
    """Print what is being done."""
    click.secho(f"-> {text}", fg="cyan")


def note(text: str) -> None:
    """Print what came of it."""
    click.echo(f"   {text}")


if __name__ == "__main__":
    main()
