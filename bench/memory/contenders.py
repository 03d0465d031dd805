"""The ways of running a model: their files, made once per model, and plans, made per limit."""

import functools
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hyps
from hyps_compiler.arrays import write_npz
from inferring import Job
from memory.processes import BENCH, Contender
from memory.subjects import MB, Subject

DEFAULT, BEST, PLAIN = "default", "best", "best, not optimized"
PORTABLE, NATIVE = "portable", "native"
RIVALS = (DEFAULT, BEST, PLAIN)

COMPILE_DEADLINE_S = 240


@dataclass(frozen=True, slots=True)
class Files:
    """A model on disk in every form that a contender needs."""

    folder: Path
    model: Path
    feeds: Path
    is_external: bool
    """Whether the model's weights lie in a file of their own already."""
    layouts: tuple[str, ...]
    """Of the plans worth making."""
    modes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanMade:
    """A plan, or why there is none."""

    folder: Path
    options: tuple[str, ...]
    compile_s: float
    refusal: str = ""


def write_files(subject: Subject, folder: Path) -> Files:
    """Write the model, its request, and what onnxruntime makes of it in a process of its own."""
    model, feeds = folder / "whole" / "model.onnx", folder / "feeds.npz"
    for part in ("whole", BEST, PLAIN):
        (folder / part).mkdir()
    subject.write(model)
    write_npz(feeds, subject.feeds())
    layouts = (PORTABLE, NATIVE) if subject.has_layouts else (PORTABLE,)
    files = Files(folder, model, feeds, model.with_suffix(".data").exists(), layouts, subject.modes)
    for how, optimized in ((BEST, True), (PLAIN, False)):
        if how in rivals(files):
            call = f"whole.prepare({str(model)!r}, {str(folder / how / 'model.onnx')!r}, optimized={optimized})"
            subprocess.run([sys.executable, "-c", f"import whole; {call}"], cwd=BENCH, check=True, stderr=-3)
    return files


def rivals(files: Files) -> tuple[str, ...]:
    """Return the ways of running the whole model; with external weights as it comes, it is at its plainest already."""
    return (DEFAULT, BEST) if files.is_external else RIVALS


def rival(files: Files, how: str) -> Contender:
    """Return onnxruntime with the whole model."""
    part = "whole" if how == DEFAULT else how
    path = files.folder / part / "model.onnx"
    return Contender(how, "whole.py", _job(files, path, path.parent, "default" if how == DEFAULT else "best"))


@functools.cache
def compile_plan(files: Files, layout: str, limit_bytes: int | None) -> PlanMade:
    """Compile for a limit; None: without one."""
    options = ["--optimize", layout, "--no-verify"]
    if limit_bytes is not None:
        options += ["--memory", str(limit_bytes)]
    return _compiled(files, f"{layout}-{limit_bytes}", options)


def compile_plans(files: Files, limit_bytes: int | None) -> dict[str, PlanMade]:
    """Return the plans for a limit by layout, compiled side by side."""
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda layout: compile_plan(files, layout, limit_bytes), files.layouts)
        return dict(zip(files.layouts, made, strict=True))


def parts(files: Files, made: PlanMade, layout: str) -> Contender:
    """Return HyPS with a plan, under the budget that the plan was made for."""
    budget = hyps.load(made.folder).memory_bytes
    how = "none" if budget is None else str(budget)
    return Contender(layout, "parts.py", _job(files, made.folder, made.folder, how))


def smallest_plan(files: Files, layout: str) -> PlanMade:
    """Return the plan for the smallest budget that the compiler says would do."""
    refused = _compiled(files, f"{layout}-1", ["--optimize", layout, "--no-verify", "--memory", "1MB"])
    found = re.search(r"--memory (\d+)MB", refused.refusal)
    if not found:
        return refused
    budget = int(found[1]) * MB
    return _compiled(files, f"{layout}-smallest", ["--optimize", layout, "--no-verify", "--memory", str(budget)])


def _compiled(files: Files, name: str, options: list[str]) -> PlanMade:
    folder = files.folder / "plans" / name
    folder.parent.mkdir(exist_ok=True)
    hypsc = Path(sys.executable).with_name("hypsc")
    command = [str(hypsc), "compile", str(files.model), "-o", str(folder), "--json", "-q", *_shapes(files), *options]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_DEADLINE_S)
    except subprocess.TimeoutExpired:
        return PlanMade(folder, tuple(options), COMPILE_DEADLINE_S, f"compiling took over {COMPILE_DEADLINE_S} s")
    seconds = time.perf_counter() - start
    refusal = "" if done.returncode == 0 else _reason(done)
    return PlanMade(folder, tuple(options), seconds, refusal)


def _shapes(files: Files) -> list[str]:
    """Return the options that tell the sizes of the request, so that the plan is made for them."""
    with np.load(files.feeds) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
    return [
        word for name, shape in shapes.items() if shape for word in ("--input", f"{name}:{'x'.join(map(str, shape))}")
    ]


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the refusal in words; of a compiler that broke, how it ended."""
    try:
        error: dict[str, Any] = json.loads(done.stdout)["error"]
    except ValueError:
        return f"status {done.returncode}: {done.stderr[-300:]}"
    return f"{error['message']}; {error['hint']}"


def _job(files: Files, model: Path, evicted: Path, how: str) -> Job:
    return Job(str(model), how, str(files.feeds), str(evicted), files.modes, 5, 2.0)
