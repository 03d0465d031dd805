"""What nodes and managers say to each other, and what no message can say."""

import math

import msgspec
import pytest

from hyps.errors import PeerError
from hyps.formats.node_messages import (
    MAX_FROM_NODE_NBYTES,
    Beat,
    Finished,
    Running,
    Sending,
    decode_from_node,
    encode_node_message,
)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, 1e300])
def test_seconds_are_numbers_that_can_be_counted_with(seconds: float) -> None:
    for message in (
        Finished(1, 1, "p", 0.0, seconds, 1),
        Finished(1, 1, "p", seconds, 0.0, 1),
        Beat(1, (), running=(Running(1, 1, "p", seconds),)),
        Beat(1, (), sendings=(Sending("b", 1, 0, seconds),)),
    ):
        with pytest.raises(PeerError, match="not a message"):
            decode_from_node(encode_node_message(message))


def test_what_a_message_lists_is_bounded() -> None:
    for message in (
        Beat(1, tuple(map(str, range(70_000)))),
        Beat(1, (), refused=tuple((str(number), "") for number in range(70_000))),
        Beat(1, (), unreachable=tuple(map(str, range(5000)))),
        Beat(1, (), running=(Running(1, 1, "p", 0.0),) * 5000),
    ):
        with pytest.raises(PeerError, match="not a message"):
            decode_from_node(encode_node_message(message))


def test_a_long_message_is_refused_unread() -> None:
    with pytest.raises(PeerError, match="more than"):
        decode_from_node(bytes(MAX_FROM_NODE_NBYTES + 1))


def test_a_beat_comes_back_as_it_was() -> None:
    beat = Beat(3, ("p",), (("q", "too large"),), (Running(1, 2, "p", 0.5),), unreachable=("b",))
    assert decode_from_node(encode_node_message(beat)) == beat
    assert msgspec.msgpack.decode(encode_node_message(beat))[0] == "beat"
