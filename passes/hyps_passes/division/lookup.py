"""Rules of table look-ups: by index, by column; and by row, whose pieces are added."""

from collections.abc import Mapping

from hyps_passes.division.rule import Contraction, Key, Rule

RULES: Mapping[Key, Rule] = {}

CONTRACTIONS: Mapping[Key, Contraction] = {}
