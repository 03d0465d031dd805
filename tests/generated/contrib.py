"""Recipes with onnxruntime's own operators."""

from generated.grower import Grower, Recipe
from generated.values import Shape, Tensor

Made = list[Tensor]
CONTRIB = "com.microsoft"


def _fused_matmul(g: Grower) -> Made | None:
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    turned = g.choose(2)
    weight = g.weight(5, x.size()) if turned else g.weight(x.size(), 5)
    return [g.op("FusedMatMul", [x.name, weight], (x.shape[0], 5), domain=CONTRIB, transB=turned, alpha=0.5)]


def _fused_gemm(g: Grower) -> Made | None:
    x = g.pick(2, lambda t: t.has_fixed(1) and t.size() <= 24)
    if x is None:
        return None
    names = [x.name, g.weight(x.size(), 5), g.weight(5)]
    return [g.op("FusedGemm", names, (x.shape[0], 5), domain=CONTRIB, activation="Relu")]


def _activation(g: Grower) -> Made:
    x = g.fixed()
    kind = ("Gelu", "FastGelu", "QuickGelu", "BiasGelu")[g.choose(4)]
    names = [x.name] + ([g.weight(x.size(-1))] if kind == "BiasGelu" or (kind == "FastGelu" and g.choose(2)) else [])
    return [g.op(kind, names, x.shape, domain=CONTRIB)]


def _skip_norm(g: Grower) -> Made | None:
    """Two inputs added and normalised; the bias may be missing, and of four outputs the first and last are wanted."""
    x = g.pick(3, lambda t: all(isinstance(dim, int) and dim <= 64 for dim in t.shape[1:]))
    if x is None:
        return None
    size = x.size(-1)
    names = [x.name, g.same(x).name, g.weight(size), g.weight(size) if g.choose(2) else "", g.weight(size)]
    shapes: list[Shape | None] = [x.shape] if g.choose(2) else [x.shape, None, None, x.shape]
    return g.ops("SkipLayerNormalization", names[: 4 + g.choose(2)] if names[3] else names, shapes, domain=CONTRIB)


def _layers(g: Grower) -> Made | None:
    x = g.pick(3, lambda t: all(isinstance(dim, int) and dim <= 64 for dim in t.shape[1:]))
    if x is None:
        return None
    bias = g.weight(x.size(-1))
    y = g.op("BiasGelu", [x.name, bias], x.shape, domain=CONTRIB)
    return [g.op("SimplifiedLayerNormalization", [y.name, g.weight(x.size(-1))], x.shape, axis=-1)]


RECIPES = {
    "contrib-activation": Recipe(_activation),
    "contrib-fused-gemm": Recipe(_fused_gemm),
    "contrib-fused-matmul": Recipe(_fused_matmul),
    "contrib-layers": Recipe(_layers),
    "contrib-skip-norm": Recipe(_skip_norm),
}
