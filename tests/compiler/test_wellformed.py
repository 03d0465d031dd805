"""Models that cannot be right, and strange ones that are."""

import time
from collections.abc import Sequence
from typing import Any

import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from hyps.errors import ModelError
from hyps_compiler.operators import known_operators
from hyps_compiler.tensors import check_tensor, tensor_nbytes
from hyps_compiler.wellformed import check_model
from model_fixtures import chooser, floats, grow, model_of


def model(*nodes: NodeProto, outputs: Sequence[str] = ("y",), contrib: bool = False) -> onnx.ModelProto:
    return model_of(nodes, [floats("x", 2), condition()], [floats(name, 2) for name in outputs], contrib=contrib)


def condition() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("c", TensorProto.BOOL, [])


def node(kind: str, *names: str, **attributes: Any) -> NodeProto:
    """`node("Add", "a", "b", "y")` makes y; its name is the operator's in small letters."""
    return helper.make_node(kind, list(names[:-1]), [names[-1]], name=kind.lower(), **attributes)


def branch(*nodes: NodeProto, output: str) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "b", [], [floats(output, 2)])


def choice(output: str, *nodes: NodeProto, inner: str) -> NodeProto:
    """Return an `If` whose both branches are `nodes`, which make `inner`."""
    both = branch(*nodes, output=inner)
    return node("If", "c", output, then_branch=both, else_branch=both)


SOUND = {
    "unsorted": model(node("Relu", "a", "y"), node("Relu", "x", "a")),
    "captured": model(node("Relu", "x", "a"), choice("y", node("Relu", "a", "i"), inner="i")),
    "captured twice over": model(choice("y", choice("i", node("Abs", "x", "j"), inner="j"), inner="i")),
    "captured later": model(choice("y", node("Relu", "a", "i"), inner="i"), node("Relu", "x", "a")),
    "branch is a captured value": model(choice("y", inner="x")),
    "output is input": model(outputs=("x",)),
    "output twice": model(node("Relu", "x", "y"), outputs=("y", "y")),
    "left out input": model(helper.make_node("Clip", ["x", "", ""], ["y"])),
    "left out output": model(helper.make_node("Dropout", ["x"], ["y", ""])),
    "contrib": model(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), contrib=True),
    "domain by name": model(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")),
    "old operator": model(helper.make_node("Upsample", ["x"], ["y"])),
}


@pytest.mark.parametrize("sound", SOUND.values(), ids=SOUND)
def test_a_strange_model_that_may_be_right_passes(sound: onnx.ModelProto) -> None:
    check_model(sound, "`m`")


@pytest.mark.parametrize("seed", range(25))
def test_random_models_pass(seed: int) -> None:
    check_model(grow(chooser(seed), steps=12).model, "`m`")


