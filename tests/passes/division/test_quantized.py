"""Joined quantized maps: pieces are spans of the whole, bit for bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from division_fixtures import Array, OneNode
from division_windows import check_spans, node_of, values
from hyps_passes.division.rule import Part, Span

SCALE = np.asarray(0.05, np.float32)


def _joined(axis: int, lengths: list[int]) -> OneNode:
    rng = np.random.default_rng(len(lengths))
    inputs: dict[str, Array] = {"ys": SCALE, "yz": np.asarray(120, np.uint8)}
    for number, length in enumerate(lengths):
        shape = [2, 3, 4]
        shape[axis] = length
        inputs |= {
            f"x{number}": values(rng, tuple(shape), np.uint8),
            f"s{number}": np.asarray(0.03 * (number + 1), np.float32),
            f"z{number}": np.asarray(100 + number, np.uint8),
        }
    fed = [name for name in inputs if name.startswith("x")]
    node = node_of("QLinearConcat", inputs, fed=0, domain="com.microsoft", axis=axis).node
    constants = {name: value for name, value in inputs.items() if name not in fed}
    return OneNode(node, {name: inputs[name] for name in fed}, constants)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 2), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_pieces_of_joined_maps_are_spans_of_them(data: st.DataObject, along: int, lengths: list[int]) -> None:
    check_spans(data, _joined(along, lengths), data.draw(st.integers(0, 2)), exact=True)


def test_operands_that_a_span_does_not_reach_are_left_out_with_their_numbers() -> None:
    piece = _joined(1, [2, 3, 4]).piece(1, 2, 6)
    assert piece.parts == {5: Part(1, Span(0, 3)), 8: Part(1, Span(0, 1))}
    assert piece.absent == {2, 3, 4}
