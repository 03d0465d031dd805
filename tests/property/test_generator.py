"""What the truths about random models hold of: the generator reaches everything that it declares."""

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from generated.answers import is_accepted, is_equal
from generated.declared import FEATURES, OPERATORS, TYPES
from generated.recipes import FLOAT_RECIPES
from model_fixtures import RECIPES, Grown, chooser, grow, operators

OPSETS = (7, 9, 11, 13, 15, 17, 19, 21, 23, 26)
COUNT = 400
STEPS = 14


@cache
def models() -> tuple[Grown, ...]:
    return tuple(
        grow(chooser(seed), steps=STEPS, opset=OPSETS[seed % len(OPSETS)], recipes=RECIPES) for seed in range(COUNT)
    )


@cache
def accepted() -> tuple[Grown, ...]:
    """Return the models that onnxruntime runs."""
    found = []
    for grown in models():
        with TemporaryDirectory() as folder:
            if is_accepted(grown, grown.save(Path(folder))):
                found.append(grown)
    return tuple(found)


def missing(wanted: Any, found: Counter[str]) -> list[str]:
    return [word for word in wanted if not found[word]]


def test_few_models_are_refused_by_onnxruntime() -> None:
    assert len(accepted()) > COUNT * 2 / 3


def test_every_declared_operator_occurs() -> None:
    assert len(OPERATORS) > 100
    assert missing(OPERATORS, Counter(op for grown in accepted() for op in operators(grown.model))) == []


def test_every_declared_feature_occurs() -> None:
    assert missing(FEATURES, Counter(word for grown in accepted() for word in grown.features)) == []


def test_every_declared_type_occurs() -> None:
    found = Counter(word for grown in accepted() for word in grown.features)
    assert missing([f"type {name}" for name in TYPES], found) == []


def test_every_recipe_opset_and_ir_version_occurs() -> None:
    assert missing(RECIPES, Counter(name for grown in accepted() for name in grown.recipes)) == []
    assert {grown.opset for grown in accepted()} == set(OPSETS)
    assert {grown.model.ir_version for grown in accepted()} == {3, 4, 8, 10}


def test_features_are_declared() -> None:
    """A feature with a slip in its name would count for nothing."""
    found = {word for grown in models() for word in grown.features}
    assert {word for word in found if not word.startswith(("type ", "opset ", "IR "))} == set(FEATURES)


def test_models_of_floats_are_all_accepted() -> None:
    """Other tests rely on it."""
    for seed in range(60):
        grown = grow(chooser(seed), steps=14, opset=OPSETS[2 + seed % 8], recipes=FLOAT_RECIPES)
        with TemporaryDirectory() as folder:
            assert is_accepted(grown, grown.save(Path(folder))), seed


@pytest.mark.parametrize("seed", range(5))
def test_the_same_choices_give_the_same_model(seed: int) -> None:
    first, second = (grow(chooser(seed), steps=STEPS, recipes=RECIPES) for _ in range(2))
    assert first.model == second.model
    feeds, again = first.feeds(), second.feeds()
    assert all(is_equal(value, again[name]) for name, value in feeds.items())


def test_feeds_depend_on_the_batch() -> None:
    grown = next(grown for grown in models() if grown.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param)
    feeds: list[Any] = [np.shape(grown.feeds(batch)["input0"]) for batch in (2, 3, 0)]
    assert [shape[0] for shape in feeds] == [2, 3, 0]
