"""Starts a manager and its nodes on the devices of a testbed, waits until they serve, and asks."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort

import hyps_models
from fleet.asking import Asked, Job
from hyps_compiler.arrays import write_npz
from testbed import Device

MANAGER = "manager"
"""The device on which the manager runs, and those that ask."""

_BENCH = Path(__file__).parent.parent
_BIN = Path(sys.executable).parent
_PORT = 5757
_READY_S = 180.0
_ENDING_S = 20.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """A manager that serves."""

    address: str
    devices: Mapping[str, Device]
    processes: Mapping[str, "subprocess.Popen[bytes]"]
    """By device."""
    folder: Path
    """For jobs and logs."""


@dataclass(frozen=True, slots=True)
class Question:
    """A model, a request and its answer, as files."""

    model: Path
    inputs: Path
    expected: Path
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class Choices:
    """How manager and nodes are started."""

    manager: Sequence[str] = ()
    """Further options."""
    node: Sequence[str] = ()
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of some nodes, by device."""


def make_question(name: str, folder: Path) -> Question:
    """Write the reference model of that name, a request, and what unsplit onnxruntime answers to it."""
    model = folder / f"{name}.onnx"
    hyps_models.save(name, model)
    inputs = hyps_models.sample_inputs(name)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(names, inputs), strict=True))
    for what, arrays in (("inputs", inputs), ("expected", answers)):
        write_npz(folder / f"{what}.npz", arrays)
    return Question(model, folder / "inputs.npz", folder / "expected.npz")


def run_whole(question: Question, requests: int, device: Device | None = None) -> list[float]:
    """Return the seconds of unsplit onnxruntime on a device, or here; none where there is too little memory for it."""
    command = [sys.executable, "-m", "fleet.whole", question.model, question.inputs, requests]
    run = device.run if device else subprocess.run
    done = run(list(map(str, command)), capture_output=True, text=True, cwd=_BENCH, check=False)
    return [float(seconds) for seconds in json.loads(done.stdout)] if done.returncode == 0 else []


@contextlib.contextmanager
def fleet(
    plan: Path, names: Sequence[str], devices: Mapping[str, Device], folder: Path, choices: Choices | None = None
) -> Iterator[Fleet]:
    """Run a manager for the plan, and a node on each of the named devices, for the block.

    Nodes find the plan's files where the manager does: sending them over the emulated links would take minutes.

    Raises:
        RuntimeError: a process ended, or not all is loaded in time; says what was said last.
    """
    chosen = choices or Choices()
    folder.mkdir(parents=True, exist_ok=True)
    address = f"tcp://{devices[MANAGER].address}:{_PORT}"
    lab = ["--insecure-lab"]
    with contextlib.ExitStack() as stack:
        manager = [_BIN / "hyps-manager", plan, "--bind", address, "--fixed", *lab, *chosen.manager]
        processes = {MANAGER: stack.enter_context(_running(devices[MANAGER], manager, folder))}
        for name in names:
            own = [*chosen.node, *chosen.own.get(name, ())]
            node = [_BIN / "hyps-worker", plan, "--manager", address, "--device", name, "--threads", 1, *lab, *own]
            processes[name] = stack.enter_context(_running(devices[name], node, folder))
        made = Fleet(address, devices, processes, folder)
        _await_ready(made)
        yield made


def ask(made: Fleet, question: Question, **told: Any) -> Asked:
    """Ask from the manager's device; `told` are fields of `Job`.

    Raises:
        RuntimeError: a request failed, or was answered wrongly.
    """
    inputs, expected = str(question.inputs), str(question.expected)
    job = Job(address=made.address, inputs=inputs, expected=expected, tolerance=question.tolerance, **told)
    path = made.folder / "job.json"
    path.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", "fleet.asking", path]
    done = made.devices[MANAGER].run(command, capture_output=True, text=True, cwd=_BENCH)
    if done.returncode != 0:
        raise RuntimeError(f"asking failed: {done.stderr.strip()}\n{_said(made)}")
    return msgspec.json.decode(done.stdout, type=Asked)


@contextlib.contextmanager
def _running(device: Device, command: Sequence[Any], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{device.name}.log").open("wb") as log:
        process = device.popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(made: Fleet) -> None:
    """Wait until requests find a course on which every partition is loaded."""
    deadline_s = time.monotonic() + _READY_S
    command = [sys.executable, "-m", "fleet.readiness", made.address, _READY_S]
    with made.devices[MANAGER].popen(command, cwd=_BENCH, stderr=subprocess.PIPE, text=True) as waiting:
        while waiting.poll() is None:
            ended = [name for name, process in made.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline_s:
                waiting.kill()
                raise RuntimeError(f"{', '.join(ended) or 'nothing'} ended, and not all is ready\n{_said(made)}")
            time.sleep(0.05)
        if waiting.returncode != 0:
            assert waiting.stderr is not None
            raise RuntimeError(f"not all is ready: {waiting.stderr.read().strip()}\n{_said(made)}")


def _said(made: Fleet) -> str:
    """Return what the processes said last."""
    logs = {path.stem: path.read_text(errors="replace").strip().splitlines() for path in made.folder.glob("*.log")}
    return "\n".join(f"{name}: {line}" for name, lines in sorted(logs.items()) for line in lines[-8:])
