"""The manager's state machine among nodes that were let in and tell what is not true."""

from cluster_fixtures import CHAIN, ToyCluster, ToyNode, plan_of
from hyps.core.manager_events import NodeTold, Ticked
from hyps.core.manager_options import ManagerOptions
from hyps.core.manager_view import report_of
from hyps.core.timings import Timings
from hyps.formats.node_messages import Beat, Finished, Running, Sending
from hyps.formats.status import decode_report, encode_report

PLACED = {"p0": "d0", "p1": "d1", "p2": "d2"}
ALONE = ManagerOptions(no_planner="nothing can be searched here")


def running() -> tuple[ToyCluster, list[ToyNode]]:
    """Return a cluster whose devices have joined and loaded."""
    cluster = ToyCluster(plan_of(CHAIN, PLACED, outputs=("y",), seconds={"p0": 0.1}), ALONE)
    nodes = [cluster.join(device) for device in ("d0", "d1", "d2")]
    cluster.run()
    return cluster, nodes


def loaded(node: ToyNode, **more: object) -> Beat:
    assert node.setup is not None
    return Beat(node.setup.number, (node.setup.plan.partitions[0].id,), **more)  # type: ignore[arg-type, union-attr]


def test_numbers_that_a_node_makes_up_stay_within_what_a_report_can_tell() -> None:
    cluster, nodes = running()
    for request in range(5):
        cluster.happen(NodeTold(nodes[0].link, Finished(request, 1, "p0", 1e9, 1e9, 2**62)))
    report = report_of(cluster.manager, cluster.now_s, since_s=0.0, producer="", groups={})
    assert decode_report(encode_report(report)).partitions[0].sent_nbytes == 2**62


def test_invented_devices_and_partitions_are_not_remembered() -> None:
    cluster, nodes = running()
    names = tuple(f"invented{number}" for number in range(4096))
    told = loaded(nodes[0], unreachable=names, refused=tuple((name, "because") for name in names))
    cluster.happen(NodeTold(nodes[0].link, told))
    node = cluster.manager.network.members.by_device("d0")
    assert node is not None
    assert not node.unreachable_since_s
    assert cluster.manager.network.ready, "it has refused nothing that there is"


def test_a_node_that_says_for_ever_that_it_has_just_begun_is_cut_off() -> None:
    cluster, nodes = running()
    cluster.submit(1, "r")
    nodes[0].is_mute = True
    beat = loaded(nodes[0], running=(Running(1, 1, "p0", 0.0),))
    for _ in range(2 * int(ALONE.least_lease_s / 0.25)):
        cluster.happen(NodeTold(nodes[0].link, beat))
        cluster.wait(0.25)
    assert cluster.disconnected == [nodes[0].link]


def test_sendings_to_devices_that_there_are_not_are_not_remembered() -> None:
    cluster, nodes = running()
    told = tuple(Sending(f"invented{number}", 10**6, 0, 0.1) for number in range(100))
    cluster.happen(NodeTold(nodes[0].link, loaded(nodes[0], sendings=(*told, Sending("d1", 10**6, 0, 0.1)))))
    assert [(link.source, link.target) for link in cluster.manager.network.placer.links.statuses()] == [("d0", "d1")]


def test_nodes_are_not_lost_because_the_manager_was_held_up() -> None:
    cluster, nodes = running()
    cluster.wait(0.5)
    cluster.now_s += 30.0
    cluster.happen(Ticked())
    assert not cluster.disconnected
    for node in nodes:
        node.is_mute = True
    cluster.wait(1.0)
    assert not cluster.disconnected
    cluster.wait(1.0)
    assert len(cluster.disconnected) == 3


def test_what_devices_took_that_come_and_go_is_forgotten_in_time() -> None:
    timings = Timings(plan_of(CHAIN, PLACED, outputs=("y",), seconds={"p0": 0.5}))
    for number in range(10_000):
        timings.add("p0", f"device{number}", 0.1)
        timings.predict({"p0": f"device{number}"}, {"p0": 0.2})
    assert len(timings.timings()) < 10_000
    assert timings.measured_s("p0", "device0") is None
    assert timings.predicted_s("p0", "d0") == 0.5
    assert timings.predicted_s("p0", "device9999") == 0.2