def test_functions_of_the_model_are_operators() -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    made = model(helper.make_node("Mine", ["x"], ["y"], domain="d"))
    made.functions.append(helper.make_function("d", "Mine", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    check_model(made, "`m`")
    made.functions[0].node[0].op_type = "Ours"
    with pytest.raises(ModelError, match="`b` is a `Ours`"):
        check_model(made, "`m`")


WRONG = {
    "cycle": (model(node("Add", "x", "b", "a"), node("Relu", "a", "b"), node("Abs", "b", "y")), "cycle"),
    "itself": (model(node("Add", "x", "y", "y")), "node `add` needs its own output"),
    "cycle through a branch": (
        model(choice("a", node("Relu", "b", "i"), inner="i"), node("Relu", "a", "b"), node("Abs", "b", "y")),
        "cycle",
    ),
    "cycle in a branch": (
        model(choice("y", node("Add", "x", "j", "i"), node("Relu", "i", "j"), inner="i")),
        "needs its own output",
    ),
    "unknown": (model(node("Add", "x", "ghost", "y")), "node `add` needs the tensor `ghost`, which nothing makes"),
    "unknown in a branch": (model(choice("y", node("Relu", "ghost", "i"), inner="i")), "`ghost`"),
    "inner name outside": (model(choice("a", node("Relu", "x", "i"), inner="i"), node("Abs", "i", "y")), "`i`"),
    "twice": (model(node("Relu", "x", "y"), node("Abs", "x", "y")), "two nodes make the tensor `y`"),
    "no output": (model(node("Relu", "x", "y"), outputs=("z",)), "nothing makes the output `z`"),
    "no outputs": (model(node("Relu", "x", "y"), outputs=()), "`m` has no outputs"),
    "operator": (model(helper.make_node("Reloo", ["x"], ["y"])), "`y` is a `Reloo`, an operator"),
    "operator in a branch": (model(choice("y", node("Reloo", "x", "i"), inner="i")), "`reloo` is a `Reloo`"),
    "escape": (model(node("Relu", "x", "y"), node("Add", "x", "\x1b[31m", "z")), r"`\\x1b\[31m`"),
}


@pytest.mark.parametrize(("wrong", "says"), WRONG.values(), ids=WRONG)
def test_a_model_that_cannot_be_right_is_one_sentence(wrong: onnx.ModelProto, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        check_model(wrong, "`m`")
    assert caught.value.hint


def test_the_node_that_is_named_lies_on_the_cycle() -> None:
    behind = [node("Abs", "b", "y"), node("Neg", "y", "z")]
    wrong = model(*behind, node("Add", "x", "b", "a"), node("Relu", "a", "b"))
    with pytest.raises(ModelError, match=r"node `(add|relu)` needs"):
        check_model(wrong, "`m`")


def test_a_long_chain_takes_no_time_and_no_stack() -> None:
    count = 20_000
    nodes = [helper.make_node("Relu", [f"t{i + 1}"], [f"t{i}"]) for i in range(count)]
    long = model_of(nodes, [floats(f"t{count}", 2)], [floats("t0", 2)])
    start_s = time.monotonic()
    check_model(long, "`m`")
    assert time.monotonic() - start_s < 5


def tensor(kind: int, dims: Sequence[int], raw: bytes) -> TensorProto:
    return TensorProto(name="w", data_type=kind, dims=list(dims), raw_data=raw)


@pytest.mark.parametrize(
    ("kind", "dims", "nbytes"),
    [
        (TensorProto.FLOAT, (2, 3), 24),
        (TensorProto.FLOAT16, (), 2),
        (TensorProto.INT4, (3,), 2),
        (TensorProto.BOOL, (0, 2**62, 2**62), 0),
        (TensorProto.STRING, (2,), None),
        (TensorProto.UNDEFINED, (2,), None),
    ],
)
def test_bytes_follow_from_shape_and_type(kind: int, dims: Sequence[int], nbytes: int | None) -> None:
    made = tensor(kind, dims, bytes(nbytes or 0))
    assert tensor_nbytes(made) == nbytes
    check_tensor(made)


@pytest.mark.parametrize(
    ("dims", "says"),
    [
        ((-1, 4), "negative dimension -1"),
        ((5,), "holds 16 bytes"),
        ((2**33, 2**33), "holds 16 bytes"),
        ((3,), "needs 12"),
    ],
)
def test_a_tensor_that_does_not_fit_its_bytes_is_refused(dims: Sequence[int], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        check_tensor(tensor(TensorProto.FLOAT, dims, bytes(16)))
    assert caught.value.code == "E_TENSOR"


def test_a_tensor_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(ModelError, match="tensor `w` is of element type 112") as caught:
        check_tensor(tensor(112, (1,), bytes(4)))
    assert caught.value.code == "E_TENSOR"


@pytest.mark.parametrize("old", [b"inner", b"relu", b"Gamma", b"b1"])
def test_a_name_that_is_no_text_is_damage(old: bytes) -> None:
    sound = model(choice("b1", node("Relu", "x", "inner"), inner="inner"), node("Abs", "b1", "y"))
    sound.graph.initializer.append(TensorProto(name="Gamma", data_type=TensorProto.FLOAT, dims=[0]))
    data = sound.SerializeToString()
    assert old in data
    damaged = onnx.ModelProto.FromString(data.replace(old, b"\xff" * len(old)))
    with pytest.raises(ModelError, match="a name that is no UTF-8") as caught:
        check_model(damaged, "`m`")
    assert caught.value.code == "E_NOT_ONNX"


def test_a_million_dimensions_cost_no_time() -> None:
    start_s = time.monotonic()
    with pytest.raises(ModelError, match="holds 4 bytes"):
        check_tensor(tensor(TensorProto.FLOAT, [2**40] * 10**6, bytes(4)))
    assert time.monotonic() - start_s < 2


def test_the_operators_of_both_packages_are_known() -> None:
    known = known_operators()
    assert {("", "Relu"), ("", "Upsample"), ("com.microsoft", "FusedMatMul"), ("ai.onnx.ml", "Scaler")} <= known
