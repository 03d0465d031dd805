"""Recipes with graphs in nodes: If, Loop and Scan, in each other, that read what lies outside."""

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnx import TensorProto as T

from generated.grower import Grower, Recipe
from generated.values import Tensor, floats

Made = list[Tensor]


def _if(g: Grower) -> Made:
    """Branches that capture outer values, one of them two levels deep; both name their insides alike."""
    x = g.any()
    y, z = g.same(x), _inner_only(g, x)
    condition = g.flag(x)
    inner = helper.make_node(
        "If",
        [condition],
        ["inner_out"],
        name="inner",
        then_branch=branch([helper.make_node("Mul", [x.name, z.name], ["deep"])], "deep"),
        else_branch=branch([helper.make_node("Sub", [z.name, y.name], ["deep2"])], "deep2"),
    )
    half = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half")
    then = [helper.make_node("Constant", [], ["half"], value=half), inner]
    then.append(helper.make_node("Mul", ["inner_out", "half"], ["out"]))
    other = branch([helper.make_node("Mul", [y.name, "half"], ["out"])], "out")
    other.initializer.append(half)
    g.used.update((x.name, y.name, z.name))
    g.least_ir = max(g.least_ir, 4)  # before, an initializer had to be an input, and a branch has none
    g.features.add("a capture two levels deep")
    return [g.op("If", [condition], x.shape, then_branch=branch(then, "out"), else_branch=other)]


def _either_size(g: Grower) -> Made:
    """Branches whose outputs are of different ranks, and one that gives an outer value as it is."""
    x = g.any()
    then = branch([helper.make_node("Identity", [x.name], ["out"])], "out")
    other = branch([helper.make_node("ReduceSum", [x.name], ["out"], keepdims=0)], "out")
    g.used.add(x.name)
    made = g.op("If", [g.flag(x)], (), then_branch=then, else_branch=other)
    made = g.op("Tanh", [made.name], ())
    info = made.info
    info.type.tensor_type.ClearField("shape")
    g.outputs.append(info)
    g.features.add("an output of unknown rank")
    return []


