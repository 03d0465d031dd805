"""Minutes of mixed clients against a manager and two workers, and whether anything grows or goes wrong.

A network in four V-partitions alternates between two workers. Clients ask one request after another, in bursts, with
deadlines that are too near, withdraw what they asked for, stop reading in the middle of their answers, and are killed;
every answer is compared with unsplit onnxruntime's. Once a second memory, descriptors and threads of manager and
workers are sampled. It fails (status 1) when an answer is wrong, when a request fails without a reason that its client
gave, when a process ends, or when something grows by more than `soak.growth` allows.

    python -m soak --minutes 30                           # in bench/; light: some requests a second
    python -m soak --minutes 10 --kill                    # and a worker is killed and restarted every minute
"""

import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import onnxruntime as ort

import hyps
import hyps_models
from common import load, machine, write_results
from fleet.plans import Model, layer_names, read_model, write_plan
from hyps.errors import HypsError
from hyps.terminal import table
from hyps_compiler.arrays import write_npz
from soak import cluster
from soak.cluster import Member
from soak.growth import Growth, growth_of, unexpected
from soak.sampling import QUANTITIES, Series
from soak.tally import tally_of

KINDS = ("sync", "sync", "async", "slow", "cancelling", "deadlines", "dying")
ALLOWED = frozenset({"E_BUSY", "E_DEADLINE"})
ALLOWED_WHEN_STOPPED = frozenset({"E_PEER"})
"""Of the client that is stopped for longer than a connection may be silent."""
ADDRESS = "tcp://127.0.0.1:5791"
MODEL, BORDERS = "mobilenetv2", 3
QUESTIONS = 4

_KILL_EVERY_S, _RESTART_AFTER_S = 60.0, 2.0
_STOP_EVERY_S, _STOPPED_S = 20.0, 3.0
_READY_S = 60.0


