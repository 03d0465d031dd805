"""A worker that is watched as operators watch it: `hypsc status`, a scrape, its log."""

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hyps
from command_fixtures import Finished, Running, run_command, started
from exposition_parser import parse
from hyps.observer import observe
from plan_fixtures import sharded

pytestmark = pytest.mark.network

FLOW = sharded()
WAIT_S = 20.0
CLOCK_US = 50_000
"""By which times of two processes on a busy machine may differ in a trace."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    FLOW.write(tmp_path / "here" / "plan")
    return tmp_path / "here"


def log_of(running: Running, message: str) -> dict[str, Any]:
    """Wait for a line of the log, all of which are JSON."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        whole = running.stderr_so_far().rpartition("\n")[0]
        for line in whole.splitlines():
            told: dict[str, Any] = json.loads(line)
            if told["message"].startswith(message):
                return told
        time.sleep(0.02)
    raise AssertionError(running.stderr_so_far())


@contextmanager
def worker(folder: Path, *args: str) -> Iterator[tuple[Running, str]]:
    command = ["hyps-worker", "plan", "--bind", "tcp://127.0.0.1:0", "--log-format", "json", "--threads", "1", *args]
    with started(command, folder) as running:
        yield running, log_of(running, "serving at")["message"].split()[2].rstrip(":")


@contextmanager
def cluster(folder: Path, *args: str) -> Iterator[tuple[Running, str]]:
    """A manager and the one device of its plan."""
    command = ["hyps-manager", "plan", "--bind", "tcp://127.0.0.1:0", "--log-format", "json", *args]
    with started(command, folder) as manager:
        address = log_of(manager, "serving at")["message"].split()[2].rstrip(":")
        there = folder.parent / "device"
        there.mkdir()
        join = ["hyps-worker", "--manager", address, "--device", "local", "--threads", "1", "--cache", "cache"]
        with started([*join, "--log-format", "json"], there) as node:
            log_of(node, "joined the manager")
            yield manager, address


def watch(folder: Path, *args: str) -> Finished:
    there = folder.parent / "there"
    there.mkdir(exist_ok=True)
    return run_command(["hypsc", "status", *args], there)


def test_the_log_the_status_and_the_metrics_tell_the_same(folder: Path) -> None:
    with worker(folder, "--metrics", "127.0.0.1:0", "--device", "pi") as (running, address):
        with hyps.InferenceSession(address) as session:
            for seed in range(5):
                session.run(None, FLOW.feeds(seed=seed))
        told = json.loads(watch(folder, address, "--json").stdout)
        url = log_of(running, "metrics at")["message"].split()[2]
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            metrics = parse(answer.read().decode())
        running.process.terminate()
        finished = running.finish()
    assert finished.status == 0
    assert (told["role"], told["device"], told["requests"]["done"]) == ("worker", "pi", 5)
    assert {partition["run"]["n"] for partition in told["partitions"]} == {5}
    assert metrics["hyps_requests_done_total"].value() == 5
    assert metrics["hyps_request_duration_seconds"].value("_count") == 5
    assert metrics["hyps_node_items_total"].value(device="pi", group="") == 5
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert {line["device"] for line in lines} == {"pi"}
    assert lines[-1]["message"] == "leaving after 0 accepted requests"


def test_at_once_printed_for_people(folder: Path) -> None:
    with worker(folder) as (_, address):
        finished = watch(folder, address)
    assert finished.status == 0
    assert finished.stdout.startswith(f"worker at {address} ")
    assert all(piece.id in finished.stdout for piece in FLOW.pieces)


def test_metrics_for_other_machines_are_refused_without_a_word_for_it(folder: Path) -> None:
    command = ["hyps-worker", "plan", "--bind", "tcp://127.0.0.1:0", "--metrics", "0.0.0.0:0"]
    finished = run_command(command, folder)
    assert finished.status == 2
    assert finished.error == "metrics at `0.0.0.0:0` could be read by other machines [E_INSECURE]"


def test_quiet_in_json_is_silent(folder: Path) -> None:
    address = f"ipc://{folder}/socket"
    with started(["hyps-worker", "plan", "--bind", address, "--log-format", "json", "-q"], folder) as quiet:
        with observe(address) as observer:
            assert observer.ask(WAIT_S).state == "serving"
        quiet.process.terminate()
        finished = quiet.finish()
    assert (finished.status, finished.stderr) == (0, "")


def test_a_manager_tells_of_its_devices_in_every_way(folder: Path) -> None:
    with cluster(folder, "--metrics", "127.0.0.1:0") as (manager, address):
        with hyps.InferenceSession(address) as session:
            for seed in range(5):
                session.run(None, FLOW.feeds(seed=seed))
        time.sleep(1.0)
        told = json.loads(watch(folder, address, "--json").stdout)
        shown = watch(folder, address).stdout
        with urllib.request.urlopen(log_of(manager, "metrics at")["message"].split()[2], timeout=WAIT_S) as answer:
            metrics = parse(answer.read().decode())
    assert (told["role"], told["requests"]["done"], told["requests"]["latency"]["n"]) == ("manager", 5, 5)
    (node,) = told["nodes"]
    assert (node["device"], node["state"], node["items_done"]) == ("local", "serving", 5 * len(FLOW.pieces))
    assert node["resident_nbytes"] > 10_000_000
    assert {partition["run"]["n"] for partition in told["partitions"]} == {5}
    assert any(line.startswith("local ") and " serving " in line for line in shown.splitlines())
    assert metrics["hyps_node_items_total"].value(device="local", group="") == 5 * len(FLOW.pieces)
    assert metrics["hyps_partition_run_seconds"].value("_count", partition=FLOW.pieces[0].id) == 5


def test_a_killed_manager_leaves_a_trace_of_every_request(folder: Path) -> None:
    with cluster(folder, "--trace", "trace.json") as (manager, address):
        with hyps.InferenceSession(address) as session:
            for seed in range(20):
                session.run(None, FLOW.feeds(seed=seed))
        deadline_s = time.monotonic() + WAIT_S
        while (folder / "trace.json").read_text().count('"compute"') < 20 * len(FLOW.pieces):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        manager.process.kill()
        manager.finish()
    text = (folder / "trace.json").read_text()
    assert not text.endswith("]\n")
    events = json.loads(text + "]")
    requests = [e for e in events if e["ph"] == "b" and e["cat"] == "request" and e["name"] != "queue"]
    assert {event["args"]["outcome"] for event in requests} == {"done"}
    assert len(requests) == 20
    works = Counter(event["args"]["work"] for event in events if event["ph"] == "X" and event["cat"] == "compute")
    assert set(works) == {event["args"]["work"] for event in requests}
    assert set(works.values()) == {len(FLOW.pieces)}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "e" and e["cat"] == "request"}
    begins = {event["args"]["work"]: (event["ts"], ends[event["id"]]) for event in requests}
    for event in events:
        if event["ph"] == "X" and event["cat"] == "compute":
            begin, end = begins[event["args"]["work"]]
            assert begin - CLOCK_US <= event["ts"] <= event["ts"] + event["dur"] <= end + CLOCK_US
