"""Pieces of models, and models joined again, compute what the model computes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from cut_fixtures import is_same, plain_session, whole_answer
from hyps_compiler.subgraphs import Model, can_be_given, load_model, merged, reads
from model_fixtures import chooser, floats, grow, model_of, save

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


def forked() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Neg", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    return model_of(nodes, [floats("x", 2, 4)], [floats("y", 2, 4)], {"w": np.full(4, 2, np.float32)})


def test_a_piece_is_just_what_is_needed() -> None:
    model = Model(forked(), Path())
    piece = model.piece(["y"], {"a"})
    assert [node.output[0] for node in piece.nodes] == ["b", "c", "y"]
    assert (piece.inputs, piece.weights) == (("a",), ())
    piece = model.piece(["b"], {"x"})
    assert [node.output[0] for node in piece.nodes] == ["a", "b"]
    assert (piece.inputs, piece.weights) == (("x",), ("w",))
    assert model.piece(["y"], {"b", "c"}).inputs == ("b", "c")
    assert model.piece(["y"], {"y", "x"}).inputs == ("x",)


def test_two_models_are_joined_where_their_names_agree() -> None:
    first = Model(forked(), Path())
    node = helper.make_node("Mul", ["y", "w"], ["z"])
    weights = {"w": np.full(4, 2, np.float32)}
    second = Model(model_of([node], [floats("y", 2, 4)], [floats("z", 2, 4)], weights), Path())
    joined = merged(first, second)
    assert joined is not None
    assert [value.name for value in joined.proto.graph.input] == ["x"]
    (z,) = plain_session(joined.proto.SerializeToString()).run(["z"], {"x": X})
    assert is_same(z, whole_answer(forked().SerializeToString(), {"x": X})["y"] * np.float32(2))
    other = Model(model_of([node], [floats("y", 2, 4)], [floats("z", 2, 4)], {"w": np.ones(4, np.float32)}), Path())
    assert merged(first, other) is None


@pytest.mark.parametrize("seed", range(12))
def test_a_piece_of_any_model_makes_what_the_model_makes(seed: int, tmp_path: Path) -> None:
    grown = grow(chooser(seed), steps=9)
    path = save(grown.model, tmp_path / "model.onnx")
    model = load_model(Path(path))
    names = [name for name in model.made() if name]
    session = plain_session(model.exposing(names).SerializeToString())
    tensors = {info.name for info in session.get_outputs() if info.type.startswith("tensor(")}
    feeds = {info.name: np.asarray(value) for info, value in _requests(session, seed)}
    values = {**feeds, **dict(zip(sorted(tensors), session.run(sorted(tensors), feeds), strict=True))}
    given = {name for name in values if can_be_given(values[name])}
    for target in sorted(tensors & set(names)):
        piece = model.piece([target], given)
        built = model.build(piece, values)
        made = plain_session(built.SerializeToString()).run([target], {name: values[name] for name in piece.inputs})
        assert is_same(np.asarray(made[0]), np.asarray(values[target])), target


def _requests(session: Any, seed: int) -> list[tuple[Any, Any]]:
    from hyps_compiler.measure import sample_request

    shapes = {
        info.name: np.zeros([size if isinstance(size, int) else 2 for size in info.shape])
        for info in session.get_inputs()
    }
    request = sample_request(session, shapes, seed)
    return [(info, request[info.name]) for info in session.get_inputs()]


def test_what_a_nested_graph_takes_from_outside_is_read() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["a", "k"], ["m"]), helper.make_node("Mul", ["m", "b"], ["out"])],
        "then",
        [],
        [floats("out")],
        [helper.make_tensor("k", onnx.TensorProto.FLOAT, [1], [1.0])],
    )
    passing = helper.make_graph([], "else", [], [floats("c")])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=passing)
    assert sorted(set(reads(node))) == ["a", "b", "c", "yes"]