@dataclass(slots=True)
class Soak:
    """What runs, and what was seen."""

    folder: Path
    manager: Member
    workers: list[Member]
    clients: list[Member]
    series: list[Series] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kills: int = 0
    start_s: float = 0.0

    @property
    def at_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start_s


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--kill", "kills", is_flag=True, help="Kill a worker every minute, and start it again.")
@click.option("--pause", default=0.4, show_default=True, help="Mean seconds between a client's requests.")
@click.option("--keep", type=click.Path(path_type=Path), help="Work in this new folder and leave it.")
def main(minutes: float, kills: bool, pause: float, keep: Path | None) -> None:
    """Run, and say what grew or went wrong."""
    with tempfile.TemporaryDirectory(prefix="hyps-soak-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        soak = prepare(folder, pause)
        begin_load = load()
        try:
            run(soak, minutes * 60, kills)
        finally:
            statuses = {member.name: member.stop() for member in (*soak.clients, *soak.workers, soak.manager)}
        told = judge(soak, statuses, kills)
        told |= {"minutes": minutes, "load": [begin_load, load()]}
        write_results("soak-kill" if kills else "soak", {"machine": machine(), **told})
        print(show(told))
    sys.exit(1 if told["problems"] else 0)


def prepare(folder: Path, pause_s: float) -> Soak:
    """Make model, plan and questions; nothing is started."""
    model = folder / "model.onnx"
    hyps_models.save(MODEL, model)
    (folder / "staging").mkdir()
    (folder / "questions").mkdir()
    prepared = read_model(model, folder / "staging")
    graph_names = spread_layers(prepared)
    plan = folder / "plan"
    write_plan(prepared, plan, lambda part: f"w{1 + int(part.id[1:]) % 2}", behind=graph_names)
    write_questions(model, folder / "questions")
    clients = [
        cluster.client(kind, index, ADDRESS, folder / "questions", pause_s, folder) for index, kind in enumerate(KINDS)
    ]
    workers = [cluster.worker(name, plan, ADDRESS, folder) for name in ("w1", "w2")]
    return Soak(folder, cluster.manager(plan, ADDRESS, folder), workers, clients)


def spread_layers(model: Model) -> list[str]:
    """Return layers behind which the model is cut into parts of about as many layers."""
    names = layer_names(model)
    return [names[len(names) * (index + 1) // (BORDERS + 1)] for index in range(BORDERS)]


def write_questions(model: Path, folder: Path) -> None:
    """Write some requests, each with unsplit onnxruntime's answer."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rng = np.random.default_rng(0)
    for index in range(QUESTIONS):
        inputs = {
            name: rng.normal(size=array.shape).astype(array.dtype)
            for name, array in hyps_models.sample_inputs(MODEL).items()
        }
        answers = {f"expected:{name}": array for name, array in zip(names, session.run(names, inputs), strict=True)}
        write_npz(folder / f"{index}.npz", inputs | answers)


def run(soak: Soak, seconds: float, kills: bool) -> None:
    """Start everything, sample once a second, disturb, until the time is over or a process has ended by itself."""
    soak.start_s = time.monotonic()
    for member in (soak.manager, *soak.workers):
        soak.series.append(Series(member.name, member.start()))
    await_ready(soak)
    for member in soak.clients:
        member.start()
    soak.start_s = time.monotonic()
    troubles = disturbances(soak, seconds if kills else 0.0)
    while soak.at_s < seconds and not soak.problems:
        time.sleep(1.0)
        next(troubles)
        for series in soak.series:
            series.take(soak.at_s)
        revive(soak)


def disturbances(soak: Soak, kills_until_s: float) -> Iterator[None]:
    """Stop a client now and then, and kill workers in turn while they can come back; each step looks what is due."""
    slow = next(member for member in soak.clients if member.name.startswith("slow"))
    victims = itertools.cycle(soak.workers)
    kill_s, stop_s = _KILL_EVERY_S, _STOP_EVERY_S
    resume_s = restart_s = float("inf")
    victim = soak.workers[0]
    while True:
        if soak.at_s > stop_s and slow.process is not None:
            os.kill(slow.process.pid, signal.SIGSTOP)
            stop_s, resume_s = stop_s + _STOP_EVERY_S, soak.at_s + _STOPPED_S
        if soak.at_s > resume_s and slow.process is not None:
            os.kill(slow.process.pid, signal.SIGCONT)
            resume_s = float("inf")
        if kill_s < soak.at_s < kills_until_s - _KILL_EVERY_S / 2:
            victim = next(victims)
            victim.kill()
            soak.kills += 1
            kill_s, restart_s = kill_s + _KILL_EVERY_S, soak.at_s + _RESTART_AFTER_S
        if soak.at_s > restart_s:
            soak.series.append(Series(victim.name, victim.start()))
            restart_s = float("inf")
        yield


def revive(soak: Soak) -> None:
    """Start dying clients again; note whoever else has ended by itself."""
    for member in soak.clients:
        if not member.is_alive:
            if member.name.startswith("dying"):
                member.start()
            else:
                soak.problems.append(f"{member.name} ended: {last_words(soak.folder / f'client-{member.name}.log')}")
    known = {series.name: series.pid for series in soak.series}
    for member in (soak.manager, *soak.workers):
        killed = member.process is not None and member.process.returncode == -signal.SIGKILL
        if not member.is_alive and not killed:
            said = last_words(soak.folder / f"{member.name}.log")
            soak.problems.append(f"{member.name} ({known[member.name]}) ended: {said}")


def await_ready(soak: Soak) -> None:
    """Wait until a request is answered.

    Raises:
        RuntimeError: none is in time.
    """
    deadline_s = time.monotonic() + _READY_S
    told = dict(np.load(soak.folder / "questions" / "0.npz"))
    inputs = {name: array for name, array in told.items() if not name.startswith("expected:")}
    last = ""
    while time.monotonic() < deadline_s:
        try:
            with hyps.InferenceSession(ADDRESS) as session:
                session.run(None, inputs)
            return
        except HypsError as error:
            last = error.message
            time.sleep(0.2)
    raise RuntimeError(f"nothing is answered: {last}; {last_words(soak.folder / 'manager.log')}")


def judge(soak: Soak, statuses: dict[str, int], kills: bool) -> dict[str, Any]:
    """Return what was seen, with all that is wrong in it under `problems`."""
    problems = list(soak.problems)
    tallies = {member.name: tally_of(soak.folder / f"client-{member.name}.log") for member in soak.clients}
    for name, tally in tallies.items():
        allowed = ALLOWED | (ALLOWED_WHEN_STOPPED if name.startswith("slow") else frozenset())
        if tally.wrong:
            problems.append(f"{name} got {tally.wrong} wrong answers")
        if odd := unexpected(tally.failed, allowed):
            problems.append(f"requests of {name} failed: {odd}")
        if not tally.done:
            problems.append(f"{name} got no answer")
    ended = {name: status for name, status in statuses.items() if name in ("manager", "w1", "w2")}
    problems += [f"{name} ended with status {status}" for name, status in ended.items() if status != 0]
    grown = []
    for series in soak.series:
        for what in QUANTITIES:
            growth = growth_of(what, series.samples[what])
            if growth is not None:
                grown.append({"process": series.name, "pid": series.pid, **as_dict(growth)})
                if growth.is_too_much and not (kills and series.name != "manager"):
                    problems.append(f"{what} of {series.name} grew from {growth.early:.4g} to {growth.late:.4g}")
    return {
        "problems": problems,
        "kills": soak.kills,
        "clients": {name: msgspec.to_builtins(tally) for name, tally in tallies.items()},
        "growth": grown,
        "samples": [{"process": series.name, "pid": series.pid, **thinned(series)} for series in soak.series],
    }


def as_dict(growth: Growth) -> dict[str, Any]:
    """Return a growth's figures."""
    return {"what": growth.what, "early": growth.early, "late": growth.late, "per_hour": growth.per_hour}


def thinned(series: Series, every: int = 10) -> dict[str, list[tuple[float, float]]]:
    """Return each tenth sample."""
    return {what: [(round(at, 1), value) for at, value in samples[::every]] for what, samples in series.samples.items()}


def last_words(log: Path) -> str:
    """Return the end of a log."""
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-6:])


def show(told: dict[str, Any]) -> str:
    """Return what was seen as tables."""
    clients = [
        (name, c["done"], c["wrong"], c["withdrawn"], json.dumps(c["failed"]), f"{c['longest_s']:.2f}")
        for name, c in told["clients"].items()
    ]
    first = table(clients, ("client", "answered", "wrong", "withdrawn", "failed", "longest s"), "lrrrlr", 120)
    grown = [
        (g["process"], g["what"], f"{g['early']:,.0f}", f"{g['late']:,.0f}", f"{g['per_hour']:,.1f}")
        for g in told["growth"]
        if not told["kills"] or g["process"] == "manager"
    ]
    second = table(grown, ("process", "what", "early", "late", "an hour"), "llrrr", 120)
    end = "\n".join(told["problems"]) or "nothing wrong"
    return f"{first}\n\n{second}\n\n{told['minutes']:g} minutes, {told['kills']} kills: {end}"


if __name__ == "__main__":
    main()
