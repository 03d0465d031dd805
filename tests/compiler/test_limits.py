"""How large a model may be, counted without making it so."""

import time

import onnx
import pytest
from onnx import FunctionProto, NodeProto, helper

from hyps.errors import ModelError
from hyps_compiler.limits import MOST_FUNCTIONS_DEEP, MOST_GRAPHS_DEEP, MOST_NODES, check_inlined, check_written
from hyps_compiler.walk import bodies
from model_fixtures import floats, model_of

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]


def call(name: str, given: str = "a", made: str = "b") -> NodeProto:
    return helper.make_node(name, [given], [made], domain="d")


def function(name: str, *nodes: NodeProto) -> FunctionProto:
    return helper.make_function("d", name, ["a"], ["b"], list(nodes), OPSETS)


def calling(*functions: FunctionProto, name: str = "F0") -> onnx.ModelProto:
    model = model_of([call(name, "x", "y")], [floats("x", 1)], [floats("y", 1)])
    model.functions.extend(functions)
    return model


def chain(length: int, fan: int = 1) -> onnx.ModelProto:
    """Return functions F0, F1, ... each of which calls the next one `fan` times, last ones first."""
    last = function(f"F{length - 1}", helper.make_node("Relu", ["a"], ["b"]))
    return calling(last, *(function(f"F{i}", *[call(f"F{i + 1}")] * fan) for i in reversed(range(length - 1))))


def nested(levels: int) -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["i"])], "g", [], [floats("i", 1)])
    for _ in range(levels):
        node = helper.make_node("If", ["c"], ["i"], then_branch=graph)
        graph = helper.make_graph([node], "g", [], [floats("i", 1)])
    return model_of(list(graph.node), [floats("x", 1)], [floats("i", 1)])


def test_functions_may_nest_as_deep_as_the_limit() -> None:
    check_inlined(chain(MOST_FUNCTIONS_DEEP), "`m`")
    with pytest.raises(ModelError, match="deeper than 16") as caught:
        check_inlined(chain(MOST_FUNCTIONS_DEEP + 1), "`m`")
    assert caught.value.code == "E_LIMIT"


def test_inlined_nodes_may_be_as_many_as_the_limit() -> None:
    exact = chain(7, fan=10)
    assert MOST_NODES == 10**6
    check_inlined(exact, "`m`")
    exact.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    with pytest.raises(ModelError, match="`m` has 1000001 nodes once inlined"):
        check_inlined(exact, "`m`")


@pytest.mark.parametrize(("length", "fan"), [(16, 1000), (300, 2), (20_000, 2)])
def test_what_would_never_end_is_counted_at_once(length: int, fan: int) -> None:
    model = chain(length, fan)
    start_s = time.process_time()
    with pytest.raises(ModelError) as caught:
        check_inlined(model, "`m`")
    assert caught.value.code == "E_LIMIT"
    assert len(caught.value.message) < 200
    assert time.process_time() - start_s < 1


def test_a_function_that_calls_itself_is_refused_however_it_does() -> None:
    inside = helper.make_graph([call("F0")], "g", [], [floats("b", 1)])
    for functions in (
        [function("F0", call("F0"))],
        [function("F0", call("F1")), function("F1", call("F2")), function("F2", call("F0"))],
        [function("F0", helper.make_node("If", ["a"], ["b"], then_branch=inside))],
    ):
        with pytest.raises(ModelError, match="`d:F0` calls itself") as caught:
            check_inlined(calling(*functions), "`m`")
        assert caught.value.code == "E_GRAPH"


def test_functions_that_share_a_callee_are_no_cycle() -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    check_inlined(
        calling(function("F0", call("F1"), call("F2")), function("F1", call("F2")), function("F2", relu)), "m"
    )


def test_one_name_in_two_domains_is_two_functions() -> None:
    other = function("F0", call("F0"))
    other.domain = "e"
    check_inlined(calling(function("F0", helper.make_node("Relu", ["a"], ["b"])), other), "`m`")


def test_two_functions_of_one_name_are_refused() -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    with pytest.raises(ModelError, match="two functions are called `d:F0`"):
        check_inlined(calling(function("F0", relu), function("F0", relu)), "`m`")


def test_graphs_may_nest_as_deep_as_protobuf_reads() -> None:
    deepest = nested(31)
    assert max(depth for _, depth in bodies(deepest)) == 31 < MOST_GRAPHS_DEEP
    check_written(deepest, "`m`")
    check_inlined(deepest, "`m`")


def test_graphs_inside_functions_inside_graphs_add_up() -> None:
    def inside(name: str, inner: NodeProto) -> FunctionProto:
        for _ in range(11):
            graph = helper.make_graph([inner], "g", [], [floats("b", 1)])
            inner = helper.make_node("If", ["a"], ["b"], then_branch=graph)
        return function(name, inner)

    functions = [
        inside("F2", helper.make_node("Relu", ["a"], ["b"])),
        inside("F1", call("F2")),
        inside("F0", call("F1")),
    ]
    check_inlined(calling(*functions[:2], name="F1"), "`m`")
    with pytest.raises(ModelError, match="nests graphs deeper than 32"):
        check_inlined(calling(*functions), "`m`")


def test_a_million_nodes_are_too_many_as_they_are_written() -> None:
    model = onnx.ModelProto()
    model.graph.node.extend([NodeProto()] * (MOST_NODES + 1))
    with pytest.raises(ModelError, match="more than 1000000 nodes"):
        check_written(model, "`m`")
