"""Testbeds do what they are told, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

import hyps_models
import testbed
from hyps.errors import UsageError
from hyps.formats.cluster import decode_cluster
from hyps.formats.plan import Variant, encode_plan
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from testbed import SWITCH, Layout, Machine, Wire
from testbed.clusters import cores_used, layout_of
from testbed.network import namespaces_of, wiring

_MISSING = testbed.missing()
_MISSING_TO_PACE = _MISSING or testbed.missing_to_pace()
_MISSING_TO_DELAY = _MISSING or testbed.missing_to_delay()
needs_root = pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "never")
needs_pacing = pytest.mark.skipif(bool(_MISSING_TO_PACE), reason=_MISSING_TO_PACE or "never")
needs_delays = pytest.mark.skipif(bool(_MISSING_TO_DELAY), reason=_MISSING_TO_DELAY or "never")

_RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 9000))
print("listening", flush=True)
connection, _ = server.accept()
total, start = len(connection.recv(1)), time.perf_counter()
while data := connection.recv(1 << 20):
    total += len(data)
print(total / (time.perf_counter() - start))
"""
_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000)) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
"""
_ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 9000))
print("listening", flush=True)
connection, _ = server.accept()
while data := connection.recv(1):
    connection.sendall(data)
"""
_ASK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 9000)) as connection:
    for _ in range(int(sys.argv[2])):
        start_s = time.perf_counter()
        connection.sendall(b"x")
        connection.recv(1)
        print(time.perf_counter() - start_s)
