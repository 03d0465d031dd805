"""Recipes of strings."""

import numpy as np
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Tensor

Made = list[Tensor]
ML = "ai.onnx.ml"


def words(g: Grower) -> Tensor:
    """Return strings: of an input, of a cast, or that an earlier recipe made."""
    kind = g.choose(3)
    found = [v for v in g.values if v.of == T.STRING and v.shape]
    if found and kind:
        return found[-1 - g.choose(len(found))]
    if kind == 1 and g.opset >= 9:
        return g.cast(g.cast(g.any(), T.INT64), T.STRING)
    return g.input((g.batch, 3), T.STRING)


def _turned(g: Grower) -> Made:
    """Views of strings."""
    x = words(g)
    if g.choose(2):
        return [g.op("Identity", [x.name], x.shape, T.STRING)]
    return [g.axes("Unsqueeze", x, [0], (1, *x.shape))]


def _looked_up(g: Grower) -> Made:
    """Words of a table, by index."""
    table = g.put(np.array(["null", "eins", "zwei", "drei", ""], dtype=object))
    ids = g.input((g.batch, 2), T.INT64)
    return [g.op("Gather", [table, ids.name], ids.shape, T.STRING)]


def _numbers(g: Grower) -> Made:
    """Numbers as text, and back."""
    text = g.cast(g.cast(g.any(), T.INT32), T.STRING)
    return [text, g.op("Neg", [g.cast(text, T.FLOAT).name], text.shape)]


def _equal(g: Grower) -> Made:
    x = words(g)
    same = g.op("Equal", [x.name, g.put(np.array("a", dtype=object))], x.shape, T.BOOL)
    return [same, g.cast(same, T.FLOAT)]


def _chosen(g: Grower) -> Made:
    """Strings where another tensor says so."""
    x = words(g)
    mask = g.op("Less", [g.input(x.shape).name, g.number(0)], x.shape, T.BOOL)
    return [g.op("Where", [mask.name, x.name, g.put(np.array(["other"], dtype=object))], x.shape, T.STRING)]


def _normal(g: Grower) -> Made:
    x = g.input((f"W{g.count}",), T.STRING)
    case = ("LOWER", "UPPER", "NONE")[g.choose(3)]
    rows = f"K{g.count}"
    y = g.op(
        "StringNormalizer", [x.name], (rows,), T.STRING, case_change_action=case, stopwords=["the"], locale="C",
        is_case_sensitive=1,
    )  # fmt: skip
    return [y]


def _joined(g: Grower) -> Made:
    x = words(g)
    y = g.op("StringConcat", [x.name, g.put(np.array("!", dtype=object))], x.shape, T.STRING)
    return [y, g.op("RegexFullMatch", [y.name], x.shape, T.BOOL, pattern="a.*")]


def _parts(g: Grower) -> Made:
    """Words of a text: how many there are, and as many columns as the longest has."""
    x = words(g)
    parts, counts = g.ops(
        "StringSplit", [x.name], [(*x.shape, f"K{g.count}"), x.shape], [T.STRING, T.INT64], delimiter=" "
    )
    g.outputs.append(parts.info)
    return [counts]


def _encoded(g: Grower) -> Made:
    x = words(g)
    g.domains[ML] = 2
    return [
        g.op(
            "LabelEncoder", [x.name], x.shape, domain=ML, keys_strings=["a", "B"], values_floats=[1.0, 2.0],
            default_float=-1.0,
        )
    ]  # fmt: skip


def _distinct(g: Grower) -> Made:
    x = words(g)
    g.features.add("as many rows as the values say")
    return [g.op("Unique", [x.name], (f"K{g.count}",), T.STRING)]


RECIPES = {
    "text-chosen": Recipe(_chosen, since=9),
    "text-distinct": Recipe(_distinct, since=11),
    "text-encoded": Recipe(_encoded),
    "text-equal": Recipe(_equal, since=19),
    "text-joined": Recipe(_joined, since=20),
    "text-looked-up": Recipe(_looked_up),
    "text-normal": Recipe(_normal, since=10),
    "text-numbers": Recipe(_numbers, since=9),
    "text-parts": Recipe(_parts, since=20),
    "text-turned": Recipe(_turned),
}
