"""Messages survive their journey, and nothing else is taken for one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyps.errors import PeerError
from hyps.formats.messages import (
    MAX_HEADER_NBYTES,
    Cancel,
    Done,
    Failed,
    FromClient,
    FromWorker,
    Heartbeat,
    Hello,
    PartitionSeconds,
    Probe,
    Probed,
    Submit,
    TensorHeader,
    Welcome,
    decode_from_client,
    decode_from_worker,
    encode,
)
from hyps.formats.plan import NamedTensor

HEADER = TensorHeader("x", "float32", (1, 2), 8)
FROM_CLIENT: list[FromClient] = [
    Hello(1, "test"),
    Submit("1", (HEADER,), ("y",)),
    Cancel("1"),
    Heartbeat(),
    Probe("1", 5),
]
FROM_WORKER: list[FromWorker] = [
    Welcome(1, "pi", "m", "00", (NamedTensor(name="x", dtype="float32", shape=(1, None, "n")),), (), 10),
    Done("1", (HEADER,)),
    Failed("1", "E_BUSY", "full", "wait", 0.5),
    Heartbeat(),
    Probed("1", (PartitionSeconds("p000", 0.1, 0.2, 3),)),
]


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda message: type(message).__name__)
def test_what_a_client_says_arrives(message: FromClient) -> None:
    assert decode_from_client(encode(message)) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda message: type(message).__name__)
def test_what_a_worker_says_arrives(message: FromWorker) -> None:
    assert decode_from_worker(memoryview(encode(message))) == message


def test_fields_of_the_future_are_ignored() -> None:
    data = msgspec.msgpack.encode(["cancel", "1", "a field of the future"])
    assert decode_from_client(data) == Cancel("1")


@pytest.mark.parametrize(
    "value",
    [
        ["shutdown", "1"],
        ["cancel"],
        ["cancel", 1],
        ["cancel", "x" * 65],
        ["submit", "1", [["x", "float32", [-1], 8]]],
        ["submit", "1", [["x", "float32", [2**63], 8]]],
        ["submit", "1", [["x", "float32", [1] * 33, 8]]],
        ["submit", "1", [["x", "float32", [1], 8]] * 4097],
        ["probe", "1", -1],
        ["probe", "1", 2**23],
        {"type": "cancel"},
        "cancel",
        None,
    ],
)
def test_what_is_no_message_is_refused(value: object) -> None:
    with pytest.raises(PeerError) as caught:
        decode_from_client(msgspec.msgpack.encode(value))
    assert caught.value.code == "E_PROTOCOL"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"GET / HTTP/1.1\r\n", b"\x91" * 100_000, bytes(MAX_HEADER_NBYTES + 1)])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_from_client(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for decode in (decode_from_client, decode_from_worker):
        try:
            message = decode(data)
        except PeerError:
            continue
        assert decode(encode(message)) == message
