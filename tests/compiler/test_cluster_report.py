"""A cluster file from what a manager knows."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from hyps.errors import PeerError
from hyps.formats.cluster import decode_cluster
from hyps.formats.status import LinkStatus, NodeStatus, Report
from hyps_compiler.cli import main
from hyps_compiler.cluster_file import PeerLink, cluster_toml, survey
from hyps_compiler.cluster_report import managed

ENDPOINT = "tcp://10.0.0.1:5757"


def _node(name: str, state: str = "serving", unreachable: tuple[str, ...] = ()) -> NodeStatus:
    return NodeStatus(device=name, state=state, memory_nbytes=10**9, threads=4, macs_per_s=2e9, unreachable=unreachable)


def _report(*nodes: NodeStatus, links: tuple[LinkStatus, ...] = ()) -> Report:
    return Report(role="manager", state="inferring", nodes=nodes, links=links)


MEASURED = (
    LinkStatus(source="", target="pi1", bytes_per_s=8e6, seconds=0.002),
    LinkStatus(source="pi1", target="", bytes_per_s=4e6, seconds=0.003),
    LinkStatus(source="", target="pi2", bytes_per_s=6e6, seconds=0.004),
    LinkStatus(source="pi2", target="pi1", bytes_per_s=5e6, seconds=0.001),
)


def test_what_a_manager_knows_reads_back_as_a_cluster() -> None:
    told = managed(_report(_node("pi2"), _node("pi1"), _node("pi3"), links=MEASURED), ENDPOINT)

    cluster = decode_cluster(cluster_toml(survey("hub", 1, told.peers, told.links)))

    assert cluster.entry == "hub"
    assert [device.name for device in cluster.devices] == ["hub", "pi1", "pi2", "pi3"]
    assert (cluster.device("pi1").memory_bytes, cluster.device("pi1").threads) == (10**9, 4)
    assert cluster.device("pi1").endpoint is None
    links = {link.between: link for link in cluster.links}
    assert len(links) == 6
    first = links["hub", "pi1"]
    assert (first.up_bytes_per_s, first.down_bytes_per_s, first.latency_s) == (8e6, 4e6, 0.002)
    between = links["pi1", "pi2"]
    assert (between.up_bytes_per_s, between.down_bytes_per_s, between.latency_s) == (5e6, 5e6, 0.001)
    assert told.assumed == ("pi3",)


def test_a_link_that_nothing_passed_is_as_slow_as_those_of_its_ends() -> None:
    told = managed(_report(_node("pi1"), _node("pi2"), links=MEASURED[:3]), ENDPOINT)

    assert told.links == (PeerLink(("pi1", "pi2"), 4e6, 6e6, 0.004),)


def test_devices_that_do_not_reach_each_other_have_no_link() -> None:
    told = managed(_report(_node("pi1", unreachable=("pi2",)), _node("pi2"), links=MEASURED), ENDPOINT)

    assert told.links == ()
    assert decode_cluster(cluster_toml(survey("hub", 1, told.peers, told.links))).links


def test_devices_that_have_gone_are_left_out() -> None:
    told = managed(_report(_node("pi1"), _node("pi2", "gone"), _node("pi3", "draining")), ENDPOINT)

    assert [peer.name for peer in told.peers] == ["pi1"]


def test_a_manager_without_devices_is_refused() -> None:
    with pytest.raises(PeerError, match="no device has joined the manager at `tcp:"):
        managed(_report(), ENDPOINT)


def test_a_device_that_does_not_tell_its_speed_is_as_fast_as_this_machine() -> None:
    node = NodeStatus(device="pi1", state="serving")

    told = managed(_report(node), ENDPOINT)

    assert decode_cluster(cluster_toml(survey("hub", 1, told.peers, told.links))).device("pi1").speed == 1.0


def test_the_command_writes_what_the_manager_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = managed(_report(_node("pi1"), _node("pi2"), links=MEASURED[:2]), ENDPOINT)
    monkeypatch.setattr("hyps_compiler.cluster_report.ask", lambda endpoint: found)
    path = tmp_path / "cluster.toml"

    done = CliRunner().invoke(main, ["cluster", ENDPOINT, "-o", str(path), "--device", "hub"])

    assert done.exit_code == 0, done.output
    assert "not measured yet, so assumed: the links to pi2" in done.output
    assert len(decode_cluster(path.read_text()).links) == 3
