"""Checks of sources that are converted first: what is told of the conversion, and that pickles need trust."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from hyps_compiler.checking.examine import examine
from hyps_compiler.checking.facts import Problem
from hyps_compiler.checking.figures import LIMITS, Found
from hyps_compiler.checking.job import ModelJob
from hyps_compiler.checking.keys import result_key
from hyps_compiler.checking.rules import CompileOptions
from hyps_compiler.checking.targets import Target

pytestmark = pytest.mark.sklearn


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.Generator(np.random.PCG64(3))
    data = rng.standard_normal((64, 4)).astype(np.float32)
    made = LogisticRegression().fit(data, (data.sum(axis=1) > 0).astype(np.int64))
    path = tmp_path_factory.mktemp("sources") / "model.pkl"
    path.write_bytes(pickle.dumps(made))
    return path


def test_a_pickle_needs_trust(pipeline: Path) -> None:
    refused = examine(ModelJob(model=str(pipeline), options=CompileOptions()))
    assert isinstance(refused.problem, Problem)
    assert "--trust" in refused.problem.hint


def test_the_conversion_is_told_and_judged(pipeline: Path) -> None:
    found = examine(ModelJob(model=str(pipeline), options=CompileOptions(), trust=True))
    assert found.facts is not None, found.problem
    made = found.facts.conversion
    assert made is not None
    assert made.kind == "sklearn"
    assert made.converter.startswith("skl2onnx")
    difference = LIMITS["conversion_difference"].find(found.facts)
    assert isinstance(difference, Found)
    assert 0 <= difference.value < 1e-4


def test_the_converter_is_part_of_the_key(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(str(pipeline), pipeline)
    before = result_key(target, CompileOptions(), "s", trust=True)
    from hyps_compiler.checking import keys

    monkeypatch.setattr(keys, "_version", lambda name: f"another {name}")
    assert result_key(target, CompileOptions(), "s", trust=True) != before