"""
_WORK = """
import sys, time
for _ in range(int(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    sum(range(int(sys.argv[3])))
    print((time.process_time() - start_cpu_s) / (time.perf_counter() - start_s))
"""
"""Prints the share of a core's time that each piece of work got."""


@pytest.mark.parametrize(
    ("machines", "wires", "named"),
    [
        ({}, (), "1 to 250"),
        ({"Camera 1": Machine()}, (), "Camera 1"),
        ({SWITCH: Machine()}, (), SWITCH),
        ({"a": Machine(0)}, (), "above 0"),
        ({"a": Machine(0.01, core=0)}, (), "less than"),
        ({"a": Machine(0.5, core=0), "b": Machine(core=0)}, (), "shares its core"),
        ({"a": Machine()}, (Wire("a", "z"),), "`z`"),
        ({"a": Machine()}, (Wire("a", "a"),), "none to itself"),
        ({"a": Machine(), "b": Machine()}, (Wire("a", "b"), Wire("b", "a")), "one wire at most"),
        ({"a": Machine(), "b": Machine()}, (Wire("a", "b", -1.0),), "above 0"),
        ({"a": Machine(), "b": Machine()}, (Wire("a", "b", delay_s=-1e-3),), "delay"),
        ({"a": Machine(), "b": Machine()}, (Wire("a", "b", delay_s=60.0),), "delay"),
    ],
)
def test_impossible_layouts_are_refused(machines: dict[str, Machine], wires: tuple[Wire, ...], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Layout(machines, wires)


def test_each_direction_of_a_wire_has_its_own_rate() -> None:
    layout = Layout({"a": Machine(), "b": Machine()}, (Wire("a", "b", 1e6, 2e6),))

    shaped = {command[2]: command[command.index("rate") + 1] for command in _wiring(layout) if command[0] == "tc"}

    assert shaped == {"ns-a": "8000000bit", "ns-b": "16000000bit"}


def test_a_cluster_file_becomes_machines_and_wires() -> None:
    text = """
        [defaults]
        memory = "512MB"
        [[devices]]
        name = "camera"
        speed = 0.5
        load = 0.5
        [[devices]]
        name = "edge"
        memory = "1GB"
        [[links]]
        between = ["camera", "edge"]
        up = "8Mbit/s"
        down = "80Mbit/s"
        latency = "28ms"
    """

    layout = layout_of(decode_cluster(text), scale=0.8)

    assert layout.machines == {"camera": Machine(0.2, 512_000_000), "edge": Machine(0.8, 1_000_000_000)}
    assert layout.wires == (Wire("camera", "edge", 1e6, 1e7, 0.028),)
    assert cores_used(layout) == pytest.approx(1.0)


def test_more_devices_than_cores_cannot_be_paced() -> None:
    devices = "".join(f'[[devices]]\nname = "d{index}"\n' for index in range(1 + len(os.sched_getaffinity(0))))
    cluster = decode_cluster(f'[defaults]\nup = "1Mbit/s"\n{devices}')

    with pytest.raises(UsageError, match="cannot have a core each"):
        layout_of(cluster, paced=True)


def test_a_layout_has_a_switch_only_where_a_wire_ends_at_it() -> None:
    machines = {"a": Machine(), "b": Machine()}

    assert namespaces_of(Layout(machines, (Wire("a", "b"),))) == ("a", "b")
    assert namespaces_of(Layout(machines, (Wire("a", SWITCH),))) == ("a", "b", SWITCH)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("bytes_per_s", [2e6, 20e6])
def test_a_transfer_reaches_the_rate_of_its_wire_and_no_more(bytes_per_s: float) -> None:
    layout = Layout({"a": Machine(), "b": Machine()}, (Wire("a", "b", bytes_per_s, 1e9),))

    with testbed.build(layout) as devices:
        forth = max(_measured_rate(devices["a"], devices["b"], int(bytes_per_s / 2)) for _ in range(3))
        back = _measured_rate(devices["b"], devices["a"], int(bytes_per_s / 2))

    assert 0.9 * bytes_per_s < forth <= bytes_per_s
    assert back > 2 * bytes_per_s, "the other direction has a rate of its own"


@pytest.mark.root
@needs_delays
@pytest.mark.parametrize("delay_s", [1e-3, 28e-3])
def test_a_delayed_wire_takes_its_delay_both_ways_and_little_more(delay_s: float) -> None:
    layout = Layout({"a": Machine(), "b": Machine()}, (Wire("a", "b", 10e6, delay_s=delay_s),))

    with testbed.build(layout) as devices:
        took_s = sorted(_round_trips(devices["a"], devices["b"], 60))

    assert took_s[0] >= 2 * delay_s
    assert took_s[len(took_s) // 4] < 2 * delay_s + 2e-3, "a quarter is let off, for what else runs here"


@pytest.mark.root
@needs_delays
def test_a_delayed_wire_keeps_its_rate() -> None:
    layout = Layout({"a": Machine(), "b": Machine()}, (Wire("a", "b", 20e6, 1e9, delay_s=2e-3),))

    with testbed.build(layout) as devices:
        forth = max(_measured_rate(devices["a"], devices["b"], 20_000_000) for _ in range(3))
        back = max(_measured_rate(devices["b"], devices["a"], 50_000_000) for _ in range(3))

    assert 0.85 * 20e6 < forth <= 20e6
    assert back > 60e6, "half a gigabit is no trouble"


@pytest.mark.root
@needs_delays
def test_a_delayed_wire_may_end_at_a_switch() -> None:
    wires = (Wire("a", SWITCH, delay_s=5e-3), Wire("b", SWITCH, delay_s=1e-3))

    with testbed.build(Layout({"a": Machine(), "b": Machine()}, wires)) as devices:
        took_s = min(_round_trips(devices["a"], devices["b"], 20))

    assert 12e-3 <= took_s < 16e-3


@pytest.mark.root
@needs_root
def test_machines_hand_packets_on_where_a_layout_says_so() -> None:
    wires = (Wire("a", "b"), Wire("b", "c"), Wire("c", "d"))
    layout = Layout({name: Machine() for name in "abcd"}, wires, is_forwarding=True)

    with testbed.build(layout) as devices:
        took_s = _round_trips(devices["a"], devices["d"], 3)

    assert len(took_s) == 3


@pytest.mark.root
@needs_root
def test_a_switch_joins_machines_each_at_its_own_rate() -> None:
    wires = (Wire("a", SWITCH, 2e6), Wire("b", SWITCH, 1e9), Wire("c", SWITCH, 1e9))

    with testbed.build(Layout({name: Machine() for name in "abc"}, wires)) as devices:
        slow = max(_measured_rate(devices["a"], devices["c"], 1_000_000) for _ in range(3))
        fast = _measured_rate(devices["b"], devices["c"], 2_000_000)

    assert 0.9 * 2e6 < slow <= 2e6
    assert fast > 10 * slow


@pytest.mark.root
@needs_root
def test_machines_without_a_wire_do_not_reach_each_other() -> None:
    with testbed.build(Layout({"a": Machine(), "b": Machine()})) as devices:
        done = devices["a"].run([sys.executable, "-c", _SEND, devices["b"].address, 1], capture_output=True, text=True)

    assert "unreachable" in done.stderr


@pytest.mark.alone
@pytest.mark.root
@needs_pacing
def test_a_paced_core_slows_work_by_its_factor_whether_the_device_rests_between_or_not() -> None:
    core = min(os.sched_getaffinity(0))

    with testbed.build(Layout({"a": Machine(0.25, core=core)})) as devices:
        busy, rested = _most_share(devices["a"], 25, 0.0, 1_000_000), _most_share(devices["a"], 25, 0.05, 1_000_000)

    assert 0.2 < busy < 0.32
    assert 0.2 < rested < 0.32


@pytest.mark.alone
@pytest.mark.root
@needs_root
def test_a_quota_slows_long_work_by_its_factor() -> None:
    with testbed.build(Layout({"a": Machine(0.25)})) as devices:
        share = _most_share(devices["a"], 2, 0.0, 20_000_000)

    assert 0.2 < share < 0.28


@pytest.mark.root
@needs_root
def test_a_machine_has_no_more_memory_than_it_is_given() -> None:
    command = [sys.executable, "-c", "print(len(bytearray(80_000_000)))"]

    with testbed.build(Layout({"small": Machine(memory_bytes=50_000_000), "large": Machine()})) as devices:
        small = devices["small"].run(command, capture_output=True)
        large = devices["large"].run(command, capture_output=True)

    assert small.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert large.returncode == 0


@pytest.mark.root
@needs_root
def test_nothing_is_left_when_the_block_ends_by_an_error() -> None:
    layout = Layout({"a": Machine(0.5, 10**9), "b": Machine()}, (Wire("a", SWITCH), Wire("b", SWITCH)))

    with pytest.raises(ZeroDivisionError), testbed.build(layout) as devices:
        _fail_on(devices["a"])

    assert not _traces(os.getpid())


@pytest.mark.root
@needs_delays
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_nothing_is_left_when_a_signal_ends_the_run(number: signal.Signals, status: int) -> None:
    process = _bed_in_a_process()

    process.send_signal(number)
    process.communicate(timeout=20)

    assert process.returncode in (status, -number)
    assert not _traces(process.pid)


@pytest.mark.root
@needs_delays
def test_what_a_killed_run_left_is_swept() -> None:
    process = _bed_in_a_process()
    process.kill()
    process.communicate(timeout=20)
    assert _traces(process.pid)

    done = subprocess.run([sys.executable, "-m", "testbed", "sweep"], cwd=_BENCH, check=True, **_TEXT)

    assert f"removed hyps-bed-{process.pid}" in done.stdout
    assert not _traces(process.pid)


@pytest.mark.root
@needs_delays
def test_a_relay_ends_with_a_run_that_is_killed() -> None:
    process = _bed_in_a_process()
    helpers = _children(process.pid)
    assert any("testbed.relay" in command for command in helpers.values())

    process.kill()
    process.communicate(timeout=20)

    deadline_s = time.monotonic() + 10
    while helpers and time.monotonic() < deadline_s:
        helpers = {pid: command for pid, command in helpers.items() if _command_of(pid) == command}
        time.sleep(0.05)
    testbed.sweep()
    assert not helpers


@pytest.mark.root
@needs_delays
def test_a_cluster_file_is_brought_up_and_programs_are_run_on_its_devices(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(_CLUSTER)
    inner = [sys.executable, "-m", "testbed", "run", "camera", "--", "ip", "route", "get", "{server}"]
    command = [sys.executable, "-m", "testbed", "up", str(tmp_path / "cluster.toml"), "--", *inner]

    done = subprocess.run(command, cwd=_BENCH, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "20 Mbit/s" in done.stderr
    assert "10.203.0.3 via 10.203.0.2" in done.stdout, "the server is behind the gateway"


@pytest.mark.root
@pytest.mark.network
@needs_delays
def test_a_plan_is_served_on_the_devices_of_a_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(_CLUSTER)
    hyps_models.save("digits", tmp_path / "model.onnx")
    options = Options(request=Request(cuts=("all",)), verify=False)
    plan = compile_model(tmp_path / "model.onnx", tmp_path / "plan", options).plan
    devices = ("camera", "gateway", "server")
    placement = {part.id: devices[index % 3] for index, part in enumerate(plan.partitions)}
    spread = msgspec.structs.replace(plan, variants=(Variant(name="spread", placement=placement),))
    (tmp_path / "plan" / "plan.json").write_bytes(encode_plan(spread))
    inner = [sys.executable, "-m", "testbed", "run", "camera", "--", sys.executable, "-c", _CLIENT, "{camera}"]
    command = [sys.executable, "-m", "testbed", "up", tmp_path / "cluster.toml", "--plan", tmp_path / "plan", "--"]

    done = subprocess.run([*map(str, command), *inner], cwd=_BENCH, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert "(1, 10)" in done.stdout


@pytest.mark.root
@needs_root
def test_a_program_for_a_device_that_is_not_there_is_refused() -> None:
    with testbed.build(Layout({"a": Machine()})):
        command = [sys.executable, "-m", "testbed", "run", "camera", "--", "true"]
        done = subprocess.run(command, cwd=_BENCH, stderr=subprocess.PIPE, text=True, timeout=60)

    assert done.returncode == 2
    assert "`camera`" in done.stderr


_CLIENT = """
import hyps, hyps_models, sys
with hyps.InferenceSession(f"tcp://{sys.argv[1]}:5757") as session:
    print(session.run(None, hyps_models.sample_inputs("digits"))[0].shape)
"""
_CLUSTER = """
[[devices]]
name = "camera"
speed = 0.25
[[devices]]
name = "gateway"
speed = 0.25
[[devices]]
name = "server"
[[links]]
between = ["camera", "gateway"]
up = "20Mbit/s"
latency = "2ms"
[[links]]
between = ["gateway", "server"]
up = "100Mbit/s"
"""
_BENCH = Path(testbed.__file__).parent.parent
_TEXT: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
_HELD = """
import subprocess, sys, time, testbed
from testbed import Layout, Machine, Wire
layout = Layout({"a": Machine(0.5, core=0), "b": Machine()}, (Wire("a", "b", 1e6, delay_s=1e-3),))
with testbed.build(layout) as devices:
    devices["b"].popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("built", flush=True)
    time.sleep(20)
"""


def _bed_in_a_process() -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", _HELD], cwd=_BENCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "built\n"
    return process


def _fail_on(device: testbed.Device) -> NoReturn:
    device.popen(["sleep", "600"])
    assert _traces(os.getpid())
    raise ZeroDivisionError


def _traces(pid: int) -> list[str]:
    """Return the namespaces and control groups of the beds that the process `pid` built."""
    prefix = f"hyps-bed-{pid}-"  # an empty group can be removed and no other: no group, no program
    places = [Path("/run/netns"), Path("/run/hyps-bed"), *Path("/sys/fs/cgroup").glob("*/"), Path("/sys/fs/cgroup")]
    return sorted(str(path) for place in places for path in place.glob(f"{prefix}*"))


def _children(pid: int) -> dict[int, str]:
    """Return the command lines of a process's children."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): _command_of(int(child)) for child in found}


def _command_of(pid: int) -> str:
    """Return a process's command line; empty when it has ended."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_text() if path.exists() else ""


def _round_trips(client: testbed.Device, server: testbed.Device, count: int) -> list[float]:
    """Return the seconds that a byte took there and back."""
    with server.popen([sys.executable, "-c", _ECHO, server.address], **_TEXT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        printed = client.run([sys.executable, "-c", _ASK, server.address, count], check=True, **_TEXT).stdout
    return [float(line) for line in printed.split()]


def _wiring(layout: Layout) -> list[list[str]]:
    return wiring(layout, {name: f"ns-{name}" for name in namespaces_of(layout)})


def _measured_rate(sender: testbed.Device, receiver: testbed.Device, nbytes: int) -> float:
    with receiver.popen([sys.executable, "-c", _RECEIVE, receiver.address], **_TEXT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sender.run([sys.executable, "-c", _SEND, receiver.address, nbytes], check=True)
        return float(process.stdout.readline())


def _most_share(device: testbed.Device, repeats: int, pause_s: float, size: int) -> float:
    """Return the largest share of a core that a piece of work got: the one least disturbed by others."""
    printed = device.run([sys.executable, "-c", _WORK, repeats, pause_s, size], **_TEXT).stdout
    return max(map(float, printed.split()))
