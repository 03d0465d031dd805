"""What `hypsc compile --quantize` brings: bytes, memory, time and answers of quantized plans beside the float one's.

Each model is compiled three times, left as it is, to fp16 and to int8 (calibrated with seeded requests where it has
convolutions). The three plans then take turns, so that the ratios are of one run. The models' weights are seeded, not
trained, but for `digits`, of which the accuracy is told.

    python bench/quantize.py
    python bench/quantize.py --model lstm --rounds 5
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import hyps_models
from common import load, machine, quantile, write_results
from hyps.local import LocalRunner
from hyps.terminal import table
from hyps_compiler.arrays import write_npz
from hyps_compiler.children import run_child
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from hyps_compiler.quantizing_options import QuantizeOptions

MODELS = ("digits", "mobilenetv2", "resnet50", "encoder-small", "lstm")
KINDS = ("float", "fp16", "int8")
_CALIBRATION = 20


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True, help="A model of the zoo.")
@click.option("--rounds", default=30, show_default=True, help="Requests to each plan.")
@click.option("--save/--no-save", default=True, help="Whether to write bench/results/quantize.json.")
def main(models: tuple[str, ...], rounds: int, save: bool) -> None:
    """Compile, measure, print ratios and keep the raw numbers."""
    begin_load = load()
    figures = {}
    for name in models:
        with tempfile.TemporaryDirectory(prefix="hyps-quantize-") as scratch:
            figures[name] = measure(name, Path(scratch), rounds)
        click.echo(f"{name}\n{show(figures[name])}\n")
    if save:
        write_results("quantize", {"machine": machine(), "load": begin_load, "rounds": rounds, "models": figures})


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one model's three plans."""
    model, calibration = folder / f"{name}.onnx", folder / "calibration"
    hyps_models.save(name, model)
    calibration.mkdir()
    for number, request in enumerate(requests_of(name)):
        write_npz(calibration / f"{number:02}.npz", request)
    request = hyps_models.sample_inputs(name, seed=1000)
    figures: dict[str, Any] = {kind: compiled(model, folder / kind, kind, calibration) for kind in KINDS}
    for kind in KINDS:
        figures[kind] |= whole_and_cut(model, folder, kind, calibration)
        figures[kind]["peak_bytes"] = peak(folder / kind, request, folder)
        if name == "digits":
            figures[kind]["accuracy"] = accuracy(folder / kind)
    for kind, samples in turns([folder / kind for kind in KINDS], request, rounds).items():
        figures[kind] |= {
            "seconds": samples,
            "median_s": statistics.median(samples),
            "p95_s": quantile(samples, 0.95),
        }
    return figures


def requests_of(name: str) -> list[dict[str, Any]]:
    """Return what to calibrate with: real digits for the trained model, seeded inputs for the others."""
    if name == "digits":
        return [{"image": image[np.newaxis]} for image in hyps_models.digits_test()[0][:_CALIBRATION]]
    return [hyps_models.sample_inputs(name, seed=seed) for seed in range(_CALIBRATION)]


def compiled(model: Path, plan: Path, kind: str, calibration: Path, cut: str = "mandatory") -> dict[str, Any]:
    """Compile and return what the plan says and what its files take."""
    wanted = None if kind == "float" else QuantizeOptions(kind, calibration)  # type: ignore[arg-type]  # from KINDS
    start_s = time.perf_counter()
    made = compile_model(model, plan, Options(request=Request(cuts=(cut,)), quantization=wanted)).plan
    record = made.quantization
    return {
        "compile_s": time.perf_counter() - start_s,
        "plan_bytes": sum(file.stat().st_size for file in plan.rglob("*") if file.is_file()),
        "weight_bytes": made.model.weight_bytes,
        "border_bytes": sum(made.tensors[n].nbytes or 0 for part in made.partitions for n in part.outputs),
        "methods": list(record.methods) if record else [],
        "relative": max((loss.relative or 0.0 for loss in record.losses), default=0.0) if record else 0.0,
        "same_top1": min((loss.same_top1 or 0.0 for loss in record.losses), default=1.0) if record else 1.0,
    }


def whole_and_cut(model: Path, folder: Path, kind: str, calibration: Path) -> dict[str, Any]:
    """Return the bytes on all borders where the model is cut at every layer."""
    cut = compiled(model, folder / f"{kind}-cut", kind, calibration, "all")
    return {"cut_border_bytes": cut["border_bytes"]}


def peak(plan: Path, request: dict[str, Any], scratch: Path) -> int:
    """Return the peak resident bytes of a process that answers one request, what starting takes not counted."""
    asked, answer = scratch / "request.npz", scratch / "answer.npz"
    write_npz(asked, request)
    return int(run_child("hyps_compiler.peak", [os.fspath(p) for p in (plan, asked, answer)], scratch, "measuring"))


def turns(plans: list[Path], request: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each request to each plan, which take turns; one thread."""
    runners = {plan.name: LocalRunner(plan, threads=1) for plan in plans}
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):
        for name, runner in runners.items():
            start_s = time.perf_counter()
            runner.run(request)
            if number:  # the first loads
                samples[name].append(time.perf_counter() - start_s)
    for runner in runners.values():
        runner.close()
    return samples


def accuracy(plan: Path) -> float:
    """Return the share of handwritten digits, none used for training or calibration, that are recognised."""
    images, labels = (part[_CALIBRATION:] for part in hyps_models.digits_test())
    with LocalRunner(plan) as runner:
        (logits,) = runner.run({"image": images}).values()
    return float(np.mean(logits.argmax(1) == labels))


def show(figures: dict[str, Any]) -> str:
    """Return ratios to the float plan as a table."""
    rows = []
    for kind, figure in figures.items():
        base = figures["float"]
        keys = ("plan_bytes", "peak_bytes", "cut_border_bytes", "median_s")
        ratios = [f"{figure[key] / base[key]:.2f}" for key in keys]
        loss = [f"{figure['relative']:.2g}", f"{100 * figure['same_top1']:.4g} %"]
        rows.append((kind, *ratios, *loss, f"{100 * figure['accuracy']:.2f} %" if "accuracy" in figure else ""))
    return table(rows, ("", "plan", "peak", "borders", "time", "off by", "same top-1", "accuracy"), "lrrrrrrr")


if __name__ == "__main__":
    main()
