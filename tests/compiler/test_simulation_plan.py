"""A plan on a cluster is simulated with the plan's own figures; what it does not tell is refused, in a sentence."""

import msgspec
import pytest

from hyps.errors import HypsError, InfeasibleError, PlanError, UsageError
from hyps.formats.cluster import Cluster
from hyps.formats.plan import Plan, Regime
from hyps_compiler.partition import BASE_BYTES
from hyps_compiler.simulation import simulate
from hyps_compiler.simulation_plan import Conditions, plan_system
from hyps_compiler.simulation_system import Closed, Down, Listed
from simulation_fixtures import LOCAL, SPLIT, SPLIT_S, cluster, plan

ALONE_S = 0.02 + 4000 / 1e6 + 0.005 + 0.04 + 40 / 2e6 + 0.005


def latency_s(told: Plan, site: Cluster | None = None, conditions: Conditions | None = None) -> float:
    system = plan_system(told, site or cluster(), conditions or Conditions())
    return float(simulate(system, Closed(), 1).latencies_s[0])


def test_a_request_takes_what_partitions_and_links_take() -> None:
    assert latency_s(plan()) == pytest.approx(ALONE_S)
    assert latency_s(plan(), conditions=Conditions(variant="local")) == pytest.approx(0.42)


def test_the_bandwidth_follows_the_trace() -> None:
    slow = Conditions(rates={"camera to server": ((0.0, 1e6), (0.022, 1e5))})
    assert latency_s(plan(), conditions=slow) == pytest.approx(ALONE_S - 0.002 + 0.02)
    stands = Conditions(rates={"camera to server": ((0.021, 0.0), (1.0, 1e6))})
    assert latency_s(plan(), conditions=stands) == pytest.approx(ALONE_S + 1.0 - 0.021)


def test_serialization_is_paid_whatever_the_bandwidth() -> None:
    site = cluster()
    links = tuple(msgspec.structs.replace(link, serialize_s_per_byte=1e-6) for link in site.links)
    site = msgspec.structs.replace(site, links=links)
    assert latency_s(plan(), site) == pytest.approx(ALONE_S + 4040e-6)
    fast = Conditions(rates={"camera to server": ((0.0, 1e12),)})
    assert latency_s(plan(), site, fast) == pytest.approx(ALONE_S - 0.004 + 4040e-6, abs=1e-7)


def test_devices_and_links_that_are_down_delay() -> None:
    conditions = Conditions(
        downs={"server": (Down(0.04, 0.5), Down(0.45, 0.6)), "camera to server": (Down(0.0, 0.01),)}
    )
    assert latency_s(plan(), conditions=conditions) == pytest.approx(0.6 + 0.03 + 40 / 2e6 + 0.005)


def test_partitions_that_do_not_fit_are_loaded_for_their_turn() -> None:
    told = plan(LOCAL, {"p0": 0.02, "p1": 0.02, "p2": 0.02})
    site = cluster(memory_bytes=BASE_BYTES + 25_000_000)
    # two of the three are kept or swapped as the worker decides: 10 MB at 100 MB/s for each that is not
    assert latency_s(told, site) == pytest.approx(0.06 + 2 * 0.1)
    assert latency_s(told, site, Conditions(load_bytes_per_s=1e9)) == pytest.approx(0.06 + 2 * 0.01)
    roomy = cluster(memory_bytes=BASE_BYTES + 40_000_000)
    assert latency_s(told, roomy) == pytest.approx(0.06)


def test_replicas_take_as_long_as_their_speed_says() -> None:
    told = plan(replicas={"p1": ("spare",), "p2": ("spare",)})
    site = cluster()
    devices = tuple(msgspec.structs.replace(d, speed=0.5, load=0.5) if d.name == "spare" else d for d in site.devices)
    system = plan_system(told, msgspec.structs.replace(site, devices=devices), Conditions())
    assert dict(system.dataflows[0].partitions[1].seconds) == {1: 0.01, 2: pytest.approx(0.04)}


