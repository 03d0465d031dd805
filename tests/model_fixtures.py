"""Models for tests: of plain parts, and random ones; `generated` holds what the random ones are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from generated.grower import Grower, Recipe
from generated.grown import Grown, operators
from generated.recipes import FLOAT_RECIPES, RECIPES
from generated.values import BATCH, Array, Choose, chooser, floats

__all__ = [
    "BATCH",
    "FLOAT_RECIPES",
    "RECIPES",
    "Array",
    "Choose",
    "Grown",
    "chooser",
    "floats",
    "grow",
    "model_of",
    "operators",
    "passes_checker",
    "save",
]


def save(model: ModelProto, path: Path) -> Path:
    """Write the model as one file and return its path."""
    path.write_bytes(model.SerializeToString())
    return path


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: dict[str, Array] | None = None,
    *,
    opset: int = 17,
    contrib: bool = False,
    ir_version: int = 8,
) -> ModelProto:
    """Return a model of plain parts."""
    inits = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "made", list(inputs), list(outputs), inits)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("com.microsoft", 1)] if contrib else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def grow(choose: Choose, *, steps: int, opset: int = 17, recipes: Mapping[str, Recipe] = FLOAT_RECIPES) -> Grown:
    """Return a random model of about `steps` recipes; every choice is `choose`'s."""
    return Grower(choose, opset).grow(steps, recipes)


def passes_checker(model: ModelProto) -> bool:
    """Return whether onnx itself accepts the model."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True
