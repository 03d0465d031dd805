"""Made-up values: of the type that was asked for, and taken by onnxruntime."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TypeProto, helper

from cut_fixtures import plain_session
from hyps.errors import ExecutionError
from hyps_compiler.values import numpy_dtype, random_array, random_value


def test_integers_strings_and_truth_values_can_be_made_up() -> None:
    rng = np.random.default_rng(0)
    assert set(random_array("int64", (50,), rng)) == {0, 1}
    assert random_array("bool", (3,), rng).dtype == np.bool_
    assert random_array("string", (2,), rng).tolist() == ["a", "a"]
    assert random_array("float16", (2, 3), rng).dtype == np.float16


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ("tensor(float)", "float32"),
        ("tensor(double)", "float64"),
        ("tensor(uint8)", "uint8"),
        ("tensor(string)", "string"),
        ("tensor(bfloat16)", None),
        ("seq(tensor(float))", None),
        ("map(int64,tensor(float))", None),
    ],
)
def test_types_in_numpys_words(told: str, dtype: str | None) -> None:
    assert numpy_dtype(told) == dtype


FLOATS = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)


def identity(kind: TypeProto) -> Any:
    infos = [helper.make_value_info(name, kind) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return plain_session(model.SerializeToString())


@pytest.mark.parametrize(
    "kind",
    [
        FLOATS,
        helper.make_tensor_type_proto(onnx.TensorProto.STRING, None),
        helper.make_tensor_type_proto(onnx.TensorProto.INT8, None),
        helper.make_sequence_type_proto(FLOATS),
        helper.make_optional_type_proto(helper.make_sequence_type_proto(FLOATS)),
        helper.make_optional_type_proto(FLOATS),
    ],
)
def test_onnxruntime_takes_what_was_made_up(kind: TypeProto) -> None:
    session = identity(kind)
    value = random_value(session.get_inputs()[0].type, (3,), np.random.default_rng(0))
    (answer,) = session.run(None, {"x": value})
    assert len(answer) == len(value)
    assert all(np.array_equal(left, right) for left, right in zip(answer, value, strict=True))


def test_types_that_numpy_lacks_come_as_values_of_onnxruntime() -> None:
    value = random_value("tensor(bfloat16)", (2, 3), np.random.default_rng(0))
    assert (value.data_type(), value.shape()) == ("tensor(bfloat16)", [2, 3])


def test_maps_have_keys_of_their_type() -> None:
    value = random_value("map(string,tensor(float))", (), np.random.default_rng(0))
    assert all(isinstance(key, str) and isinstance(item, float) for key, item in value.items())
    assert set(random_value("map(int64,tensor(int64))", (), np.random.default_rng(0))) == {0, 1}


@pytest.mark.parametrize("kind", ["tensor(int4)", "opaque(x,y)", "map(int64,seq(tensor(float)))", ""])
def test_what_cannot_be_given_from_python_is_said(kind: str) -> None:
    with pytest.raises(ExecutionError, match="can be made up"):
        random_value(kind, (2,), np.random.default_rng(0))
