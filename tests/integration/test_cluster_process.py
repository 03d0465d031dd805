"""A manager and its workers as users start them: processes, sockets, signals, and what happens when one is killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import save

import hyps
from hyps.errors import HypsError
from hyps_compiler import compile as compile_model
from hyps_models.convnet import ConvNet
from loop_fixtures import looping
from plan_fixtures import mlp, sharded
from process_fixtures import WAIT_S, Cluster, Load, Process, check_same, cluster_of, place, sharded_plan

__all__ = ["cluster_of"]

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def convnet_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of VGG's kind, cut by the compiler into several partitions for `a` and `b`."""
    folder = tmp_path_factory.mktemp("convnet")
    net = ConvNet("small", 7)
    x = net.image(side=32, pilot_side=32, calibrate=False)
    for index, channels in enumerate((8, 16, 32)):
        x = net.relu(net.conv(x, f"conv{index}", channels, 3, pad=1, bias=True), f"relu{index}")
        x = net.max_pool(x, f"pool{index}", 2, 2)
    net.dense_head(net.flatten(x), (32 * 4 * 4, 64, 64))
    save(net.model(), folder / "model.onnx")
    plan = compile_model(folder / "model.onnx", folder / "plan", max_params=20_000)
    assert len(plan.partitions) >= 4
    placement = {part.id: "ab"[index % 2] for index, part in enumerate(plan.partitions)}
    return place(folder / "plan", plan, **placement)


def test_a_compiled_network_on_two_workers_answers_as_the_whole_plan_does(
    convnet_plan: Path, cluster_of: Callable[..., Cluster]
) -> None:
    cluster = cluster_of(convnet_plan)
    for device in "ab":
        cluster.joined(device)
    rng = np.random.default_rng(3)
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(convnet_plan, threads=1) as local:
        for batch in (1, 1, 2):
            check_same(remote, local, {"image": rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)})
    fetched = list(cluster.folder.glob("cache-*/*/partitions/*.onnx"))
    assert len(fetched) == len(hyps.load(convnet_plan).partitions)


