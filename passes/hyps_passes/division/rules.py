"""All rules, by operator."""

from collections.abc import Mapping

from hyps_passes.division import convolution, elementwise, lookup, matrix, normalization, pooling, transposed, views
from hyps_passes.division.rule import Contraction, Key, Rule

RULES: Mapping[Key, Rule] = {
    **elementwise.RULES,
    **views.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **convolution.RULES,
    **transposed.RULES,
    **matrix.RULES,
    **lookup.RULES,
}

CONTRACTIONS: Mapping[Key, Contraction] = {
    **convolution.CONTRACTIONS,
    **transposed.CONTRACTIONS,
    **matrix.CONTRACTIONS,
    **lookup.CONTRACTIONS,
}