def _two_outputs(g: Grower) -> Made:
    """An If with two outputs, of which one or both are used."""
    x = g.any()
    y = g.same(x)
    branches = []
    for kind in ("Add", "Sub"):
        nodes = [helper.make_node(kind, [x.name, y.name], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
        branches.append(helper.make_graph(nodes, "branch", [], [unsized("a"), unsized("b")]))
    g.used.update((x.name, y.name))
    made = g.ops("If", [g.flag(x)], [x.shape, x.shape], then_branch=branches[0], else_branch=branches[1])
    kept = made[g.choose(2) :]
    if len(kept) == 1:
        g.features.add("an output is used by nobody")
    return kept


def _loop(g: Grower) -> Made:
    """A loop that captures outer values, one of them from a nested loop."""
    x = g.any()
    y, z = g.same(x), _inner_only(g, x)
    inner = helper.make_graph(
        [helper.make_node("Add", ["state", z.name], ["next"]), helper.make_node("Identity", ["go"], ["still"])],
        "inner",
        loop_inputs("go", "state"),
        [truth("still"), unsized("next")],
    )
    nodes = [
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("v", T.INT64, [], [2])),
        helper.make_node("Loop", ["two", "more", "carried"], ["grown"], body=inner),
        helper.make_node("Mul", ["grown", y.name], ["product"]),
        helper.make_node("Tanh", ["product"], ["carried_out"]),
        helper.make_node("Identity", ["more"], ["more_out"]),
    ]
    body = helper.make_graph(nodes, "body", loop_inputs("more", "carried"), [truth("more_out"), unsized("carried_out")])
    g.used.update((y.name, z.name))
    g.features.add("a capture two levels deep")
    trips = g.scalar(1 + g.choose(3))
    return [g.op("Loop", [trips, "", x.name], x.shape, body=body)]


def _deep(g: Grower) -> Made:
    """An If in a Loop in a Loop, whose branches capture an input, an initializer, a constant and a computed value."""
    x = g.any()
    given, weight, constant = g.input(()), g.number(0.7), g.constant(np.array(0.3, dtype=np.float32))
    computed = g.op("Tanh", [x.name], x.shape)
    if g.choose(2):  # a value that nodes make of constants alone
        constant = g.op("Add", [constant, weight], ()).name
    then = [helper.make_node("Add", ["state", given.name], ["a1"]), helper.make_node("Mul", ["a1", weight], ["a2"])]
    other = [
        helper.make_node("Sub", ["state", computed.name], ["b1"]),
        helper.make_node("Mul", ["b1", constant], ["b2"]),
    ]
    choice = helper.make_node(
        "If", [f"odd{g.count}"], ["chosen"], then_branch=branch(then, "a2"), else_branch=branch(other, "b2")
    )
    inner = helper.make_graph(
        [choice, helper.make_node("Tanh", ["chosen"], ["next"]), helper.make_node("Identity", ["go"], ["still"])],
        "inner",
        loop_inputs("go", "state"),
        [truth("still"), unsized("next")],
    )
    one = helper.make_tensor("v", T.INT64, [], [1])
    nodes = [
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Equal", ["step_carried", "one"], [f"odd{g.count}"]),
        helper.make_node("Loop", ["one", "more", "carried"], ["carried_out"], body=inner),
        helper.make_node("Identity", ["more"], ["more_out"]),
    ]
    body = helper.make_graph(nodes, "body", loop_inputs("more", "carried"), [truth("more_out"), unsized("carried_out")])
    g.used.update((given.name, weight, constant, computed.name))
    g.features.update(
        f"a capture of {what} three levels deep" for what in ("an input", "an initializer", "a constant", "a value")
    )
    return [g.op("Loop", [g.scalar(3), "", x.name], x.shape, body=body)]


def _collecting(g: Grower) -> Made:
    """A loop that stops when a value says so, and gives what each trip made, stacked."""
    x = g.any()
    limit = g.number(4.0)
    nodes = [
        helper.make_node("Add", ["state", x.name], ["next"]),
        helper.make_node("ReduceMax", ["next"], ["most"], keepdims=0),
        helper.make_node("Less", ["most", limit], ["still"]),
        helper.make_node("Neg", ["most"], ["seen"]),
    ]
    body = helper.make_graph(
        nodes, "body", loop_inputs("go", "state"), [truth("still"), unsized("next"), floats("seen")]
    )
    go = g.constant(np.array(True))
    g.used.update((x.name, limit))
    trips = g.scalar(5) if g.choose(2) else ""
    if not trips:
        trips = g.scalar(9)
    last, every = g.ops("Loop", [trips, go, x.name], [x.shape, (f"K{g.count}",)], body=body)
    g.features.add("as many rows as the values say")
    return [last, every] if g.choose(2) else [every]


def _scan(g: Grower) -> Made | None:
    """A scan along the second axis that captures a weight and an outer value, and an If in it that captures another."""
    x = g.pick(3, lambda t: t.has_fixed(2) and t.has_rows)
    if x is None:
        return None
    g.needs_rows = True
    size = x.size(-1)
    start = g.op("Mul", [g.mean(x, 1, (x.shape[0], size), 0).name, g.weight(size)], (x.shape[0], size))
    outer = g.same(start)
    weight = g.weight(size)
    nodes = [
        helper.make_node("Add", ["state", "slice"], ["sum"]),
        helper.make_node("Mul", ["sum", weight], ["scaled"]),
        helper.make_node("Add", ["scaled", outer.name], ["shifted"]),
        helper.make_node("Tanh", ["shifted"], ["state_out"]),
        helper.make_node("Identity", ["state_out"], ["slice_out"]),
    ]
    if g.choose(2):
        condition = g.flag(x)
        then = branch([helper.make_node("Add", ["scaled", outer.name], ["t"])], "t")
        other = branch([helper.make_node("Mul", ["scaled", weight], ["e"])], "e")
        nodes[2] = helper.make_node("If", [condition], ["shifted"], then_branch=then, else_branch=other)
        g.used.add(condition)
        g.features.add("a capture two levels deep")
    # sizes in nested graphs need names of their own: onnxruntime reuses buffers of equal names
    state, part = (f"rows{g.count}", f"columns{g.count}"), (f"rows{g.count}", f"width{g.count}")
    body = helper.make_graph(
        nodes,
        "scan",
        [floats("state", *state), floats("slice", *part)],
        [floats("state_out", *state), floats("slice_out", *part)],
    )
    g.used.update((outer.name, weight))
    last, all_ = g.ops(
        "Scan",
        [start.name, x.name],
        [start.shape, x.shape],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    return [last, all_]


def _inner_only(g: Grower, x: Tensor) -> Tensor:
    """Return a value like x that nothing reads but the innermost graph: what captures by halves does not see it."""
    return g.op("Cos", [x.name], x.shape)


def branch(nodes: Sequence[NodeProto], output: str) -> GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [unsized(output)])


def loop_inputs(condition: str, state: str) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(f"step_{state}", T.INT64, []), truth(condition), unsized(state)]


def truth(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, T.BOOL, [])


def unsized(name: str) -> ValueInfoProto:
    """Return a declaration of floats of any shape."""
    return helper.make_tensor_value_info(name, T.FLOAT, None)


RECIPES = {
    "deep": Recipe(_deep, since=11),
    "collecting": Recipe(_collecting, since=11),
    "either-size": Recipe(_either_size, since=11),
    "if": Recipe(_if),
    "loop": Recipe(_loop),
    "scan": Recipe(_scan, since=9),
    "two-outputs": Recipe(_two_outputs),
}
