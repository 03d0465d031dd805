"""Groups as users start them: managers below managers, to three levels, and what happens when one of them is killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import hyps
from plan_fixtures import sharded
from process_fixtures import Branch, Cluster, Load, check_same, cluster_of, place

__all__ = ["cluster_of"]

pytestmark = pytest.mark.network


def plan_for(folder: Path, **placement: str) -> Path:
    """Return the folder of a plan with H-partitions; all that `placement` does not say is on `g`."""
    everywhere = dict.fromkeys(("first", "fc0", "fc1", "fc2", "last"), "g")
    return place(folder, sharded(width=24).write(folder), **{**everywhere, **placement})


def check_some(cluster: Cluster, count: int = 10) -> None:
    plan = cluster.plan
    with hyps.InferenceSession(cluster.address) as remote, hyps.InferenceSession(plan, threads=1) as local:
        for seed in range(count):
            check_same(remote, local, sharded(width=24).feeds(seed=seed, batch=1 + seed % 3))


@pytest.mark.parametrize("options", [(), ("--via-hub",), ("--keep", "all")], ids=["direct", "via-hub", "keep"])
def test_a_group_computes_around_another_device_s_partition(
    tmp_path: Path, cluster_of: Callable[..., Cluster], options: tuple[str, ...]
) -> None:
    cluster = cluster_of(plan_for(tmp_path / "plan", fc1="b"), *options)
    group = cluster.group("g")
    group.joined("x")
    group.joined("y")
    group.manager.hear("joined the manager")
    cluster.joined("b")
    check_some(cluster)


def test_three_levels_answer_as_the_whole_plan_does(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> None:
    cluster, outer, inner = three_levels(tmp_path, cluster_of)
    check_some(cluster)
    for branch in (inner, outer):
        branch.manager.process.send_signal(signal.SIGTERM)
        assert branch.manager.end() == 0
        assert "left the manager" in branch.manager.said[-1]


def three_levels(tmp_path: Path, cluster_of: Callable[..., Cluster]) -> tuple[Cluster, Branch, Branch]:
    """Return a manager, a group that joined it, and one that joined that and has two workers."""
    cluster = cluster_of(plan_for(tmp_path / "plan"))
    outer = cluster.group("g")
    inner = outer.group("h")
    inner.joined("x")
    inner.joined("y")
    inner.manager.hear("joined the manager")
    outer.manager.hear("joined the manager")
    return cluster, outer, inner


@pytest.mark.slow
def test_a_worker_at_the_bottom_that_is_killed_under_load_costs_no_answer(
    tmp_path: Path, cluster_of: Callable[..., Cluster]
) -> None:
    cluster, _outer, inner = three_levels(tmp_path, cluster_of)
    victim = inner.joined("z")
    with Load(cluster.address, cluster.plan) as load:
        load.await_more()
        os.kill(victim.process.pid, signal.SIGKILL)
        inner.joined("z")
        load.await_more()


@pytest.mark.slow
def test_a_group_in_the_middle_that_is_killed_under_load_costs_no_answer(
    tmp_path: Path, cluster_of: Callable[..., Cluster]
) -> None:
    cluster, outer, inner = three_levels(tmp_path, cluster_of)
    with Load(cluster.address, cluster.plan) as load:
        load.await_more()
        os.kill(outer.manager.process.pid, signal.SIGKILL)
        outer.manager.process.wait()
        cluster.group("g", bind=outer.address)
        inner.manager.hear("joined the manager")
        load.await_more()
