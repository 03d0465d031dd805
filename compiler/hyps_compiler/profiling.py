"""Measures a model on this device: a model file in, a profile out."""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from msgspec.structs import replace

from hyps.adapters.guard import allowed_seconds, death, forget_scratch, note_scratch
from hyps.adapters.machine import core_count, cpu_facts, cpu_family
from hyps.errors import HypsError, InfeasibleError, ModelError, ProfileError, UsageError, printable
from hyps.formats.profiles import LinkProfile, Profile, decode_profile, scaled
from hyps.probe import probe_link
from hyps_compiler.arrays import write_npz
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.frontend import open_model
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.measure import Measured, measure
from hyps_compiler.profiling_assembly import Parts, assemble
from hyps_compiler.profiling_jobs import Answer, Border, Job, Progress
from hyps_compiler.profiling_parts import PieceWriter, pick_borders
from hyps_compiler.source import Source
from hyps_compiler.stage import Staged, stage_model
from hyps_passes.graph import CutGraph
from hyps_passes.layers import build_cut_graph

_PROFILE_SUFFIX = ".json"

LOCAL = "local"
"""Name of a device that was given none."""


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What `hypsc profile` was asked for."""

    device: str = ""
    """Name of the device; empty: `local`."""
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    """Threads of one partition; None: one per core, as a worker."""
    repeats: int = 9
    """How often each piece is timed."""
    borders: int | None = 100
    """The most places to cut that are measured; None: all."""
    memory_bytes: int | None = None
    """The most that the measuring process may have resident; None: most of what is available."""
    peers: tuple[str, ...] = ()
    """Addresses of workers to which the links are measured."""
    scale: float | None = None
    """Describe a device of so many times the speed, instead of this one."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs with open dimensions."""
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES
    converting: Converting = UNTRUSTED
    """How to convert the model first, if it is no ONNX file."""


def make_profile(model: str, options: ProfileOptions, step: Callable[[str], None] = lambda text: None) -> Profile:
    """Return the profile of a model, or the one in a file, with the links and the scale that were asked for.

    Args:
        model: a model file, `zoo:NAME`, or a profile's file, whose name ends with `.json`.
        options: what was asked for; of a profile's file, nothing is measured again but links.
        step: called with what is being done, for a progress display.

    Raises:
        ProfileError: the file is no profile.
        PeerError: no worker answers at one of the addresses.
        ModelError, UsageError, InfeasibleError: see `profile_model`.
    """
    links = measure_links(options.peers, step)
    profile = read_profile(Path(model)) if model.endswith(_PROFILE_SUFFIX) else profile_model(model, options, step)
    if options.scale is not None:
        profile = scaled(profile, options.scale, options.device or f"{profile.device} x {options.scale:g}")
    elif options.device:
        profile = replace(profile, device=options.device)
    known = {link.peer: link for link in (*profile.links, *links)}
    return replace(profile, links=tuple(known[peer] for peer in sorted(known)))


