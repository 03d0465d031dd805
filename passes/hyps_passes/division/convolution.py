"""Rules of convolutions: spatial tiles with their halo, output channels, groups; and their sum over input channels."""

from collections.abc import Mapping

from hyps_passes.division.rule import Contraction, Key, Rule

RULES: Mapping[Key, Rule] = {}

CONTRACTIONS: Mapping[Key, Contraction] = {}
