"""What nodes claim to make is read as it was written; what is no claim is none."""

import json

import onnx_ir as ir
import pytest

from hyps_passes.claims import Claim, read_claims, write_claim


@pytest.mark.parametrize("claim", [Claim("c1"), Claim("odd\n name", 2, 0, 5), Claim("t", 0, 2**40, 2**40 + 1)])
def test_claims_are_read_as_written(claim: Claim) -> None:
    node = ir.Node("", "Split", [], num_outputs=3)
    write_claim(node.outputs[2], claim)
    assert read_claims(dict(node.metadata_props)) == {2: claim}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "{}",
        '{"of": 3}',
        '{"of": "a", "axis": -1, "span": [0, 1]}',
        '{"of": "a", "axis": 0, "span": [1, 1]}',
        '{"of": "a", "axis": 0, "span": [0]}',
        '{"of": "a", "axis": 0, "span": [0, 1, 2]}',
        '{"of": "a", "axis": true, "span": [0, 1]}',
        '{"of": "a", "axis": 0, "span": [0, 1e99]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_claim_is_left_out(text: str) -> None:
    sound = json.dumps({"of": "b", "axis": 1, "span": [2, 3]})
    told = {"hyps.part.0": text, "hyps.part.1": sound, "hyps.part.x": sound, "other": sound}
    assert read_claims(told) == {1: Claim("b", 1, 2, 3)}


def test_a_claim_reads_as_positions() -> None:
    assert (str(Claim("a")), str(Claim("a", 2, 12, 16))) == ("all", "12 to 15 of axis 2")
