"""Rules of operators that rearrange: reshapes, transpositions, slices, concatenations."""

from collections.abc import Mapping

from hyps_passes.division.rule import Key, Rule

RULES: Mapping[Key, Rule] = {}
