"""Reports on the wire."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.errors import PeerError
from hyps.formats.messages import AskStatus, Status, decode_from_client, decode_from_worker, encode
from hyps.formats.status import (
    MAX_REPORT_NBYTES,
    NodeStatus,
    Report,
    decode_report,
    encode_report,
    json_schema,
    to_level,
)
from status_fixtures import manager, nested

SCHEMA = Path(__file__).parents[3] / "docs" / "status.schema.json"


@pytest.mark.parametrize("report", [manager(0), manager(3), manager(50), nested()], ids=["none", "3", "50", "nested"])
def test_a_report_comes_out_as_it_went_in(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


def test_the_messages_around_it_too() -> None:
    assert decode_from_client(encode(AskStatus("a", 3))) == AskStatus("a", 3)
    assert decode_from_worker(encode(Status("a"))) == Status("a")


@pytest.mark.parametrize("levels", [0, 9])
def test_levels_beyond_reason_are_no_message(levels: int) -> None:
    with pytest.raises(PeerError, match="not a message"):
        decode_from_client(encode(AskStatus("a", levels)))


def test_a_newer_report_is_read_without_what_is_new() -> None:
    told = msgspec.to_builtins(manager(1))
    told["weather"] = "fine"
    told["nodes"][0]["state"] = "dreaming"
    report = decode_report(msgspec.msgpack.encode(told))
    assert report.nodes[0].state == "dreaming"


def test_an_older_report_is_read_with_defaults() -> None:
    assert decode_report(msgspec.msgpack.encode({"role": "worker", "state": "serving"})).requests.done == 0


@given(st.binary(max_size=200))
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_report(data)


def test_groups_without_end_are_refused() -> None:
    told: dict[str, object] = {"role": "manager", "state": "inferring"}
    for _ in range(5000):
        told = {"role": "manager", "state": "x", "nodes": [{"device": "a", "state": "b", "group": told}]}
    data = _pack_deep(told)
    with pytest.raises(PeerError, match="not a report"):
        decode_report(data)


def _pack_deep(told: dict[str, object]) -> bytes:
    """Encode from the inside, which needs no stack."""
    chain = [told]
    while "nodes" in chain[-1]:
        nodes = chain[-1]["nodes"]
        assert isinstance(nodes, list)
        chain.append(nodes[0]["group"])
    data = msgspec.msgpack.encode(chain.pop())
    for _ in chain:
        node = {"device": "a", "state": "b", "group": msgspec.Raw(data)}
        data = msgspec.msgpack.encode({"role": "manager", "state": "x", "nodes": [node]})
    return data


def test_too_large_a_report_leaves_out_what_is_told_per_partition() -> None:
    report = manager(50)
    data = encode_report(report, max_nbytes=40_000)
    small = decode_report(data)
    assert len(data) <= 40_000
    assert small.is_cut
    assert (small.partitions, small.links) == ((), ())
    assert [node.device for node in small.nodes] == [node.device for node in report.nodes]
    assert small.requests == report.requests


def test_what_is_larger_than_any_report_is_not_read() -> None:
    with pytest.raises(PeerError, match="more than"):
        decode_report(bytes(MAX_REPORT_NBYTES + 1))


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 8])
def test_levels_are_cut_off(levels: int) -> None:
    def depth(report: Report) -> int:
        return 1 + max((depth(node.group) for node in report.nodes if node.group is not None), default=0)

    shown = to_level(nested(), levels)
    assert depth(shown) == min(levels, 4)
    assert [node.is_group for node in shown.nodes] == [True, False]


def test_the_published_schema_is_that_of_the_types() -> None:
    assert json_schema() == SCHEMA.read_bytes(), "generate docs/status.schema.json again, see CONTRIBUTING.md"


def test_a_plain_node_has_no_group() -> None:
    assert NodeStatus(device="pi", state="serving").group is None
