"""All rules, by operator."""

from collections.abc import Mapping

from hyps_passes.division import (
    attention,
    blocks,
    channelwise,
    convolution,
    einsum,
    elementwise,
    lookup,
    matrix,
    normalization,
    padding,
    pooling,
    quantized,
    resizing,
    sampling,
    transposed,
    views,
)
from hyps_passes.division.rule import Contraction, Key, Rule

RULES: Mapping[Key, Rule] = {
    **elementwise.RULES,
    **views.RULES,
    **normalization.RULES,
    **channelwise.RULES,
    **pooling.RULES,
    **padding.RULES,
    **resizing.RULES,
    **blocks.RULES,
    **quantized.RULES,
    **sampling.RULES,
    **convolution.RULES,
    **transposed.RULES,
    **matrix.RULES,
    **einsum.RULES,
    **lookup.RULES,
    **attention.RULES,
}

CONTRACTIONS: Mapping[Key, Contraction] = {
    **convolution.CONTRACTIONS,
    **transposed.CONTRACTIONS,
    **sampling.CONTRACTIONS,
    **matrix.CONTRACTIONS,
    **einsum.CONTRACTIONS,
}
