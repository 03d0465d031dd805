"""The light models of the onnx package, whose weights are computed in the graph, against their reference outputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cut_fixtures import distance, is_same, stage, whole_answer
from hyps.formats.plan import Optimization
from hyps.local import LocalRunner
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = "bvlc_alexnet densenet121 inception_v1 inception_v2 resnet50 shufflenet squeezenet vgg19 zfnet512".split()
LEVELS: tuple[Optimization, ...] = ("none", "portable", "native")
FAST = {("shufflenet", "pooling"), ("shufflenet", "all"), ("squeezenet", "pooling"), ("squeezenet", "all")}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this onnx package comes without its light models")


def light(name: str) -> tuple[Path, dict[str, Any], Any]:
    """Return the model, the inputs that its reference output belongs to, and that output."""
    path = FOLDER / f"light_{name}.onnx"
    proto = onnx.load(path)
    weights = {tensor.name for tensor in proto.graph.initializer}
    (value,) = (value for value in proto.graph.input if value.name not in weights)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    feeds = {value.name: (np.arange(count) / count).astype(np.float32).reshape(shape)}
    reference = onnx.load_tensor(path.with_name(f"light_{name}_output_0.pb"))
    return path, feeds, numpy_helper.to_array(reference)


def cases() -> Iterator[Any]:
    for name in NAMES:
        for level in LEVELS:
            for cut in ("pooling", "all"):
                marks = [] if (name, cut) in FAST else [pytest.mark.slow]
                yield pytest.param(name, level, cut, marks=marks, id=f"{name}-{level}-{cut}")


@pytest.mark.parametrize(("name", "level", "cut"), list(cases()))
def test_parts_compute_the_reference(name: str, level: Optimization, cut: str, tmp_path: Path) -> None:
    path, feeds, reference = light(name)
    options = Options(request=Request(cuts=(cut,)), optimization=level, feeds=feeds, verify=False)
    plan = compile_model(path, tmp_path / "plan", options).plan
    assert len(plan.partitions) > (10 if cut == "all" else 2)
    staged, _ = stage(path, tmp_path / "stage", level, feeds)
    (whole,) = whole_answer(staged.path, feeds).values()
    with LocalRunner(tmp_path / "plan", exact=True, threads=1) as parts:
        (exact,) = parts.run(feeds).values()
    assert is_same(whole, exact)
    with LocalRunner(tmp_path / "plan") as parts:
        (answer,) = parts.run(feeds).values()
    assert distance(reference, answer) <= 1e-5


def test_every_light_model_is_tested() -> None:
    assert sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("*.onnx")) == NAMES
