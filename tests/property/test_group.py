"""Groups within groups, and devices lost at any level at any moment: the manager above notices nothing but time."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_fixtures import CHAIN, ToyCluster, plan_of
from group_fixtures import ToyGroup, join_group
from hyps.core.manager_options import ALL_TENSORS, ManagerOptions
from hyps.formats.plan import Plan, Variant

DEVICES = ("d0", "d1", "d2")
DIAMOND = (
    ("p0", ("x",), ("a", "b")),
    ("p1", ("a",), ("c",)),
    ("p2", ("a", "b"), ("d",)),
    ("p3", ("c", "d"), ("y",)),
    ("p4", ("b",), ("z",)),
)

SOURCE = (("p0", (), ("a",)), ("p1", ("x",), ("b",)), ("p2", ("a", "b"), ("c",)), ("p3", ("a", "c"), ("y",)))


def draw_plan(rng: random.Random) -> Plan:
    parts, outputs = rng.choice([(CHAIN, ("y",)), (DIAMOND, ("y", "z")), (SOURCE, ("y",))])
    placements = [{name: rng.choice(DEVICES) for name, _, _ in parts} for _ in range(3)]
    others = tuple(Variant(name=f"v{n}", placement=placement) for n, placement in enumerate(placements[1:]))
    return plan_of(parts, placements[0], outputs=outputs, others=others[: rng.randint(0, 2)])


class Chaos:
    """Draws what happens to a cluster some of whose devices are groups."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        options = ManagerOptions(
            is_via_hub=self.rng.random() < 0.3,
            keep=self.rng.choice((None, ALL_TENSORS)),
            gather_s=0.5,
            patience_s=1000.0,
            max_attempts=1000,
            no_planner="nothing can be searched here",
        )
        self.cluster = ToyCluster(draw_plan(self.rng), options, seed=seed)
        self.groups = {"d0": ("i0", "i1"), "d1": ("i0", "i1", "i2")}
        self.submitted: list[tuple[int, str]] = []
        self.cancelled: set[tuple[int, str]] = set()
        for device in DEVICES:
            self.join(device)
        self.cluster.wait(4.0)  # most of them are ready then

    def join(self, device: str) -> None:
        if device not in self.groups:
            self.cluster.join(device)
        else:
            nested = {"i1": ("j0", "j1")} if device == "d1" else {}
            join_group(self.cluster, device, self.groups[device], groups=nested)

    def do_something(self) -> None:
        cluster, rng = self.cluster, self.rng
        choice = rng.random()
        if choice < 0.76:
            cluster.step()
        elif choice < 0.84:
            key = (rng.randint(1, 2), f"r{len(self.submitted)}")
            self.submitted.append(key)
            cluster.submit(*key)
        elif choice < 0.90:
            cluster.tick(rng.choice((0.01, 0.25, 1.0)))
        elif choice < 0.93:
            self.join_one()
        elif choice < 0.94 and cluster.nodes:
            cluster.lose(rng.choice(list(cluster.nodes.values())))
        elif choice < 0.945 and self.all_groups():
            rng.choice(self.all_groups()).lose_manager()
        elif choice < 0.97 and self.all_groups():
            group = rng.choice(self.all_groups())
            if group.below.nodes:
                group.below.lose(rng.choice(list(group.below.nodes.values())))
        elif choice < 0.98 and self.submitted:
            key = rng.choice(self.submitted)
            if key not in cluster.answers:
                self.cancelled.add(key)
            cluster.cancel(*key)

    def all_groups(self) -> list[ToyGroup]:
        return groups_in(self.cluster)

    def join_one(self) -> None:
        absent = [d for d in DEVICES if all(d != node.device for node in self.cluster.nodes.values())]
        if absent:
            self.join(self.rng.choice(absent))
        for group in self.all_groups():
            lacking = [d for d in group.devices if all(d != node.device for node in group.below.nodes.values())]
            if lacking:
                group.join_below(self.rng.choice(lacking))

    def heal(self) -> None:
        for _ in range(60):
            for _ in range(8):
                self.join_one()
            self.cluster.wait(2.0)
            if not len(self.cluster.manager.queue):
                break
        for _ in range(70):  # devices hear that requests are over, and forget what came late
            self.cluster.tick(0.9)
            self.cluster.run()

    def check(self) -> None:
        cluster = self.cluster
        for key in self.submitted:
            ended = (key in cluster.answers) + (key in cluster.failures)
            assert ended == 1 or (ended == 0 and key in self.cancelled), f"{key} ended {ended} times"
            if key in cluster.failures:
                assert cluster.failures[key].code == "E_BUSY"
            if key in cluster.answers:
                assert cluster.answers[key] == cluster.expected(*key)
        assert_nothing_left(cluster)
        for group in self.all_groups():
            assert not len(group.state)
            assert not group.store
            assert len(group.sent) == len(set(group.sent)), "a tensor went up twice"
            assert_nothing_left(group.below)


def groups_in(cluster: ToyCluster) -> list[ToyGroup]:
    here = [node for node in cluster.nodes.values() if isinstance(node, ToyGroup)]
    return here + [inner for group in here for inner in groups_in(group.below)]


def assert_nothing_left(cluster: ToyCluster) -> None:
    manager = cluster.manager
    assert not len(manager.queue)
    assert not len(manager.hub)
    assert not len(manager.leases)
    assert not manager.waiting_again
    assert not cluster.store
    for node in cluster.nodes.values():
        assert isinstance(node, ToyGroup) or not node.tensors, "a node was not told that a request ended"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_requests_survive_whatever_happens_at_any_level(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(400):
        chaos.do_something()
    chaos.heal()
    chaos.check()
