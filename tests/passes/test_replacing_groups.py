"""A group is a device that no other one shares a partition with."""

import pytest
from msgspec.structs import replace

from hyps.formats.replanning import Question
from hyps_passes.replacing import place_again
from replanning_fixtures import chain


def question(groups: str, *, is_chain: bool = True) -> Question:
    """Return partitions one of which takes most of the time, on three devices."""
    told = chain((0.1, 1.0, 0.1), {"a": 1, "b": 1, "c": 1}, aim="throughput")
    devices = tuple(replace(device, is_group=device.name in groups) for device in told.devices)
    parts = told.partitions
    if not is_chain:
        parts = (*parts[:2], replace(parts[2], inputs=("t1", "t2")))
    return replace(told, devices=devices, partitions=parts, allow_replicas=True)


@pytest.mark.parametrize("groups", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("is_chain", [True, False], ids=["row", "branch"])
def test_no_group_is_one_of_several(groups: str, is_chain: bool) -> None:
    answer = place_again(question(groups, is_chain=is_chain))
    shared = {name for part, names in answer.replicas.items() for name in (*names, answer.placement[part])}
    assert shared.isdisjoint(groups)
    assert bool(shared) == (len(groups) < 2), "the others still share the long partition"


def test_a_group_that_shares_a_partition_now_is_taken_out_of_it() -> None:
    current: dict[str, tuple[str, ...]] = dict.fromkeys(("p0", "p1", "p2"), ("a", "b", "c"))
    answer = place_again(replace(question("a"), current=current))
    for part, names in answer.replicas.items():
        several = (*names, answer.placement[part])
        assert "a" not in several or not names, part
