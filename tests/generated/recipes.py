"""Every recipe by name."""

from collections.abc import Mapping

from generated import (
    contrib,
    dense,
    elementwise,
    empties,
    functions,
    halves,
    images,
    lists,
    nested,
    quantized,
    shapes,
    states,
    text,
)
from generated.grower import Recipe

FLOAT_RECIPES: Mapping[str, Recipe] = {
    name: recipe
    for module in (dense, elementwise, images, nested, shapes)
    for name, recipe in module.RECIPES.items()
    if name != "any-rank"
}
"""What ordinary networks are made of: a request for such a model can be made up."""

RECIPES: Mapping[str, Recipe] = {
    name: recipe
    for module in (
        contrib, dense, elementwise, empties, functions, halves, images, lists, nested, quantized, shapes, states, text,
    )
    for name, recipe in module.RECIPES.items()
}  # fmt: skip
