"""Measures cuts on an emulated cluster: real workers, real links, requests in turns."""

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from testbed import Device
from truth.clusters import DEVICE, SERVER
from truth.job import Job, Part, Way, encode_job
from truth.plans import Sides

_FIRST_PORT = 5757
_BENCH = Path(__file__).parent.parent
_WARM_UP = 1
_WORKER = Path(sys.executable).with_name("hyps-worker")


@dataclass(frozen=True, slots=True)
class Samples:
    """Microseconds of every request of one cut, in the order in which they were made."""

    whole_us: list[int]
    head_us: list[int]


def measure_cuts(
    model: str, sides: Mapping[str, Sides], devices: Mapping[str, Device], folder: Path, *, rounds: int, repeats: int
) -> dict[str, Samples]:
    """Return what requests took, by cut.

    Every tail has a worker of its own on the server, every head is loaded in one program on the device; nothing is
    started or loaded while time is taken. In each round the cuts come in a new order, each with a request that does not
    count and `repeats` that do, one after another.

    Args:
        model: name of the reference model.
        sides: plan folders by the name of the cut; of one of them the device runs everything.
        devices: of the testbed.
        folder: to work in.
        rounds: how often each cut has its turn.
        repeats: requests in a turn.
    """
    with contextlib.ExitStack() as stack:
        parts = _serve(sides, devices[SERVER], stack)
        (folder / "job.json").write_bytes(encode_job(Job(model, _uncut(sides), parts)))
        ask = stack.enter_context(_program(devices[DEVICE], folder / "job.json"))
        samples = {name: Samples([], []) for name in sides}
        order, shuffler = list(sides), random.Random(0)
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                for whole_us, head_us in ask(name, _WARM_UP + repeats)[_WARM_UP:]:
                    samples[name].whole_us.append(whole_us)
                    samples[name].head_us.append(head_us)
    return samples


def measure_way(plan: Path, devices: Mapping[str, Device]) -> Way:
    """Return what the way costs between the device and a worker on the server that serves an empty plan."""
    with contextlib.ExitStack() as stack:
        parts = _serve({"": Sides(None, plan)}, devices[SERVER], stack)
        command = [sys.executable, "-m", "truth.link", parts[""].tail]
        done = devices[DEVICE].run(command, capture_output=True, text=True, cwd=_BENCH)
    if done.returncode != 0:
        raise RuntimeError(f"the link could not be measured: {done.stderr}")
    return msgspec.json.decode(done.stdout, type=Way)


def _uncut(sides: Mapping[str, Sides]) -> str:
    return next(name for name, side in sides.items() if side.tail is None)


def _serve(sides: Mapping[str, Sides], server: Device, stack: contextlib.ExitStack) -> dict[str, Part]:
    """Start a worker for every tail, and return where each cut's sides are."""
    addresses = {
        name: f"tcp://{server.address}:{_FIRST_PORT + place}"
        for place, name in enumerate(name for name, side in sides.items() if side.tail is not None)
    }
    for name, address in addresses.items():
        command = [_WORKER, sides[name].tail, "--bind", address, "--threads", 1, "--insecure-lab"]
        process = server.popen(command, stderr=subprocess.PIPE, text=True)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        _await_line(process, "serving at")
    heads = {name: None if side.head is None else str(side.head) for name, side in sides.items()}
    return {name: Part(heads[name], addresses.get(name)) for name in sides}


def _await_line(process: "subprocess.Popen[str]", begin: str) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        if line.startswith(begin):
            return
        said.append(line)
    raise RuntimeError(f"a worker ended: {''.join(said)}")


@contextlib.contextmanager
def _program(device: Device, job: Path) -> Iterator[Callable[[str, int], list[tuple[int, int]]]]:
    """Run the program on the device for the block, and yield how to ask it for requests of a cut."""
    command = [sys.executable, "-m", "truth.device", job]
    process = device.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_BENCH)
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None

    def ask(name: str, count: int) -> list[tuple[int, int]]:
        questions.write(f"{name} {count}\n")
        questions.flush()
        return [(whole, head) for whole, head in json.loads(answers.readline())]

    with process, contextlib.closing(questions):
        if answers.readline() != "ready\n":
            raise RuntimeError("the program on the device ended")
        yield ask