def read_profile(path: Path) -> Profile:
    """Return the profile in a file.

    Raises:
        ProfileError: it is missing, cannot be read, or is no profile.
    """
    shown = printable(str(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ProfileError(f"`{shown}` does not exist", "make it with `hypsc profile`", "E_NOT_FOUND") from error
    except OSError as error:
        raise ProfileError(f"`{shown}` cannot be read: {printable(error.strerror or str(error))}") from error
    try:
        return decode_profile(data)
    except ProfileError as error:
        raise ProfileError(f"`{shown}`: {error.message}", error.hint, error.code) from error


def measure_links(peers: Sequence[str], step: Callable[[str], None] = lambda text: None) -> tuple[LinkProfile, ...]:
    """Return what the links to workers cost, one after another.

    Raises:
        PeerError: no worker answers at one of the addresses.
    """
    links = []
    for peer in peers:
        step(f"measuring the link to {printable(peer)}")
        links.append(probe_link(peer))
    return tuple(links)


def profile_model(
    model: str | Path, options: ProfileOptions, step: Callable[[str], None] = lambda text: None
) -> Profile:
    """Return what the layers and borders of a model cost on this device.

    Args:
        model: a model file or `zoo:NAME`.
        options: what was asked for.
        step: called with what is being done, for a progress display.

    Raises:
        ModelError: the model cannot be read, or no request was found on which it runs.
        UsageError: the model has no dimension for a batch, and one was asked for.
        InfeasibleError: one layer alone is too large for the memory.
    """
    with tempfile.TemporaryDirectory(prefix="hyps-profile-") as name:
        folder = Path(name)
        note_scratch(folder)
        (folder / "work").mkdir()
        (folder / "stage").mkdir()
        step("reading the model")
        source = open_model(
            model, folder / "work", max_tensor_nbytes=options.max_tensor_nbytes, converting=options.converting
        )
        step("optimizing")
        staged = stage_model(source, folder / "stage", "portable")
        step("measuring tensors")
        measured = measure(
            staged.model,
            staged.path,
            shapes=options.shapes,
            feeds=None,
            max_tensor_nbytes=options.max_tensor_nbytes,
        )
        graph = build_cut_graph(staged.model, measured.sizes, fused=staged.fused)
        job = _job(staged, graph, measured, options)
        step("measuring")
        answer = _measure(staged.path.parent, job, step)
        forget_scratch(folder)
    return _profile(source, measured, job, answer, assemble(graph, job, answer), options.device)


def _job(staged: Staged, graph: CutGraph, measured: Measured, options: ProfileOptions) -> Job:
    if not graph.layers:
        raise ModelError("the model has no layers to measure")
    writer, last = PieceWriter(staged, graph), len(graph.layers) - 1
    borders = pick_borders(graph, options.borders)
    legal = graph.legal_borders()
    ends = [*legal, last]
    starts = [0, *(border + 1 for border in legal)]
    return Job(
        folder=os.fspath(staged.path.parent),
        threads=options.threads or core_count(),
        requests=_write_requests(staged, measured, options),
        repeats=options.repeats,
        memory_bytes=options.memory_bytes,
        empty=writer.write_empty(),
        whole=writer.write(0, last),
        borders=tuple(Border(index=b, head=writer.write(0, b), tail=writer.write(b + 1, last)) for b in borders),
        layers=tuple(writer.write(first, end) for first, end in zip(starts, ends, strict=True)),
        pairs=tuple(writer.write(first, end) for first, end in zip(starts, ends[1:], strict=False)),
        timeout_s=allowed_seconds() or 0.0,
    )


def _write_requests(staged: Staged, measured: Measured, options: ProfileOptions) -> dict[int, str]:
    """Write a request of each batch size: one request as often as needed.

    Raises:
        ModelError: no request of arrays is known.
        UsageError: the model's inputs leave no dimension open for a batch.
    """
    feeds = measured.feeds
    if feeds is None or not all(isinstance(value, np.ndarray) for value in feeds.values()):
        raise ModelError(
            f"no request of arrays was found on which the model runs: {measured.problem or 'an input is no tensor'}",
            "give the shapes of its inputs with --input NAME:SHAPE",
        )
    batched = _batched_inputs(staged.model)
    if options.batches != (1,) and not batched:
        raise UsageError(
            "the model's inputs leave no first dimension open, so that --batch can only be 1",
            "leave --batch out, or export the model with an open batch dimension",
        )
    if any(feeds[name].shape[0] != 1 for name in batched):
        raise UsageError("--input gives a batch other than 1", "give the shapes of one request; --batch makes more")
    names = {}
    for batch in sorted(set(options.batches)):
        names[batch] = f"request-{batch}.npz"
        tiled = {n: np.concatenate([v] * batch) if n in batched else v for n, v in feeds.items()}
        write_npz(staged.path.parent / names[batch], tiled)
    return names


def _batched_inputs(model: ir.Model) -> frozenset[str]:
    """Return the inputs whose first dimension is open, under the name that the first such input gives it."""
    opened = {}
    for value in model.graph.inputs:
        dims = value.shape.dims if value.shape is not None else ()
        if dims and not isinstance(dims[0], int):
            opened[str(value.name)] = dims[0].value
    wanted = next(iter(opened.values()), None)
    return frozenset(name for name, dim in opened.items() if dim == wanted)


def _profile(source: Source, measured: Measured, job: Job, answer: Answer, parts: Parts, device: str) -> Profile:
    name, _ = cpu_facts()
    versions = {package: version(package) for package in ("hyps", "numpy", "onnxruntime")}
    batches = tuple(sorted(job.requests))
    return Profile(
        device=device or LOCAL,
        versions={**versions, "python": platform.python_version()},
        cpu_family=cpu_family(),
        cpu=name,
        cores=core_count(),
        threads=job.threads,
        optimization="portable",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.name,
        sha256=source.sha256,
        assumed_dims=dict(sorted(measured.assumed_dims.items())),
        batches=batches,
        layers=parts.layers,
        borders=parts.borders,
        whole=answer.whole,
        session_s=dict.fromkeys(batches, answer.session_s),
        peak_memory_bytes=answer.peak_memory_bytes,
        time_model=parts.time_model,
    )


def _measure(folder: Path, job: Job, step: Callable[[str], None]) -> Answer:
    """Have a process of its own do the job, and return its answer."""
    path = folder / "job.json"
    path.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", "hyps_compiler.profiling_child", os.fspath(path)]
    pipe = subprocess.PIPE
    # its standard input stays open as long as this process lives, and it ends with that
    with (
        (folder / "said").open("w+", errors="replace") as stderr,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as process,
    ):
        try:
            answer = _listen(process, step)
            process.wait()
        except BaseException:
            process.kill()
            raise
        stderr.seek(0)
        said = stderr.read()
    if process.returncode == 0 and answer is not None:
        return answer
    if process.returncode < 0:
        raise death(-process.returncode, "measuring", job.timeout_s, said)
    lines = said.splitlines()
    if process.returncode == InfeasibleError.exit_status and len(lines) > 1:
        raise InfeasibleError(lines[-2], lines[-1])
    raise HypsError(f"the model could not be measured: {printable(lines[-2] if len(lines) > 1 else said.strip(), 200)}")


def _listen(process: "subprocess.Popen[str]", step: Callable[[str], None]) -> Answer | None:
    """Pass on how far the process is, and return its answer; None where it ended without one."""
    assert process.stdout is not None
    for line in process.stdout:
        told = msgspec.json.decode(line, type=Answer | Progress)
        if isinstance(told, Answer):
            return told
        step(f"measuring {told.done} of {told.total}")
    return None