def test_shards_run_in_parallel_on_two_workers(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    plan = sharded_plan(tmp_path / "plan")
    cluster = cluster_of(plan)
    workers = {device: cluster.joined(device) for device in "ab"}
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(plan, threads=1) as local:
        for seed in range(10):
            check_same(remote, local, sharded(width=24).feeds(seed=seed, batch=1 + seed % 3))
    for worker in workers.values():
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0
        assert "left the manager" in worker.said[-1]


@pytest.mark.parametrize("options", [("--via-hub",), ()], ids=["via-hub", "no-listen"])
def test_workers_that_cannot_reach_each_other_go_over_the_hub(
    tmp_path: Path, cluster_of: Callable[..., Cluster], options: tuple[str, ...]
) -> None:
    plan = sharded_plan(tmp_path / "plan")
    cluster = cluster_of(plan, *options)
    for device in "ab":
        cluster.joined(device, *(() if options else ("--no-listen",)))
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(plan, threads=1) as local:
        check_same(remote, local, sharded(width=24).feeds())


def test_files_of_a_plan_folder_are_not_fetched(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    plan = sharded_plan(tmp_path / "plan")
    cluster = cluster_of(plan)
    for device in "ab":
        cluster.joined(device, plan=plan)
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(plan, threads=1) as local:
        check_same(remote, local, sharded(width=24).feeds())
    assert not list(cluster.folder.glob("cache-*"))


def test_a_killed_worker_is_replaced_under_load_and_no_answer_is_wrong_or_lost(
    tmp_path: Path, cluster_of: Callable[..., Cluster]
) -> None:
    plan = sharded_plan(tmp_path / "plan")
    cluster = cluster_of(plan)
    cluster.joined("a")
    victim = cluster.joined("b")
    with Load(cluster.address, plan) as load:
        load.await_more()
        os.kill(victim.process.pid, signal.SIGKILL)
        cluster.joined("b")
        load.await_more()


def test_a_manager_that_comes_back_is_found_again(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    plan = sharded_plan(tmp_path / "plan")
    first = cluster_of(plan)
    workers = [first.joined(device) for device in "ab"]
    with hyps.InferenceSession(first.address) as remote, hyps.InferenceSession(plan, threads=1) as local:
        check_same(remote, local, sharded(width=24).feeds())
    os.kill(first.manager.process.pid, signal.SIGKILL)
    first.manager.process.wait(WAIT_S)
    again = Process("hyps-manager", plan, "--bind", first.address)
    try:
        for worker in workers:
            worker.hear("is gone")
            worker.hear("joined the manager")
        with hyps.InferenceSession(first.address) as remote, hyps.InferenceSession(plan, threads=1) as local:
            check_same(remote, local, sharded(width=24).feeds())
    finally:
        again.stop()


def endless(folder: Path, *, empty_body: bool) -> Path:
    """Return the folder of a plan for `a` whose requests say how often its loop runs."""
    save(looping(empty_body=empty_body, trips=None), folder / "model.onnx")
    plan = compile_model(folder / "model.onnx", folder / "plan", verify=False)
    return place(folder / "plan", plan, **{part.id: "a" for part in plan.partitions})


def trips(count: int) -> dict[str, Any]:
    return {"x": np.ones((1, 4), np.float32), "trips": np.array(count)}


def test_a_run_that_takes_too_long_is_broken_off_and_the_next_request_answered(
    tmp_path: Path, cluster_of: Callable[..., Cluster]
) -> None:
    cluster = cluster_of(endless(tmp_path, empty_body=False))
    cluster.joined("a", "--timeout", "500ms")
    with hyps.InferenceSession(cluster.address) as remote:
        with pytest.raises(HypsError, match="took longer than 500 ms") as caught:
            remote.run(None, trips(2**62))
        assert caught.value.code == "E_DEADLINE"
        assert remote.run(None, trips(3))[0].sum() == 4


def test_a_worker_that_is_stuck_starts_anew_and_serves_on(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    cluster = cluster_of(endless(tmp_path, empty_body=True))
    worker = cluster.joined("a", "--timeout", "200ms")
    with hyps.InferenceSession(cluster.address) as remote:
        with pytest.raises(HypsError, match="cannot be ended") as caught:
            remote.run(None, trips(2**62))
        assert caught.value.code == "E_DEADLINE"
        worker.hear("starting anew")
        worker.hear("joined the manager")
        assert remote.run(None, trips(3))[0].sum() == 4
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_a_name_that_is_taken_is_refused_in_one_sentence(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    cluster = cluster_of(sharded_plan(tmp_path / "plan"))
    cluster.joined("a")
    second = cluster.worker("a")
    assert second.end() == 1
    errors = [line for line in second.said if line.startswith("error: ")]
    assert len(errors) == 1
    assert "[E_DUPLICATE]" in errors[0]


def test_a_wrong_token_is_refused_in_one_sentence(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    (tmp_path / "right").write_text("open sesame\n")
    (tmp_path / "wrong").write_text("let me in\n")
    cluster = cluster_of(sharded_plan(tmp_path / "plan"), "--token-file", tmp_path / "right")
    stranger = cluster.worker("a", "--token-file", tmp_path / "wrong")
    assert stranger.end() == 1
    assert [line for line in stranger.said if "error: " in line and "token" in line]
    cluster.joined("a", "--token-file", tmp_path / "right")


def test_a_manager_that_is_not_there_is_told_once_and_given_up_when_wanted(tmp_path: Path) -> None:
    worker = Process("hyps-worker", "--manager", "tcp://127.0.0.1:9", "--device", "a", "--connect-timeout", "2s")
    try:
        assert worker.end() == 1
        assert len([line for line in worker.said if "waiting for the manager" in line]) == 1
        assert any("error: " in line and "[E_UNAVAILABLE]" in line for line in worker.said)
    finally:
        worker.stop()


def test_a_worker_that_waits_for_its_manager_leaves_when_told(tmp_path: Path) -> None:
    worker = Process("hyps-worker", "--manager", "tcp://127.0.0.1:9", "--device", "a")
    try:
        worker.hear("waiting for the manager")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0
    finally:
        worker.stop()


def test_memory_for_one_partition_at_a_time_is_enough(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    flow = mlp(1024, 2048, 2048, 2048, 2048, 2048, 2048)
    folder = tmp_path / "plan"
    written = flow.write(folder)
    place(folder, written, **{part.id: "a" for part in written.partitions})
    cluster = cluster_of(folder)
    cluster.joined("a", "--memory", "120MB")
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(folder, threads=1) as local:
        for seed in range(3):
            feeds = flow.feeds(seed=seed)
            np.testing.assert_allclose(remote.run(None, feeds)[0], local.run(None, feeds)[0], rtol=1e-4, atol=1e-5)


def test_a_request_far_larger_than_the_plan_was_made_for_is_refused_before_a_worker_takes_its_memory(
    tmp_path: Path, cluster_of: Callable[..., Cluster]
) -> None:
    flow = mlp(256, 4096, 256)
    folder = tmp_path / "plan"
    place(folder, flow.write(folder), v0="a", v1="a")
    cluster = cluster_of(folder)
    worker = cluster.joined("a", "--memory", "120MB")
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(folder, threads=1) as local:
        with pytest.raises(HypsError, match="would pass the budget of 120 MB"):
            remote.run(None, {"t0": np.ones((20_000, 256), np.float32)})  # of which the first layer makes 328 MB
        feeds = flow.feeds(seed=1)
        np.testing.assert_allclose(remote.run(None, feeds)[0], local.run(None, feeds)[0], rtol=1e-4, atol=1e-5)
    peak = next(line for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    assert int(peak.split()[1]) * 1024 < 240_000_000
