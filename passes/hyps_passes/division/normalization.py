"""Rules of operators that mix one axis and leave the others apart: softmax, normalizations, reductions."""

from collections.abc import Mapping

from hyps_passes.division.rule import Key, Rule

RULES: Mapping[Key, Rule] = {}
