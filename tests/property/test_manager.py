"""Any order of events, nodes lost at any moment: every accepted request ends once, correctly, and nothing is left."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_fixtures import CHAIN, NBYTES, ToyCluster, ToyNode, plan_of
from hyps.core.manager_events import LinkLost
from hyps.core.manager_options import ALL_TENSORS, ManagerOptions
from hyps.formats.node_messages import Drain
from hyps.formats.plan import Plan, Variant

DEVICES = ("d0", "d1", "d2")
DIAMOND = (
    ("p0", ("x",), ("a", "b")),
    ("p1", ("a",), ("c",)),
    ("p2", ("a", "b"), ("d",)),
    ("p3", ("c", "d"), ("y",)),
    ("p4", ("b",), ("z",)),
)


def draw_plan(rng: random.Random) -> Plan:
    """Return a chain or a diamond on up to three devices, perhaps with replicas, further variants and kept tensors."""
    parts, outputs = rng.choice([(CHAIN, ("y",)), (DIAMOND, ("y", "z"))])
    made = [name for _, _, makes in parts for name in makes]
    placement = {name: rng.choice(DEVICES) for name, _, _ in parts}
    others = tuple(
        Variant(name=f"v{number}", placement={name: rng.choice(DEVICES[:2]) for name, _, _ in parts})
        for number in range(rng.randint(0, 2))
    )
    replicas: dict[str, tuple[str, ...]] = {name: (rng.choice(DEVICES),) for name, _, _ in parts if rng.random() < 0.3}
    kept = tuple(name for name in made if rng.random() < 0.3)
    return plan_of(parts, placement, outputs=outputs, others=others, replicas=replicas, hub_tensors=kept)


def draw_options(rng: random.Random) -> ManagerOptions:
    return ManagerOptions(
        is_fixed=rng.random() < 0.2,
        is_via_hub=rng.random() < 0.3,
        keep=rng.choice((None, None, ALL_TENSORS, ())),
        buffer_nbytes=rng.choice((None, 30 * NBYTES)),
        batch_rows=rng.choice((1, 1, 3)),
        gather_s=rng.choice((0.5, 5.0)),
        patience_s=1000.0,
        max_attempts=1000,
        no_planner="nothing can be searched here",
    )


class Chaos:
    """Draws what happens to a cluster."""

    def __init__(self, seed: int, options: ManagerOptions | None = None) -> None:
        self.rng = random.Random(seed)
        plan = draw_plan(self.rng)
        self.cluster = ToyCluster(plan, options or draw_options(self.rng), seed=seed)
        self.submitted: list[tuple[int, str]] = []
        self.cancelled: set[tuple[int, str]] = set()

    def do_something(self) -> None:
        cluster, rng = self.cluster, self.rng
        choice = rng.random()
        if choice < 0.60:
            cluster.step()
        elif choice < 0.75:
            self.submit()
        elif choice < 0.85:
            cluster.tick(rng.choice((0.01, 0.25, 0.25, 1.0)))
        elif choice < 0.90:
            self.join_one()
        elif choice < 0.93 and cluster.nodes:
            cluster.lose(self.any_node())
        elif choice < 0.95 and cluster.nodes:
            cluster.tell(self.any_node(), Drain())
        elif choice < 0.96 and cluster.nodes:
            cluster.say_goodbye(self.any_node())
        elif choice < 0.98 and self.submitted:
            key = rng.choice(self.submitted)
            if key not in cluster.answers:
                self.cancelled.add(key)
            cluster.cancel(*key)
        elif choice < 0.985:
            client = rng.randint(1, 3)
            self.cancelled.update(key for key in self.submitted if key[0] == client)
            cluster.happen(LinkLost(client, "gone"))

    def any_node(self) -> ToyNode:
        return self.rng.choice(list(self.cluster.nodes.values()))

    def submit(self) -> None:
        key = (self.rng.randint(1, 3), f"r{len(self.submitted)}")
        self.submitted.append(key)
        self.cluster.submit(*key, batch="same", rows=1)

    def join_one(self) -> None:
        absent = [name for name in DEVICES if all(name != node.device for node in self.cluster.nodes.values())]
        if absent:
            self.cluster.join(self.rng.choice(absent))

    def heal(self) -> None:
        """Let all devices be there again, and time pass."""
        cluster = self.cluster
        for _ in range(60):
            for node in [node for node in cluster.nodes.values() if node.is_dismissed]:
                cluster.lose(node)
            for device in DEVICES:
                if all(device != node.device for node in cluster.nodes.values()):
                    cluster.join(device)
            cluster.wait(2.0)
            if not len(cluster.manager.queue):
                return

    def check(self) -> None:
        """Every request was answered rightly, refused, or is not wanted any more; nothing is left of any."""
        cluster, manager = self.cluster, self.cluster.manager
        for key in self.submitted:
            ended = (key in cluster.answers) + (key in cluster.failures)
            assert ended == 1 or (ended == 0 and key in self.cancelled), f"{key} ended {ended} times"
            if key in cluster.failures:
                assert cluster.failures[key].code == "E_BUSY"
            if key in cluster.answers:
                assert cluster.answers[key] == cluster.expected(*key)
        for client in (1, 2, 3):
            order = [int(name[1:]) for number, name in cluster.order if number == client]
            assert order == sorted(order), "answers are out of order"
        assert not len(manager.queue)
        assert not len(manager.hub)
        assert not len(manager.leases)
        assert not manager.waiting_again
        assert not cluster.store
        assert cluster.most_held_nbytes <= manager.hub.max_nbytes
        for node in cluster.nodes.values():
            assert not node.tensors, "a node was not told that a request ended"
        for known in manager.network.members:
            assert known.in_flight == 0
            assert not known.ended


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_requests_survive_whatever_happens_to_nodes(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(150):
        chaos.do_something()
    chaos.heal()
    chaos.check()
