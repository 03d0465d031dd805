"""What nodes tell of their links is kept while they are there."""

from cluster_fixtures import plan_of
from hyps.core.courses import flow_of
from hyps.core.manager_options import ManagerOptions
from hyps.core.network import Network
from hyps.formats.messages import MachineFacts
from hyps.formats.node_messages import HUB, NODE_PROTOCOL_VERSION, Beat, Join, Sending


def test_sendings_of_a_beat_tell_of_links_until_the_node_goes() -> None:
    plan = plan_of([("p", ["x"], ["y"])], {"p": "a"}, outputs=["y"])
    network = Network(plan, flow_of(plan), ManagerOptions(), lambda: "secret")
    for link, device in ((1, "a"), (2, "b")):
        network.join(0.0, link, Join(NODE_PROTOCOL_VERSION, device, "", MachineFacts(None, 1, 1e9), ""))
    node = network.members.by_device("a")
    assert node is not None
    sendings = tuple(Sending(device, 1_000_000, 0, 0.1) for device in (HUB, "b"))

    network.beat(1.0, node, Beat(0, (), sendings=sendings))

    assert [(link.source, link.target) for link in network.placer.links.facts()] == [("a", HUB), ("a", "b")]
    network.lose(node, "it left")
    assert network.placer.links.facts() == ()
