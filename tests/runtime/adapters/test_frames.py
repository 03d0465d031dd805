"""Tensors on the wire: there and back, and what hostile frames come to."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hyps.adapters.frames import Buffer, check_frames, from_frames, to_frames
from hyps.errors import HypsError, PeerError, TensorError
from hyps.formats.messages import TensorHeader
from hyps.formats.plan import NamedTensor

DTYPES = ["bool", "int8", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64", "complex64"]


def declared(tensors: dict[str, Any], dtype: str = "") -> list[NamedTensor]:
    return [NamedTensor(name=name, dtype=dtype or value.dtype.name, shape=None) for name, value in tensors.items()]


def there_and_back(tensors: dict[str, Any], dtype: str = "") -> dict[str, Any]:
    headers, frames = to_frames(tensors)
    sent: list[Buffer] = [memoryview(bytearray(frame)) for frame in frames]
    check_frames(headers, sent, declared(tensors, dtype))
    return from_frames(headers, sent)


@given(st.data(), st.sampled_from(DTYPES))
def test_every_array_comes_back(data: st.DataObject, dtype: str) -> None:
    array = data.draw(hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
    back = there_and_back({"x": array})["x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    _, (frame,) = to_frames({"x": array})
    assert np.shares_memory(np.frombuffer(frame, np.float32), array)


@pytest.mark.parametrize("array", [np.arange(12.0).reshape(3, 4).T, np.arange(12.0)[::2], np.zeros((3, 0, 2))])
def test_any_layout_comes_back(array: Any) -> None:
    np.testing.assert_array_equal(there_and_back({"x": array})["x"], array)


@pytest.mark.parametrize("array", [np.array([["a", "é\0€"], ["", "z" * 300]]), np.array("alone"), np.array([], str)])
def test_strings_come_back(array: Any) -> None:
    back = there_and_back({"s": array}, "string")["s"]
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_an_unaligned_buffer_is_copied() -> None:
    data = memoryview(bytearray(b"\0" + np.arange(4, dtype=np.float64).tobytes()))[1:]
    array = from_frames([TensorHeader("x", "float64", (4,), 32)], [data])["x"]
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "value", [[np.zeros(1)], {"a": 1}, np.zeros(1, object), np.zeros(1, "M8[s]"), np.zeros(1, ">f4")]
)
def test_what_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(TensorError):
        to_frames({"x": value})


X = NamedTensor(name="x", dtype="float32", shape=("n", 2))


@pytest.mark.parametrize(
    ("header", "frame", "kind"),
    [
        (TensorHeader("x", "float32", (1, 2), 8), b"1234567", PeerError),
        (TensorHeader("x", "float32", (1, 2), 9), b"123456789", PeerError),
        (TensorHeader("x", "float32", (1, 2), 9), b"12345678", PeerError),
        (TensorHeader("x", "float32", (2**62, 2), 8), b"12345678", PeerError),
        (TensorHeader("x", "float32", (0, 2), 8), b"12345678", PeerError),
        (TensorHeader("x", "float32", (1, 3), 12), b"123456789012", TensorError),
        (TensorHeader("x", "float64", (1, 2), 16), bytes(16), TensorError),
        (TensorHeader("x", "object", (1, 2), 16), bytes(16), TensorError),
        (TensorHeader("y", "float32", (1, 2), 8), b"12345678", TensorError),
    ],
)
def test_a_frame_that_contradicts_is_refused(header: TensorHeader, frame: bytes, kind: type[HypsError]) -> None:
    with pytest.raises(kind):
        check_frames([header], [frame], [X])


def test_an_element_type_that_cannot_be_sent_is_refused_even_if_declared() -> None:
    with pytest.raises(TensorError, match="cannot be sent"):
        check_frames(
            [TensorHeader("x", "object", (1,), 8)], [bytes(8)], [NamedTensor(name="x", dtype="object", shape=None)]
        )


def test_frames_must_be_as_many_as_headers_and_names_once() -> None:
    header = TensorHeader("x", "float32", (1, 2), 8)
    with pytest.raises(PeerError, match="1 tensors are announced and 0 frames came"):
        check_frames([header], [], [X])
    with pytest.raises(PeerError, match="announced twice"):
        check_frames([header, header], [bytes(8), bytes(8)], [X])


def test_an_empty_tensor_of_impossible_size_is_refused() -> None:
    header = TensorHeader("x", "float32", (0, 2**62, 2**62), 0)
    with pytest.raises(PeerError, match="impossible shape"):
        check_frames([header], [b""], [NamedTensor(name="x", dtype="float32", shape=None)])


@pytest.mark.parametrize(
    "data",
    [b"\x01\0\0\0", b"\xff\xff\xff\xffabc", b"\x01\0\0\0\xff", b"\x01\0\0\0ab", b"\0\0\0", b"\x05\0\0\0abc"],
)
def test_bytes_that_are_no_strings_are_refused(data: bytes) -> None:
    header = TensorHeader("s", "string", (1,), len(data))
    expected = NamedTensor(name="s", dtype="string", shape=None)
    with pytest.raises(PeerError):
        received([header], [data], [expected])


def received(headers: list[TensorHeader], frames: list[bytes], expected: list[NamedTensor]) -> dict[str, Any]:
    check_frames(headers, frames, expected)
    return from_frames(headers, frames)


headers = st.builds(
    TensorHeader,
    st.sampled_from(["x", "s", "z"]),
    st.sampled_from([*DTYPES, "string", "object", "V8", ""]),
    st.lists(st.integers(0, 3) | st.integers(0, 2**62), max_size=4).map(tuple),
    st.integers(0, 64) | st.integers(0, 2**62),
)


@given(st.lists(headers, max_size=3), st.lists(st.binary(max_size=64), max_size=3))
def test_any_headers_and_frames_give_their_tensors_or_a_refusal(given: list[TensorHeader], frames: list[bytes]) -> None:
    expected = [NamedTensor(name=header.name, dtype=header.dtype, shape=None) for header in given]
    try:
        arrays = received(given, frames, expected)
    except HypsError:
        return
    assert {name: array.shape for name, array in arrays.items()} == {header.name: header.shape for header in given}
