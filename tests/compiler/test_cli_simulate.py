"""`hypsc simulate`: the summary, the files, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hyps.formats.plan import encode_plan
from hyps_compiler.cli import main
from simulation_fixtures import plan

CLUSTER = """
[[devices]]
name = "camera"
[[devices]]
name = "server"
tier = "edge"
[[links]]
between = ["camera", "server"]
up = "1MB/s"
down = "2MB/s"
latency = "5ms"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan, and the cluster that it is for."""
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_bytes(encode_plan(plan()))
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["simulate", "plan", *args], prog_name="hypsc")
    assert result.exit_code == status, result.output
    return result


def told(*args: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(call("--cluster", "cluster.toml", "--json", *args).stdout)
    return document


@pytest.mark.usefixtures("here")
def test_the_summary_says_latency_throughput_and_use_in_80_columns() -> None:
    lines = call("--cluster", "cluster.toml", "--requests", "100", "--in-flight", "4").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "answered:   100, refused 0, at most 4 in flight" in lines
    assert "predicted:  74 ms a request alone, 25 requests/s" in lines
    assert any(line.startswith("server ") and "200 runs" in line for line in lines)
    assert "the first 6 requests, by their numbers" in lines


@pytest.mark.usefixtures("here")
def test_one_at_a_time_takes_what_the_plan_predicts() -> None:
    document = told("--requests", "50")
    assert document["latency"]["p50_s"] == pytest.approx(0.07402)
    assert document["latency"]["max_s"] == pytest.approx(0.07402)
    assert document["throughput_rps"] == pytest.approx(1 / 0.07402)
    assert document["most_in_flight"] == 1
    server = next(use for use in document["devices"] if use["name"] == "server")
    assert server["utilization"] == pytest.approx(0.04 / 0.07402)


@pytest.mark.usefixtures("here")
def test_many_in_flight_reach_the_throughput_of_the_slowest_device() -> None:
    assert told("--requests", "2000", "--in-flight", "8")["throughput_rps"] == pytest.approx(25, rel=0.01)


@pytest.mark.usefixtures("here")
def test_a_rate_that_the_cluster_file_names_is_used(here: Path) -> None:
    (here / "cluster.toml").write_text(f"arrival = 10.0\n{CLUSTER}")
    assert told()["load"] == "10 requests/s at random moments"
    assert told("--in-flight", "3")["load"] == "3 requests in flight"


@pytest.mark.usefixtures("here")
def test_what_finds_no_room_is_counted_as_refused() -> None:
    document = told("--rate", "100", "--even", "--in-flight", "2", "--queue", "3", "--requests", "200")
    assert document["refused"] > 100
    assert document["answered"] + document["refused"] == 200
    assert document["most_waiting"] == 3


def test_two_runs_with_one_seed_are_the_same_byte_for_byte(here: Path) -> None:
    args = ["--rate", "20", "--jitter", "0.2", "--seed", "5", "--requests", "300"]
    outputs = []
    for name in ("one", "two"):
        files = ("--trace", f"{name}.json", "--gantt", f"{name}.svg")
        outputs.append(call("--cluster", "cluster.toml", *args, *files).stdout)
    assert outputs[0] == outputs[1]
    for suffix in (".json", ".svg"):
        assert (here / f"one{suffix}").read_bytes() == (here / f"two{suffix}").read_bytes()
    assert told(*args) != told(*args[:-4], "--seed", "6", "--requests", "300")


def test_the_trace_and_the_picture_hold_the_first_requests(here: Path) -> None:
    call("--cluster", "cluster.toml", "--trace", "t.json", "--gantt", "g.svg", "--traced", "7", "--requests", "50")
    events = json.loads((here / "t.json").read_text())["traceEvents"]
    assert {event["args"]["request"] for event in events if event["ph"] == "X"} == set(range(7))
    assert (here / "g.svg").read_text().startswith("<svg ")
    assert "exists" in call("--cluster", "cluster.toml", "--trace", "t.json", status=1).stderr
    call("--cluster", "cluster.toml", "--trace", "t.json", "--force", "--requests", "1")


def test_faults_and_a_bandwidth_trace_are_played(here: Path) -> None:
    (here / "walk.csv").write_text("1, camera to server, 100kB/s\n2, camera to server, 1MB/s\n")
    document = told("--bandwidth-trace", "walk.csv", "--down", "server:3s-3.5s", "--switch", "--requests", "100")
    assert document["redone"] == 1
    assert document["variants"]["local"] > 1
    assert document["answered"] == 100
    assert document["latency"]["max_s"] > 0.5


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("--variant", "x"), 2, "the plan has no variant `x`"),
        (("--switch", "--variant", "best"), 2, "--switch and --variant cannot be given together"),
        (("--even",), 2, "--even is about requests that arrive"),
        (("--queue", "3", "--rate", "1"), 2, "--queue is about requests that wait"),
        (("--down", "gone:1s-2s"), 2, "`gone` is neither a device nor a link"),
        (("--down", "server"), 2, "is no NAME:FROM-TO"),
        (("--load-rate", "fast"), 2, "`fast` is no rate"),
        (("--rate", "0"), 2, "invalid value"),
        (("--bandwidth-trace", "gone.csv"), 2, "trace `gone.csv` cannot be read"),
        (("--trace", "no/where.json"), 1, "the folder of `no/where.json` does not exist"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_simulated_is_said_in_a_sentence(args: tuple[str, ...], status: int, message: str) -> None:
    result = call("--cluster", "cluster.toml", *args, status=status)
    assert message in result.stderr.splitlines()[0]
    assert result.stdout == ""


@pytest.mark.usefixtures("here")
def test_a_plan_or_cluster_that_is_not_there_is_refused() -> None:
    assert "needs several devices" in call(status=2).stderr
    assert "does not exist" in call("--cluster", "gone.toml", status=1).stderr


def test_a_plan_without_times_says_how_to_get_them(here: Path) -> None:
    (here / "plan" / "plan.json").write_bytes(encode_plan(plan(seconds={})))
    result = call("--cluster", "cluster.toml", status=1)
    assert "does not say how long partition `p0` takes in variant `best`" in result.stderr
    assert "hypsc compile MODEL -o PLAN --cluster C" in result.stderr
