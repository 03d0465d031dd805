"""onnx's own backend tests, against HyPS with a cut between all layers, as they run against any runtime."""

import unittest
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.backend.test.runner import Runner

from conformance.answers import distance, tolerance
from cut_fixtures import plain_session
from hyps.adapters.sessions import ORT_ERRORS
from hyps.errors import HypsError, TensorError
from hyps_compiler import backend
from hyps_compiler.backend import HypsBackend, HypsRep

NEWEST_IR = 13  # of onnxruntime 1.31; the onnx package stamps its cases with its own newest
LARGE = r"test_(bvlc_alexnet|densenet121|inception_v[12]|resnet50|shufflenet|squeezenet|vgg19|zfnet512)_"


def _agree(whole: Any, parts: Any) -> bool:
    return distance(whole, parts) <= tolerance(whole)


class _Beside(HypsRep):
    """Runs onnxruntime on the whole model as well."""

    def __init__(self, parts: HypsRep, model: onnx.ModelProto) -> None:
        self._parts = parts
        self._whole = plain_session(model.SerializeToString(), optimized=True)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        names = [info.name for info in self._whole.get_inputs()]
        try:
            OnnxTests.whole = self._whole.run(None, dict(zip(names, inputs, strict=False)))
        except ORT_ERRORS as error:
            raise unittest.SkipTest(f"onnxruntime fails: {error}") from error
        return self._parts.run(inputs)


class _Tested(HypsBackend):
    """HyPS in as many partitions as there are layers; what onnxruntime refuses is skipped."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> HypsRep:
        model.ir_version = min(model.ir_version, NEWEST_IR)
        try:
            plain_session(model.SerializeToString())
        except ORT_ERRORS as error:
            raise unittest.SkipTest(f"onnxruntime refuses: {error}") from error
        return _Beside(HypsBackend.prepare(model, device, cut="all"), model)

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        return True


class OnnxTests(Runner):
    """Skips where onnxruntime itself is not at the stored answer, provided that HyPS is where onnxruntime is."""

    whole: Sequence[Any] = ()

    @classmethod
    def assert_similar_outputs(
        cls, ref_outputs: Any, outputs: Any, rtol: float, atol: float, model_dir: str | None = None
    ) -> None:
        try:
            super().assert_similar_outputs(ref_outputs, outputs, rtol, atol, model_dir)
        except (AssertionError, TypeError) as error:
            assert all(map(_agree, cls.whole, outputs))
            raise unittest.SkipTest("onnxruntime's answer is not the stored one") from error


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the onnx package computes its cases when it is asked for them
    globals().update(OnnxTests(_Tested, __name__).exclude(LARGE).exclude("_cuda$").test_cases)


def relu_then_exp() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Exp", ["r"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


X = np.array([-1, 0, 2], np.float32)


@pytest.mark.parametrize("inputs", [[X], (X,), X, {"x": X}])
def test_inputs_come_in_order_or_by_name(inputs: Any) -> None:
    (y,) = backend.prepare(relu_then_exp(), optimize="none", cut="r").run(inputs)
    np.testing.assert_array_equal(y, ort.InferenceSession(relu_then_exp().SerializeToString()).run(None, {"x": X})[0])


def test_options_reach_the_compiler() -> None:
    rep = backend.prepare(relu_then_exp(), optimize="none", cut="r")
    assert len(rep.plan.partitions) == 2


def test_a_node_runs_alone() -> None:
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    (y,) = backend.run_node(node, [X, np.array(1, np.float32)])
    np.testing.assert_array_equal(y, np.array([-1, 0, 1], np.float32))


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(TensorError, match="2 inputs were given and the model has 1"):
        backend.run_model(relu_then_exp(), [X, X])


def test_only_the_cpu_is_supported() -> None:
    assert backend.supports_device("CPU")
    assert not backend.supports_device("CUDA")
    with pytest.raises(HypsError, match="CUDA"):
        backend.prepare(relu_then_exp(), "CUDA")


def test_what_onnxruntime_refuses_is_not_compatible() -> None:
    model = relu_then_exp()
    model.graph.node[0].op_type = "NoSuchOperator"
    assert not backend.is_compatible(model)
    assert backend.is_compatible(relu_then_exp())
