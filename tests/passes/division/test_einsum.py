"""Spans and sums of Einsum, against the whole in onnxruntime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from division_fixtures import OneNode
from hyps_passes.division.rule import IndivisibleError
from hyps_passes.division.rules import CONTRACTIONS
from rule_checks import Data, assert_spans, assert_sum, numbers

_EQUATIONS = ["ab,bc->ac", "ab,bc", "bhqd,bhkd->bhqk", "bqc,chd->bhqd", "abc->cab", "abc->b", "a,b->ab", "ab,bc,cd->ad"]


def _one(data: Data, equation: str) -> tuple[OneNode, dict[str, int]]:
    terms = equation.split("->")[0].split(",")
    sizes = {letter: data.draw(st.integers(2, 5), letter) for letter in sorted(set("".join(terms)))}
    feeds = {f"x{index}": numbers(data, tuple(sizes[letter] for letter in term)) for index, term in enumerate(terms)}
    spaced = equation.replace(",", " , ")
    return OneNode(helper.make_node("Einsum", list(feeds), ["y"], equation=spaced), feeds), sizes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_letter_of_the_output_is_divided(data: Data) -> None:
    one, _ = _one(data, data.draw(st.sampled_from(_EQUATIONS), "equation"))

    assert_spans(data, one)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_longest_sum_is_divided(data: Data) -> None:
    equation = data.draw(
        st.sampled_from([text for text in _EQUATIONS if text not in ("abc->cab", "a,b->ab")]), "equation"
    )
    one, sizes = _one(data, equation)
    left, _, right = equation.partition("->")
    output = right or "ac"
    longest = max(size for letter, size in sizes.items() if letter in left and letter not in output)

    assert_sum(data, one, longest)


@pytest.mark.parametrize(("equation", "reason"), [("...a->...a", "without letters"), ("aa->a", "diagonal")])
def test_what_is_no_plain_product_is_refused(equation: str, reason: str) -> None:
    one = OneNode(helper.make_node("Einsum", ["x"], ["y"], equation=equation), {"x": np.ones((3, 3), np.float32)})

    with pytest.raises(IndivisibleError, match=reason):
        one.piece(0, 0, 1)


def test_what_sums_nothing_has_no_sum_to_divide() -> None:
    one = OneNode(helper.make_node("Einsum", ["x"], ["y"], equation="ab->ba"), {"x": np.ones((2, 3), np.float32)})

    with pytest.raises(IndivisibleError, match="sums nothing"):
        CONTRACTIONS["", "Einsum"].size(one.ir_node, one.facts)
