"""What a manager does otherwise with a group than with a worker: placing, replicas, and what it can do from now on."""

from msgspec.structs import replace

from cluster_fixtures import CHAIN, ToyCluster, ToyNode, plan_of
from group_fixtures import join_group
from hyps.core.manager_events import Ticked
from hyps.core.manager_options import ManagerOptions
from hyps.formats.messages import MachineFacts

OPTIONS = ManagerOptions(gather_s=0.5, settle_s=1.0, replan_pause_s=5.0, patience_s=1000.0)


def told(cluster: ToyCluster, node: ToyNode, memory: int, **more: object) -> None:
    """Let a node beat as before, but with other facts."""
    known = cluster.manager.network.members.by_device(node.device)
    assert known is not None
    beat = replace(known.beat, facts=MachineFacts(memory, 2, 2e9), max_requests=9)
    cluster.tell(node, replace(beat, **more))
    cluster.run()


def test_a_group_has_a_partition_to_itself_or_no_part_of_it() -> None:
    placement = {"p0": "g", "p1": "a", "p2": "a"}
    plan = plan_of(CHAIN, placement, outputs=("y",), replicas={"p0": ("a", "b"), "p1": ("g", "b")})
    cluster = ToyCluster(plan, OPTIONS)
    join_group(cluster, "g")
    for device in "ab":
        cluster.join(device)
    cluster.wait(3.0)
    courses = [course.whole.placement for course in cluster.manager.network.book]
    assert {course["p0"] for course in courses} == {"g"}
    assert {course["p1"] for course in courses} == {"a", "b"}


def test_a_search_is_told_which_devices_are_groups() -> None:
    cluster = ToyCluster(plan_of(CHAIN, dict.fromkeys(("p0", "p1", "p2"), "absent"), outputs=("y",)), OPTIONS)
    join_group(cluster, "g")
    cluster.join("a")
    cluster.wait(1.0)
    (ask,) = cluster.questions
    assert {device.name: device.is_group for device in ask.question.devices} == {"a": False, "g": True}


def test_what_a_group_can_do_from_now_on_is_planned_with() -> None:
    cluster = ToyCluster(plan_of(CHAIN, dict.fromkeys(("p0", "p1", "p2"), "g"), outputs=("y",)), OPTIONS)
    group = join_group(cluster, "g")
    cluster.wait(3.0)
    assert not cluster.questions
    told(cluster, group, 10**9)
    assert not cluster.questions, "it may be about to change again"
    for _ in range(8):
        cluster.now_s += 0.25
        told(cluster, group, 10**9)
        cluster.happen(Ticked())
    (ask,) = cluster.questions
    (facts,) = ask.question.devices
    assert facts.memory_bytes == 10**9
    member = cluster.manager.network.members.by_device("g")
    assert member is not None
    assert member.join.max_requests == 9


def test_what_a_worker_tells_of_itself_later_changes_nothing() -> None:
    cluster = ToyCluster(plan_of(CHAIN, dict.fromkeys(("p0", "p1", "p2"), "a"), outputs=("y",)), OPTIONS)
    worker = cluster.join("a")
    cluster.wait(1.0)
    told(cluster, worker, 10**9)
    member = cluster.manager.network.members.by_device("a")
    assert member is not None
    assert member.join.facts.memory_bytes is None


def test_a_group_that_refused_partitions_is_asked_again_when_its_nodes_have_changed() -> None:
    cluster = ToyCluster(plan_of(CHAIN, dict.fromkeys(("p0", "p1", "p2"), "g"), outputs=("y",)), OPTIONS)
    group = join_group(cluster, "g")
    cluster.wait(2.0)
    refused = tuple((part, "no room") for part in ("p0", "p1", "p2"))
    told(cluster, group, 10**6, refused=refused)
    assert not cluster.manager.network.ready
    told(cluster, group, 10**9, refused=())
    cluster.wait(2.0)
    assert cluster.manager.network.ready
