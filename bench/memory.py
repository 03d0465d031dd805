"""VGG16 (553 MB of weights) served in less and less memory, beside unsplit onnxruntime with defaults and at its best.

Each server runs alone in a memory cgroup; its files are thrown out of the page cache first, so that their pages are
charged to it. Limits go down until a server is killed or fails. Seconds are per request, seen by a client outside.

    python bench/memory.py                # as root: a cgroup is needed
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import hyps
import hyps_models
from common import machine, write_results
from hyps.terminal import table
from limits import Limit, drop_page_cache, memory_limit
from whole import prepare

MB = 1_000_000
REPEATS = 5
DEADLINE_S = 90
TRIES = 3


@click.command()
@click.option("--model", default="vgg16", show_default=True)
def main(model: str) -> None:
    """Measure every way of serving and print what it needs."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.onnx"
        hyps_models.save(model, source)
        (folder / "best").mkdir()
        best = prepare(source, folder / "best")
        budgeted, fine = folder / "budgeted", folder / "fine"
        compile_plan(source, budgeted, "--memory", "256MB")
        smallest = compile_plan(source, fine, "--cut", "all", "--memory", str(smallest_budget(source)))
        results += descend("whole, defaults", whole(source, "default"), source, (1200, 1100, 1050, 1000, 900))
        results += descend(
            "whole, at its best", whole(best, "best"), best.parent, (256, 180, 120, 100, 90, 80, 75, 70, 65)
        )
        results += descend("plan, --memory 256MB", worker(model, budgeted, 256 * MB), budgeted, (256,))
        results += descend(
            f"plan, every layer, --memory {smallest // MB}MB",
            worker(model, fine, smallest),
            fine,
            (256, 128, 100, 90, 80, 75, 70, 65, 60, 55, 50),
        )
    print(show(results))
    write_results("memory", {"machine": machine(), "model": model, "results": results})


def smallest_budget(model: Path) -> int:
    """Return the smallest `--memory` that the compiler says would do."""
    options = ["--memory", "1MB", "--json", "--optimize", "native"]
    command = ["hypsc", "compile", model, "-o", model.parent / "none", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    hint = json.loads(done.stdout)["error"]["hint"]
    return int(hint.split()[-1].removesuffix("MB")) * MB


def compile_plan(model: Path, plan: Path, *options: str) -> int:
    """Compile natively with a budget and return the budget."""
    subprocess.run(["hypsc", "compile", model, "-o", plan, "--optimize", "native", "-q", *options], check=True)
    return hyps.load(plan).memory_bytes or 0


def descend(label: str, serve: Any, files: Path, limits_mb: tuple[int, ...]) -> list[dict[str, Any]]:
    """Serve under each limit in turn until one is too small: a server that is killed is given more tries."""
    results = []
    for limit_mb in limits_mb:
        for attempt in range(1, TRIES + 1):
            drop_page_cache(files)
            with memory_limit(limit_mb * MB) as limit:
                outcome = serve(limit)
                told = {"how": label, "limit_mb": limit_mb, "limit": limit.kind, "attempt": attempt}
                outcome = {**told, "cgroup_peak_bytes": limit.peak_bytes(), **outcome}
            print(outcome, file=sys.stderr)
            if outcome["samples_s"]:
                break
        results.append(outcome)
        if not outcome["samples_s"]:
            break
    return results


def whole(model: Path, how: str) -> Any:
    """Return a function that runs the unsplit model under a limit."""

    def serve(limit: Limit) -> dict[str, Any]:
        command = [sys.executable, Path(__file__).with_name("whole.py"), model, how, REPEATS]
        process = limit.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            out, _ = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return {"samples_s": [], "failure": f"over {DEADLINE_S} s"}
        if process.returncode != 0:
            return {"samples_s": [], "failure": f"status {process.returncode}"}
        figures = json.loads(out)
        return {
            "samples_s": figures["samples_s"],
            "load_s": figures["load_s"],
            "peak_rss_bytes": figures["peak_rss_bytes"],
        }

    return serve


def worker(model: str, plan: Path, budget: int) -> Any:
    """Return a function that serves the plan with `hyps-worker` under a limit and asks it from outside."""

    def serve(limit: Limit) -> dict[str, Any]:
        begin = time.perf_counter()
        with serving(limit, plan, budget) as (process, endpoint):
            samples: list[float] = []
            try:
                with hyps.InferenceSession(endpoint) as session:
                    load_s = time.perf_counter() - begin
                    for _ in range(REPEATS):
                        start = time.perf_counter()
                        session.run(None, hyps_models.sample_inputs(model))
                        samples.append(time.perf_counter() - start)
            except hyps.HypsError as error:
                return {"samples_s": [], "failure": error.message}
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        return {"samples_s": samples, "load_s": load_s, "peak_rss_bytes": peak, "budget_bytes": budget}

    return serve


@contextlib.contextmanager
def serving(limit: Limit, plan: Path, budget: int) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a worker under the limit for as long as the block lasts."""
    endpoint = f"ipc://{plan}.socket"
    command = ["hyps-worker", plan, "--bind", endpoint, "--memory", budget, "--threads", 1]
    process = limit.popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        process.stderr.readline()  # `serving at ...`, or nothing when it was killed
        yield process, endpoint
    finally:
        process.kill()
        process.wait()


def show(results: list[dict[str, Any]]) -> str:
    """Return the results as a table."""
    rows = [
        (
            r["how"],
            r["limit_mb"],
            f"{statistics.median(r['samples_s']):.2f}" if r["samples_s"] else "killed",
            f"{max(r['samples_s']):.2f}" if r["samples_s"] else "",
            f"{r['peak_rss_bytes'] / MB:.0f}" if r["samples_s"] else "",
            r["attempt"],
        )
        for r in results
    ]
    return table(rows, ("how", "limit MB", "median s", "max s", "peak RSS MB", "tries"), "lrrrrr")


if __name__ == "__main__":
    main()
