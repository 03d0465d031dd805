"""Reduction finds the smallest models that still differ."""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper

from hyps_compiler.reduce import Reduced, Suspect, minimize, reduce_difference
from hyps_compiler.subgraphs import Model
from model_fixtures import floats, model_of

X = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
IDENTICAL = attrgetter("is_identical")


@given(st.integers(0, 12), st.sets(st.integers(0, 11), max_size=5))
def test_minimize_finds_exactly_what_is_needed(count: int, needed: set[int]) -> None:
    """Where a set is wrong if it holds some items, those are the only smallest one."""
    items = [str(index) for index in range(count)]
    wanted = frozenset(str(index) for index in needed if index < count)
    assert minimize(items, lambda tried: wanted <= tried) == wanted


@given(st.integers(1, 9), st.sets(st.sets(st.integers(0, 8), min_size=1, max_size=4).map(frozenset), min_size=1))
def test_minimize_leaves_no_item_that_can_be_spared(count: int, causes: set[frozenset[int]]) -> None:
    items = [str(index) for index in range(count)]
    wrong = {frozenset(str(index) for index in cause) & frozenset(items) for cause in causes}

    def is_wrong(tried: frozenset[str]) -> bool:
        return any(cause <= tried for cause in wrong)

    found = minimize(items, is_wrong)
    assert is_wrong(found)
    assert not any(is_wrong(found - {item}) for item in found)


def chain(ops: Sequence[str], weights: dict[str, Any], names: str = "abcdefgh") -> ModelProto:
    """Return a chain of element-wise nodes; `Mul:w` takes a weight."""
    nodes, last = [], "x"
    for op, name in zip(ops, names, strict=False):
        kind, _, weight = op.partition(":")
        nodes.append(helper.make_node(kind, [last, weight] if weight else [last], [name], name=f"make {name}"))
        last = name
    used = {name: value for name, value in weights.items() if any(name in node.input for node in nodes)}
    return model_of(nodes, [floats("x", 2, 4)], [floats(last, 2, 4)], used)


def cut(proto: ModelProto, border: str, folder: Path) -> tuple[Model, Model]:
    """Return the two halves of a chain."""
    nodes = list(proto.graph.node)
    at = next(index for index, node in enumerate(nodes) if border in node.output) + 1
    return (
        Model(half(proto, nodes[:at], "x", border), folder),
        Model(half(proto, nodes[at:], border, proto.graph.output[0].name), folder),
    )


def half(proto: ModelProto, nodes: list[NodeProto], source: str, target: str) -> ModelProto:
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if any(t.name in n.input for n in nodes)}
    return model_of(nodes, [floats(source, 2, 4)], [floats(target, 2, 4)], held)


W = {"w": np.full(4, 2, np.float32), "v": np.full(4, 3, np.float32)}
OPS = ("Relu", "Mul:w", "Tanh", "Mul:v", "Sigmoid", "Exp")


def reduce_parts(whole: ModelProto, parts: Sequence[Model], target: str, folder: Path, **how: Any) -> Reduced | None:
    borders = tuple(part.proto.graph.output[0].name for part in parts)
    suspect = Suspect(
        whole=Model(whole, folder),
        parts=tuple(parts),
        target=target,
        borders=tuple(name for name in borders if name != target),
        request=X,
        is_right=how.pop("is_right", IDENTICAL),
        **how,
    )
    return reduce_difference(suspect, limit_s=60, step=lambda text: None)


def test_one_wrong_node_is_all_that_is_left(tmp_path: Path) -> None:
    whole = chain(OPS, W)
    wrong = chain(OPS, {**W, "v": W["v"] + 1})
    found = reduce_parts(whole, cut(wrong, "c", tmp_path), "f", tmp_path)
    assert found is not None
    assert found.target == "d"
    ((_, piece),) = found.trial.parts
    assert [node.op_type for node in piece.nodes] == ["Mul"]
    assert list(found.trial.given) == ["c"]
    assert (found.nodes, found.nodes_before, found.is_minimal) == (1, 6, True)
    assert not found.trial.difference.is_identical


def test_nothing_is_reduced_where_nothing_differs(tmp_path: Path) -> None:
    whole = chain(OPS, W)
    assert reduce_parts(whole, cut(whole, "c", tmp_path), "f", tmp_path) is None


def test_a_difference_that_several_partitions_make_together_keeps_them(tmp_path: Path) -> None:
    """Each half is off by less than is allowed; together they are off by more. The border does not matter."""
    whole = chain(("Mul:w", "Mul:v"), W)
    wrong = chain(("Mul:w", "Mul:v"), {"w": W["w"] * np.float32(1 + 7e-6), "v": W["v"] * np.float32(1 + 7e-6)})
    parts = cut(wrong, "a", tmp_path)
    found = reduce_parts(whole, parts, "b", tmp_path, is_right=attrgetter("is_within_tolerance"))
    assert found is not None
    assert found.target == "b"
    ((_, piece),) = found.trial.parts
    assert [node.output[0] for node in piece.nodes] == ["a", "b"]
    assert list(found.trial.given) == ["x"]


def test_a_border_that_matters_stays_a_border(tmp_path: Path) -> None:
    """Both parts have a weight `w`, each its own: as one model they would be something else."""
    whole = chain(("Mul:w", "Mul:v"), W)
    near = np.float32(1 + 7e-6)
    first, _ = cut(chain(("Mul:w", "Mul:v"), {"w": W["w"] * near, "v": W["v"]}), "a", tmp_path)
    node = helper.make_node("Mul", ["a", "w"], ["b"])
    second = Model(model_of([node], [floats("a", 2, 4)], [floats("b", 2, 4)], {"w": W["v"] * near}), tmp_path)
    found = reduce_parts(whole, (first, second), "b", tmp_path, is_right=attrgetter("is_within_tolerance"))
    assert found is not None
    assert [[node.output[0] for node in piece.nodes] for _, piece in found.trial.parts] == [["a"], ["b"]]
    assert found.is_minimal


