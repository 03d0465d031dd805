"""Rules of matrix products: rows, columns, stacked matrices; and their sum over the inner axis."""

from collections.abc import Mapping

from hyps_passes.division.rule import Contraction, Key, Rule

RULES: Mapping[Key, Rule] = {}

CONTRACTIONS: Mapping[Key, Contraction] = {}
