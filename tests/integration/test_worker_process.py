"""`hyps-worker` as users meet it: a process, real sockets, real signals."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hyps
from hyps.adapters.frames import to_frames
from hyps.adapters.transport import ZmqClient
from hyps.errors import HypsError, PeerError, TensorError
from hyps.formats.cluster import decode_cluster
from hyps.formats.messages import Accepted, Done, FromWorker, Submit, decode_from_worker, encode
from hyps_compiler.cli import main as hypsc
from plan_fixtures import mlp, sharded

pytestmark = pytest.mark.network

FLOW = sharded()
HEAVY = mlp(*[2048] * 6)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "plan"
    FLOW.write(path)
    return path


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "heavy"
    HEAVY.write(path)
    return path


def start(*args: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from hyps.cli import worker; worker(prog_name='hyps-worker')", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def serving(*args: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yield a worker's process and its address; what it says after that is still on its stderr."""
    process = start(*args, "--bind", "tcp://127.0.0.1:0")
    try:
        yield process, address_of(process)
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def address_of(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("serving at tcp://127.0.0.1:"), line
    return line.split()[2].rstrip(":")


def outcome(*args: object) -> tuple[int, str, str]:
    process = start(*args)
    stdout, stderr = process.communicate(timeout=WAIT_S)
    return process.returncode, stdout, stderr


def test_a_session_on_an_address_is_a_session_on_the_folder(folder: Path) -> None:
    with serving(folder, "--device", "pi") as (_, address), hyps.InferenceSession(address) as remote:
        local = hyps.InferenceSession(folder, threads=1)
        with local:
            assert remote.get_inputs() == local.get_inputs()
            assert remote.get_outputs() == local.get_outputs()
            assert remote.get_modelmeta() == local.get_modelmeta()
            assert remote.get_providers() == ["CPUExecutionProvider"]
            assert (remote.get_inputs()[0].type, remote.get_inputs()[0].shape) == ("tensor(float)", ["batch", 12])
            for seed in range(5):
                feeds = FLOW.feeds(seed=seed, batch=seed + 1)
                np.testing.assert_allclose(remote.run(None, feeds)[0], local.run(["y"], feeds)[0], rtol=1e-6)
            for session in (remote, local):
                with pytest.raises(TensorError, match="must be float32 and is float64"):
                    session.run(None, {"x": np.zeros((1, 12))})
                with pytest.raises(TensorError, match="no output"):
                    session.run(["nonsense"], FLOW.feeds())


def test_two_clients_at_once_get_their_own_answers(folder: Path) -> None:
    good = [0, 0]

    def ask(address: str, seed: int) -> None:
        with hyps.InferenceSession(address) as session, hyps.InferenceSession(folder, threads=1) as local:
            feeds = FLOW.feeds(seed=seed)
            expected = local.run(None, feeds)[0]
            for _ in range(30):
                good[seed] += np.allclose(session.run(None, feeds)[0], expected, rtol=1e-6)

    with serving(folder) as (_, address):
        threads = [threading.Thread(target=ask, args=(address, seed)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert good == [30, 30]


@contextlib.contextmanager
def accepted(address: str, batch: int, *names: str) -> Iterator[ZmqClient]:
    """Yield a client of which the worker has accepted the requests `names`."""
    client = ZmqClient(address, max_nbytes=2**30)
    headers, frames = to_frames(HEAVY.feeds(batch=batch))
    for name in names:
        client.send([encode(Submit(name, headers)), *frames], WAIT_S)
    assert [heard(client) for _ in names] == [Accepted(name) for name in names]
    yield client
    client.close()


def heard(client: ZmqClient) -> FromWorker:
    parts = client.receive(WAIT_S)
    assert parts is not None
    return decode_from_worker(memoryview(parts[0]))


def test_sigterm_answers_what_was_accepted_and_leaves_with_0(heavy: Path) -> None:
    with serving(heavy, "--threads", 1) as (process, address), accepted(address, 512, "a", "b", "c") as client:
        process.send_signal(signal.SIGTERM)
        answers = [heard(client) for _ in range(3)]
        assert [answer.request for answer in answers if isinstance(answer, Done)] == ["a", "b", "c"]
        assert process.wait(WAIT_S) == 0


def test_a_second_sigterm_stops_at_once(heavy: Path) -> None:
    with serving(heavy, "--threads", 1) as (process, address), accepted(address, 8192, "a") as client:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # two signals at the very same moment are one
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 143
        assert time.monotonic() - begin < 2
        with pytest.raises(PeerError, match="was lost"):
            client.receive(WAIT_S)


def test_a_killed_worker_is_noticed_and_its_successor_found(heavy: Path) -> None:
    feeds = HEAVY.feeds(batch=8192)
    with serving(heavy, "--threads", 1) as (process, address), hyps.InferenceSession(address) as session:
        threading.Timer(0.5, process.kill).start()
        begin = time.monotonic()
        with pytest.raises(PeerError, match="was lost"):
            session.run(None, feeds)
        assert time.monotonic() - begin < 5
        process.wait(WAIT_S)
        successor = start(heavy, "--bind", address)
        try:
            assert address_of(successor) == address
            assert session.run(None, HEAVY.feeds())[0].shape == (1, 2048)
        finally:
            successor.kill()
            successor.communicate(timeout=WAIT_S)


def test_nobody_at_the_address_is_said_in_time() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(PeerError, match="no worker answers"):
        hyps.InferenceSession(address)
    assert time.monotonic() - begin < 10


def test_strangers_do_not_disturb(folder: Path) -> None:
    with serving(folder) as (process, address):
        port = int(address.rpartition(":")[2])
        strangers = [socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) for _ in range(20)]
        for index, stranger in enumerate(strangers):
            stranger.sendall([b"GET / HTTP/1.1\r\n\r\n" * 50, bytes(1000), b"\xff" * 64][index % 3])
        with hyps.InferenceSession(address) as session:
            assert session.run(None, FLOW.feeds())[0].shape == (1, 5)
        for stranger in strangers:
            stranger.close()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=WAIT_S)
        assert (process.returncode, stderr) == (0, "")


def test_partitions_are_swapped_under_a_small_budget(heavy: Path) -> None:
    with hyps.InferenceSession(heavy, threads=1) as local:
        expected = local.run(None, HEAVY.feeds())[0]
    process = start(heavy, "--bind", "tcp://127.0.0.1:0", "--memory", "115MB")
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " swapped, memory 115 MB" in line
        assert " 0 swapped" not in line
        with hyps.InferenceSession(line.split()[2].rstrip(":")) as session:
            got = session.run(None, HEAVY.feeds())[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line)
        assert int(peak.split()[1]) * 1024 <= 115_000_000
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def test_a_taken_port_is_one_sentence(folder: Path) -> None:
    with serving(folder) as (_, address):
        status, stdout, stderr = outcome(folder, "--bind", address)
    assert (status, stdout) == (1, "")
    assert stderr.splitlines()[0] == f"error: `{address}` is already in use [E_ADDRESS_IN_USE]"
    assert len(stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("args", "status", "code"),
    [
        (["--bind", "127.0.0.1:5757"], 2, "E_ADDRESS"),
        (["--bind", "tcp://0.0.0.0:0"], 2, "E_INSECURE"),
        (["--memory", "20MB"], 3, "E_INFEASIBLE"),
        (["--memory", "lots"], 2, "E_USAGE"),
        (["--threads", "0"], 2, "E_USAGE"),
        (["--manager", "tcp://127.0.0.1:1"], 2, "E_USAGE"),
    ],
)
def test_bad_options_are_one_sentence(folder: Path, args: list[str], status: int, code: str) -> None:
    got, stdout, stderr = outcome(folder, "--bind", "tcp://127.0.0.1:0", *args)
    assert (got, stdout) == (status, "")
    assert stderr.startswith("error: ")
    assert stderr.splitlines()[0].endswith(f"[{code}]")
    assert "Traceback" not in stderr


def test_a_missing_plan_is_one_sentence(tmp_path: Path) -> None:
    status, _, stderr = outcome(tmp_path / "nothing")
    assert status == 1
    assert "there is no plan folder" in stderr
    assert "[E_NO_PLAN]" in stderr


def test_other_machines_are_let_in_only_with_a_warning(folder: Path) -> None:
    process = start(folder, "--bind", "tcp://0.0.0.0:0", "--insecure-lab")
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("warning: ")
        assert process.stderr.readline().startswith("serving at tcp://0.0.0.0:")
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def test_help_and_version_answer_at_once() -> None:
    begin = time.monotonic()
    status, stdout, stderr = outcome("--help")
    took_s = time.monotonic() - begin
    assert (status, stderr) == (0, "")
    assert "Examples:" in stdout
    assert took_s < 1.0, "0.05 s on an idle machine"
    assert outcome("--version")[:2] == (0, f"hyps-worker {hyps.__version__}\n")


@pytest.mark.parametrize("providers", [None, ["CUDAExecutionProvider", ("CPUExecutionProvider", {})]])
def test_onnxruntimes_own_arguments_are_taken(folder: Path, providers: Any) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with hyps.InferenceSession(folder, options, providers) as session:
        assert session.run(["y"], FLOW.feeds(), None)[0].shape == (1, 5)


def test_arguments_that_cannot_be_meant_are_refused(folder: Path) -> None:
    with pytest.raises(HypsError, match="CPUExecutionProvider"):
        hyps.InferenceSession(folder, providers=["CUDAExecutionProvider"])
    with pytest.raises(HypsError, match="worker's own"):
        hyps.InferenceSession("tcp://127.0.0.1:1", memory="1GB")
    with pytest.raises(HypsError, match="is no size"):
        hyps.InferenceSession(folder, memory="lots")
    assert hyps.load(folder).model.name == "test"


def test_a_cluster_file_is_written_from_what_a_running_worker_tells(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    with serving(folder, "--device", "server", "--threads", "1", "--memory", "300MB") as (_, address):
        words = ["cluster", address, "-o", str(path), "--device", "camera", "--threads", "1"]
        told = CliRunner().invoke(hypsc, words, catch_exceptions=False)
    assert told.exit_code == 0
    cluster = decode_cluster(path.read_text())
    assert cluster.entry == "camera"
    server = cluster.device("server")
    assert (server.memory_bytes, server.threads, server.endpoint) == (300_000_000, 1, address)
    assert 0.05 < server.speed < 20  # the same machine, whatever else it does meanwhile
    assert cluster.links[0].up_bytes_per_s > 1e6
