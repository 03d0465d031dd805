"""Recipes that call functions which the model itself defines: nested, in several domains, with attributes handed on."""

from onnx import AttributeProto, FunctionProto, NodeProto, helper
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.nested import branch
from generated.values import Tensor

Made = list[Tensor]
OUTER, INNER = "tests.outer", "tests.inner"


def _call(g: Grower) -> Made:
    """A function that calls another, and hands its attribute on, given or left at its default."""
    x = g.any()
    _define(g)
    names = [x.name, g.same(x).name]
    if g.choose(2):
        return [g.op("Blend", names, x.shape, domain=OUTER)]
    return [g.op("Blend", names, x.shape, domain=OUTER, slope=0.25)]


def _call_inner(g: Grower) -> Made:
    """The inner function by itself; onnxruntime wants all outputs named."""
    x = g.any()
    _define(g)
    return g.ops("Lean", [x.name], [x.shape, x.shape], domain=INNER, slope=0.1)[g.choose(2) :]


def _call_branching(g: Grower) -> Made:
    """A function with an If in it that captures the function's own values."""
    x = g.any()
    _define(g)
    return [g.op("Choose", [x.name, g.weight()], x.shape, domain=OUTER)]


def _define(g: Grower) -> None:
    g.least_ir = max(g.least_ir, 8)
    g.features.add("a function calls a function")
    for domain in (OUTER, INNER):
        g.domains.setdefault(domain, 1)
    if not g.functions:
        g.functions.extend([_blend(g.opset), _lean(g.opset), _choose(g.opset)])


def _lean(opset: int) -> FunctionProto:
    """LeakyRelu with the caller's slope, and the same negated."""
    nodes = [_with_slope("LeakyRelu", "alpha", "x", "y"), helper.make_node("Neg", ["y"], ["z"])]
    return helper.make_function(INNER, "Lean", ["x"], ["y", "z"], nodes, [helper.make_opsetid("", opset)], ["slope"])


def _blend(opset: int) -> FunctionProto:
    """Names its insides as `_lean` does."""
    nodes = [
        _with_slope("Lean", "slope", "a", "y", "unused", domain=INNER),
        helper.make_node("Tanh", ["b"], ["z"]),
        helper.make_node("Mul", ["y", "z"], ["out"]),
    ]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(INNER, 1)]
    slope = helper.make_attribute("slope", 0.5)
    return helper.make_function(OUTER, "Blend", ["a", "b"], ["out"], nodes, opsets, attribute_protos=[slope])


def _choose(opset: int) -> FunctionProto:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["flag"], to=T.BOOL),
        helper.make_node("Neg", ["x"], ["turned"]),
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            then_branch=branch([helper.make_node("Mul", ["turned", "scale"], ["out"])], "out"),
            else_branch=branch([helper.make_node("Add", ["x", "turned"], ["out"])], "out"),
        ),
    ]
    return helper.make_function(OUTER, "Choose", ["x", "scale"], ["y"], nodes, [helper.make_opsetid("", opset)])


def _with_slope(op_type: str, attribute: str, source: str, *targets: str, domain: str = "") -> NodeProto:
    node = helper.make_node(op_type, [source], list(targets), domain=domain)
    node.attribute.append(AttributeProto(name=attribute, type=AttributeProto.FLOAT, ref_attr_name="slope"))
    return node


RECIPES = {
    "function": Recipe(_call, since=13),
    "function-branching": Recipe(_call_branching, since=13),
    "function-inner": Recipe(_call_inner, since=13),
}