def test_requests_switch_to_the_variant_of_the_moment() -> None:
    conditions = Conditions(switches=True, rates={"camera to server": ((1.0, 1e5), (2.0, 1e6), (3.0, 0.0), (9.0, 1.0))})
    told = simulate(plan_system(plan(), cluster(), conditions), Listed((0.0, 1.5, 2.5, 3.5)), 4, traced=4)
    assert [life.variant for life in sorted(told.lives, key=lambda life: life.request)] == [
        "best",
        "local",
        "best",
        "local",
    ]


def test_regimes_decide_where_the_plan_has_them() -> None:
    regimes = (
        Regime(variant="best", batch=1, fixed_s=0.1, wire_bytes=4000, server_s=0.0, corners=()),
        Regime(variant="local", batch=1, fixed_s=0.104, wire_bytes=0, server_s=0.0, corners=()),
    )
    for rate, variant in ((2e6, "best"), (0.9e6, "local")):
        conditions = Conditions(switches=True, rates={"camera to server": ((0.0, rate),)})
        told = simulate(plan_system(plan(regimes=regimes), cluster(), conditions), Closed(), 1)
        assert dict(told.variants)[variant] == 1


def test_a_plan_for_one_device_needs_no_cluster() -> None:
    told = plan(LOCAL, SPLIT_S, entry=None)
    assert float(simulate(plan_system(told, None, Conditions()), Closed(), 1).latencies_s[0]) == pytest.approx(0.06)


def _unplaced() -> Plan:
    told = plan()
    tensors = {**told.tensors, "a": msgspec.structs.replace(told.tensors["a"], nbytes=None)}
    return msgspec.structs.replace(told, tensors=tensors)


@pytest.mark.parametrize(
    ("told", "conditions", "kind", "message"),
    [
        (plan(seconds={"p0": 0.1}), Conditions(), PlanError, "does not say how long partition `p1` takes"),
        (plan({**SPLIT, "p1": "gone"}), Conditions(), UsageError, "partition `p1` runs on `gone`, which is no device"),
        (plan(entry="gone"), Conditions(), UsageError, "requests arise on `gone`, which is no device"),
        (plan(), Conditions(variant="x"), UsageError, "has no variant `x`"),
        (plan(), Conditions(rates={"x": ((0.0, 1.0),)}), UsageError, "has no link `x`"),
        (plan(), Conditions(downs={"x": (Down(0.0, 1.0),)}), UsageError, "`x` is neither a device nor a link"),
        (_unplaced(), Conditions(), PlanError, "how many bytes tensor `a` has"),
        (plan({**SPLIT, "p2": "spare"}), Conditions(switches=True), UsageError, "between two devices"),
    ],
)
def test_what_the_plan_and_the_cluster_do_not_tell_is_refused(
    told: Plan, conditions: Conditions, kind: type[HypsError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        plan_system(told, cluster(), conditions)
    assert "\n" not in caught.value.message


def test_a_replica_with_a_profile_of_its_own_is_refused() -> None:
    with pytest.raises(PlanError, match="how long partition `p0` takes on `server`"):
        plan_system(plan(replicas={"p0": ("server",)}), cluster(profile="server.json"), Conditions())


def test_a_plan_for_several_devices_needs_a_cluster() -> None:
    with pytest.raises(UsageError, match="the plan needs several devices: `camera`, `server`"):
        plan_system(plan(), None, Conditions())


def test_a_plan_with_one_variant_has_nothing_to_switch() -> None:
    told = plan()
    with pytest.raises(UsageError, match="nothing to switch"):
        plan_system(msgspec.structs.replace(told, variants=told.variants[:1]), cluster(), Conditions(switches=True))


def test_a_device_too_small_for_a_partition_is_named() -> None:
    with pytest.raises(InfeasibleError, match="on device `camera` partition `p0` needs"):
        plan_system(plan(), cluster(memory_bytes=BASE_BYTES + 5_000_000), Conditions())
