"""Answers of every kind that onnxruntime gives (tensors, strings, lists, maps, nothing), compared."""

from pathlib import Path
from typing import Any

import numpy as np

from cut_fixtures import distance, is_same, plain_session
from generated.grown import Grown
from hyps.adapters.sessions import ORT_ERRORS


def answer_of(model: Path, feeds: dict[str, Any], *, optimized: bool = False) -> dict[str, Any]:
    """Return what plain onnxruntime computes with the whole model, without graph optimizations unless asked for."""
    session = plain_session(model, optimized=optimized)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def is_accepted(grown: Grown, path: Path) -> bool:
    """Return whether onnxruntime runs the model on its requests, with and without its optimizations."""
    try:
        for optimized in (False, True):
            session = plain_session(path, optimized=optimized)
            for batch in (2, 3) if grown.is_open else (2,):
                session.run(None, grown.feeds(batch))
    except ORT_ERRORS:
        return False
    return True


def gap(expected: Any, actual: Any) -> float:
    """Return the largest difference between two answers, relative; infinite where they are not of one form."""
    if type(expected) is not type(actual):
        return float("inf")
    if isinstance(expected, np.ndarray):
        return _array_gap(expected, actual)
    if isinstance(expected, (list, dict)):
        if len(expected) != len(actual):
            return float("inf")
        pairs = (
            [(expected[key], actual.get(key)) for key in expected]
            if isinstance(expected, dict)
            else list(zip(expected, actual, strict=True))
        )
        return max((gap(left, right) for left, right in pairs), default=0.0)
    if isinstance(expected, float):
        return distance(np.array(expected), np.array(actual))
    return 0.0 if expected == actual else float("inf")


def is_equal(expected: Any, actual: Any) -> bool:
    """Return whether two answers agree bit for bit."""
    if isinstance(expected, np.ndarray) and expected.dtype != object:
        return isinstance(actual, np.ndarray) and is_same(expected, actual)
    if isinstance(expected, list):
        return len(expected) == len(actual) and all(map(is_equal, expected, actual))
    return gap(expected, actual) == 0.0


def _array_gap(expected: Any, actual: Any) -> float:
    if expected.dtype == object:
        same = expected.shape == actual.shape and expected.tolist() == actual.tolist()
        return 0.0 if same else float("inf")
    return distance(expected, actual)