def test_a_failing_node_is_all_that_is_left(tmp_path: Path) -> None:
    whole = chain(OPS, W)
    wrong = chain(OPS, {**W, "v": np.ones(3, np.float32)})
    parts = cut(wrong, "c", tmp_path)
    found = reduce_parts(whole, parts, "f", tmp_path, fails=True)
    assert found is not None
    assert (found.target, found.nodes) == ("d", 1)
    assert "Mul" in found.trial.failure or "broadcast" in found.trial.failure


def test_only_a_failure_stands_for_a_failure(tmp_path: Path) -> None:
    whole = chain(OPS, W)
    wrong = chain(OPS, {**W, "v": W["v"] + 1})
    assert reduce_parts(whole, cut(wrong, "c", tmp_path), "f", tmp_path, fails=True) is None


def test_values_that_cannot_be_given_are_computed(tmp_path: Path) -> None:
    """A sequence has no place among a model's inputs here, so the node that makes it stays."""

    def model(weight: Any) -> ModelProto:
        nodes = [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("SplitToSequence", ["a"], ["s"], axis=0),
            helper.make_node("ConcatFromSequence", ["s"], ["b"], axis=0),
            helper.make_node("Mul", ["b", "w"], ["c"]),
            helper.make_node("SequenceConstruct", ["c", "b"], ["t"]),
            helper.make_node("ConcatFromSequence", ["t"], ["d"], axis=0),
        ]
        return model_of(nodes, [floats("x", 2, 4)], [floats("d", 4, 4)], {"w": weight})

    wrong = Model(model(W["w"] * 2), tmp_path)
    found = reduce_parts(model(W["w"]), (wrong,), "d", tmp_path)
    assert found is not None
    assert (found.target, found.nodes) == ("c", 1)


def test_what_nested_graphs_take_from_outside_comes_along(tmp_path: Path) -> None:
    def model(weight: Any) -> ModelProto:
        inner = helper.make_graph([helper.make_node("Mul", ["a", "w"], ["in"])], "then", [], [floats("in", 2, 4)])
        other = helper.make_graph([helper.make_node("Neg", ["a"], ["out"])], "else", [], [floats("out", 2, 4)])
        nodes = [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("If", ["yes"], ["b"], then_branch=inner, else_branch=other),
            helper.make_node("Exp", ["b"], ["c"]),
        ]
        weights = {"w": weight, "yes": np.array(True)}
        return model_of(nodes, [floats("x", 2, 4)], [floats("c", 2, 4)], weights)

    found = reduce_parts(model(W["w"]), (Model(model(W["w"] * 2), tmp_path),), "c", tmp_path)
    assert found is not None
    assert (found.target, found.nodes, list(found.trial.given)) == ("b", 1, ["a"])


def test_what_optimizations_alone_move_is_reduced_with_them(tmp_path: Path) -> None:
    """Folded into the convolution, the normalization loses what it subtracts: the parts differ when optimized only."""
    rng = np.random.default_rng(0)
    weights = {
        "k": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "bias": np.full(3, 1e7, np.float32),
        "scale": np.ones(3, np.float32),
        "shift": np.zeros(3, np.float32),
        "mean": np.full(3, 1e7, np.float32),
        "var": np.ones(3, np.float32),
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "k", "bias"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "scale", "shift", "mean", "var"], ["c"]),
        helper.make_node("Exp", ["c"], ["d"]),
    ]
    proto = model_of(nodes, [floats("x", 1, 2, 6, 6)], [floats("d", 1, 3, 4, 4)], weights)
    suspect = Suspect(
        whole=Model(proto, tmp_path),
        parts=(Model(proto, tmp_path),),
        target="d",
        borders=(),
        request={"x": rng.standard_normal((1, 2, 6, 6)).astype(np.float32)},
        is_right=attrgetter("is_within_tolerance"),
        level="default",
    )
    found = reduce_difference(suspect, limit_s=60, step=lambda text: None)
    assert found is not None
    ((_, piece),) = found.trial.parts
    assert {"Conv", "BatchNormalization"} <= {node.op_type for node in piece.nodes}
    assert found.nodes < 4


def test_when_the_time_is_up_the_smallest_so_far_is_returned(tmp_path: Path) -> None:
    whole = chain(OPS, W)
    wrong = chain(OPS, {**W, "w": W["w"] + 1})
    said: list[str] = []
    suspect = Suspect(
        whole=Model(whole, tmp_path),
        parts=cut(wrong, "c", tmp_path),
        target="f",
        borders=("c",),
        request=X,
        is_right=IDENTICAL,
    )
    found = reduce_difference(suspect, limit_s=0, step=said.append)
    assert found is not None
    assert not found.is_minimal
    assert not found.trial.difference.is_identical
    assert said == [f"reducing, trial {number}" for number in range(1, found.trials + 1)]


@pytest.mark.parametrize("position", range(6))
def test_whichever_node_is_wrong_it_is_the_one_left(position: int, tmp_path: Path) -> None:
    ops = ["Mul:w", "Mul:v", "Mul:w", "Mul:v", "Mul:w", "Mul:v"]
    whole = chain(ops, W)
    ops[position] = "Neg"
    wrong = chain(ops, W)
    found = reduce_parts(whole, cut(wrong, "c", tmp_path), "f", tmp_path)
    assert found is not None
    assert (found.target, found.nodes) == ("abcdef"[position], 1)
