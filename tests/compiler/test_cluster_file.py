"""A cluster file from real workers, read back."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from hyps.errors import UsageError
from hyps.formats.cluster import decode_cluster
from hyps.formats.messages import MachineFacts
from hyps.formats.profiles import LinkProfile
from hyps_compiler.cli import main
from hyps_compiler.cluster_file import Peer, cluster_toml, show_survey, survey, survey_json


def peer(name: str, memory: int | None = 10**9, speed: float = 1e9) -> Peer:
    link = LinkProfile(
        peer="tcp://10.0.0.2:5757",
        device=name,
        up_bytes_per_s=7.125e6,
        down_bytes_per_s=3e6,
        latency_s=0.028,
        message_s=0.0002,
        n=5,
    )
    return Peer(name, "tcp://10.0.0.2:5757", MachineFacts(memory, 2, speed), link)


def test_what_was_found_reads_back() -> None:
    found = survey("camera", 1, [peer("server"), peer("hub", None)])
    cluster = decode_cluster(cluster_toml(found))
    assert cluster.entry == "camera"
    server = cluster.device("server")
    assert (server.memory_bytes, server.threads, server.endpoint) == (10**9, 2, "tcp://10.0.0.2:5757")
    assert server.speed == pytest.approx(1e9 / found.machine.macs_per_s, abs=2e-3)
    assert cluster.device("hub").memory_bytes is None
    (link, _) = cluster.links
    assert (link.up_bytes_per_s, link.down_bytes_per_s) == (7.125e6, 3e6)
    assert (link.latency_s, link.message_s) == pytest.approx((0.028, 0.0002))
    assert all(len(line) <= 80 for line in show_survey(found).splitlines())


def test_machines_read_names_not_places() -> None:
    told = survey_json(survey("camera", 1, [peer("server")]))
    assert told["machine"].keys() == {"memory_bytes", "threads", "macs_per_s"}
    assert told["peers"][0]["machine"]["threads"] == 2
    assert told["peers"][0]["link"]["up_bytes_per_s"] == 7.125e6


def test_two_devices_of_one_name_are_told_apart_by_their_owner() -> None:
    with pytest.raises(UsageError, match="two devices are called `local`"):
        survey("local", 1, [peer("local")])


def test_nothing_is_written_where_no_worker_answers(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    told = CliRunner().invoke(main, ["cluster", "tcp://127.0.0.1:9", "-o", str(path)])
    assert told.exit_code == 1
    assert "9" in told.output
    assert not path.exists()
