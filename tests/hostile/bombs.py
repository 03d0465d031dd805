"""Small files that ask for terabytes or hours, and functions and tensors that lie about themselves."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from hostile.case import BOMB_NBYTES, COMPILE, Build, Case
from hostile.models import branch, changed, condition, content, external, external_model, external_outside, proto, relu
from hostile.options import sound
from hostile.plans import planned
from model_fixtures import floats, model_of

ELEMENTS = 2**30
"""Of floats, 4 GiB."""

Weights = dict[str, NDArray[np.generic]]


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def scalar(number: float, dtype: type[np.generic] = np.int64) -> NDArray[np.generic]:
    return np.array(number, dtype)


def largest(*nodes: NodeProto, weights: Weights | None = None, opset: int = 17) -> onnx.ModelProto:
    """Return a model that makes `e` in some way and gives its largest value."""
    end = [helper.make_node("ReduceMax", ["e"], ["m"], keepdims=0), helper.make_node("Add", ["x", "m"], ["y"])]
    return model_of([*nodes, *end], [floats("x", 1)], [floats("y", 1)], weights or {}, opset=opset)


def makes(kind: str, *inputs: str, weights: Weights | None = None, opset: int = 17, **attributes: Any) -> Build:
    """Write a model in which one node makes `e`, from weights alone or from the input `x`."""
    node = helper.make_node(kind, list(inputs), ["e"], **attributes)
    return proto(lambda: largest(node, weights=weights, opset=opset))


ONE = np.ones((1, 1), np.float32)
SIDES = whole(2**15, 2**15)
EXPAND = makes("Expand", "x", "s", weights={"s": whole(ELEMENTS)})


def many_constants(folder: Path) -> None:
    """Write a hundred constants of 256 MiB, none of which is too large, that onnxruntime would compute to load them."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], [f"c{i}"]) for i in range(100)]
    total = helper.make_node("Sum", [f"c{i}" for i in range(100)], ["e"])
    proto(lambda: largest(*nodes, total, weights={"s": whole(2**26)}))(folder)


def doubling_list(folder: Path) -> None:
    """Write a list of sizes that doubles thirty times, which onnx and onnxruntime follow number by number."""
    nodes = [helper.make_node("Concat", [f"t{i}", f"t{i}"], [f"t{i + 1}"], axis=0) for i in range(30)]
    cast = helper.make_node("Cast", ["t30"], ["e"], to=TensorProto.FLOAT)
    proto(lambda: largest(helper.make_node("Shape", ["x"], ["t0"]), *nodes, cast))(folder)


def computed(folder: Path) -> None:
    """Write a model that works out the shape of a large tensor."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"]),
        helper.make_node("Mul", ["n", "k"], ["side"]),
        helper.make_node("Concat", ["side", "side"], ["s"], axis=0),
        helper.make_node("Expand", ["x", "s"], ["e"]),
    ]
    proto(lambda: largest(*nodes, weights={"k": whole(2**15)}))(folder)


def chosen(make: Callable[[], GraphProto]) -> Build:
    """Write a model with a graph in an `If`."""
    return proto(
        lambda: model_of([branch("y", make())], [floats("x", 1, 4), condition()], [floats("y", None, None)], {})
    )


def nested_expand() -> GraphProto:
    sides = numpy_helper.from_array(whole(2**28, 4), "s")
    nodes = [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("ReduceMax", ["e"], ["i"], axes=[0])]
    return helper.make_graph(nodes, "b", [], [floats("i", None, None)], [sides])


def called(*functions: FunctionProto, call: str = "F", inputs: Sequence[str] = ("x",)) -> Build:
    """Write a model that calls one of its own functions."""

    def make() -> onnx.ModelProto:
        node = helper.make_node(call, list(inputs), ["y"], domain="d")
        model = model_of([node], [floats("x", 1, 4)], [floats("y", None, None)])
        model.opset_import.append(helper.make_opsetid("d", 1))
        model.functions.extend(functions)
        return model

    return proto(make)


def function(name: str, *nodes: NodeProto, makes: str = "b") -> FunctionProto:
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    return helper.make_function("d", name, ["a"], [makes], list(nodes), domains)


def call(name: str, given: str = "a", made: str = "b") -> NodeProto:
    return helper.make_node(name, [given], [made], domain="d")


def doubling(times: int, fan: int = 2) -> Build:
    """Write functions each of which calls the next `fan` times."""
    functions = [function("F0", helper.make_node("Relu", ["a"], ["b"]))]
    for i in range(times):
        names = ["a", *(f"t{k}" for k in range(fan - 1)), "b"]
        functions.append(function(f"F{i + 1}", *(call(f"F{i}", names[k], names[k + 1]) for k in range(fan))))
    return called(*functions, call=f"F{times}")


def deep(levels: int) -> Build:
    """Write `If` in `If`, byte by byte, as protobuf's own writer goes no deeper than its reader."""

    def build(folder: Path) -> None:
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["i"])], "g", [], [floats("i", 1, 4)])
        data = graph.SerializeToString()
        for level in range(levels):
            node = branch(f"i{level}", helper.make_graph([], "g", [], []))
            slot = next(attribute for attribute in node.attribute if attribute.name == "then_branch")
            node.attribute.remove(slot)
            slot.ClearField("g")
            inner = slot.SerializeToString() + _field(6, data)  # AttributeProto.g
            inner = node.SerializeToString() + _field(5, inner)  # NodeProto.attribute
            outer = helper.make_graph([], "g", [], [floats(f"i{level}", 1, 4)])
            data = outer.SerializeToString() + _field(1, inner)  # GraphProto.node
        data += GraphProto(input=[floats("x", 1, 4), condition()]).SerializeToString()
        model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
        (folder / "model.onnx").write_bytes(model.SerializeToString() + _field(7, data))  # ModelProto.graph

    return build


def _field(number: int, data: bytes) -> bytes:
    """Return a message as a field of another, in protobuf's encoding."""
    head, length = bytes([number << 3 | 2]), len(data)
    while length > 127:
        head += bytes([length & 127 | 128])
        length >>= 7
    return head + bytes([length]) + data


def deep_by_calls(folder: Path) -> None:
    """Write functions of ten nested graphs each, four of which call each other inside these."""

    def nest(inner: NodeProto, name: str) -> FunctionProto:
        other = helper.make_graph([helper.make_node("Abs", ["a"], ["o"])], "o", [], [floats("o", 1, 4)])
        for level in range(10):
            graph = helper.make_graph([inner], "g", [], [floats(inner.output[0], 1, 4)])
            inner = helper.make_node("If", ["q"], [f"i{level}"], then_branch=graph, else_branch=other)
        truth = helper.make_node("Constant", [], ["q"], value=helper.make_tensor("q", TensorProto.BOOL, [], [True]))
        return function(name, truth, inner, makes="i9")

    functions = [nest(helper.make_node("Relu", ["a"], ["i"]), "F0")]
    functions += [nest(call(f"F{k}", "a", "i"), f"F{k + 1}") for k in range(3)]
    called(*functions, call="F3")(folder)


def large_file(folder: Path) -> None:
    """Write a file of 3 GiB, nothing but a hole."""
    sound(folder)
    os.truncate(folder / "model.onnx", 3 * 2**30)


def guessed(folder: Path) -> None:
    """Write a model whose tensors are too large at any size that may be guessed, and nothing before tells."""
    nodes = [
        helper.make_node("Concat", ["x"] * 2**16, ["f"], axis=0),
        helper.make_node("Flatten", ["f"], ["g"], axis=2),
    ]
    nodes += [helper.make_node("Transpose", ["g"], ["h"]), helper.make_node("MatMul", ["g", "h"], ["e"])]
    model = model_of(
        [*nodes, helper.make_node("ReduceMax", ["e"], ["y"], keepdims=0)], [floats("x", "n", "m")], [floats("y")]
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def bomb_beside_plan(folder: Path) -> None:
    planned()(folder)
    EXPAND(folder)
    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


BOMBS = [
    Case("expand", EXPAND, COMPILE, 1, "E_LIMIT", "`e` of shape 1073741824 needs 4.29 GB", "--max-tensor-bytes"),
    Case("expand, unfused", EXPAND, (*COMPILE, "--optimize", "none"), 1, "E_LIMIT", "`e`", "--max-tensor-bytes 4295MB"),
    Case("expand, inspected", EXPAND, ("hypsc", "inspect", "model.onnx"), 1, "E_LIMIT", "`e`", "--max-tensor-bytes"),
    Case(
        "expand, verified", bomb_beside_plan, ("hypsc", "verify", "plan", "--model", "model.onnx"), 1, "E_LIMIT", "`e`"
    ),
    Case("lower limit", sound, (*COMPILE, "--max-tensor-bytes", "10"), 1, "E_LIMIT", "needs 16 B", "1MB"),
    Case("constant", makes("ConstantOfShape", "s", weights={"s": whole(ELEMENTS)}), COMPILE, 1, "E_LIMIT", "`e`"),
    Case("overflow", makes("ConstantOfShape", "s", weights={"s": whole(2**40, 2**40)}), COMPILE, 1, "E_LIMIT", "`e`"),
    Case(
        "range",
        makes("Range", "a", "b", "d", weights={"a": scalar(0), "b": scalar(ELEMENTS), "d": scalar(1)}),
        COMPILE,
        1,
        "E_LIMIT",
        "`e`",
    ),
    Case("tile", makes("Tile", "o", "s", weights={"o": ONE, "s": SIDES}), COMPILE, 1, "E_LIMIT", "`e`"),
    Case("pad", makes("Pad", "o", "s", weights={"o": ONE, "s": whole(0, 0, *SIDES)}), COMPILE, 1, "E_LIMIT", "`e`"),
    Case(
        "resize",
        makes("Resize", "o", "", "", "s", weights={"o": ONE[None, None], "s": whole(1, 1, *SIDES)}),
        COMPILE,
        1,
        "E_LIMIT",
        "`e`",
    ),
    Case(
        "one hot",
        makes(
            "OneHot",
            "i",
            "n",
            "v",
            weights={"i": whole(0), "n": scalar(ELEMENTS), "v": np.array([0, 1], np.float32)},
        ),
        COMPILE,
        1,
        "E_LIMIT",
        "`e`",
    ),
    Case("random", makes("RandomNormal", shape=[ELEMENTS]), COMPILE, 1, "E_LIMIT", "`e`"),
    Case("window", makes("HannWindow", "n", weights={"n": scalar(ELEMENTS)}), COMPILE, 1, "E_LIMIT", "`e`"),
    Case(
        "transposed convolution",
        makes("ConvTranspose", "o", "o", weights={"o": ONE[None, None]}, strides=[2**15, 2**15], output_shape=[*SIDES]),
        COMPILE,
        1,
        "E_LIMIT",
        "`e`",
    ),
    Case("many constants", many_constants, COMPILE, 1, "E_LIMIT", "constants alone needs 26", "--max-tensor-bytes"),
    Case("doubling list", doubling_list, COMPILE, 1, "E_LIMIT", "lists up to 2097152 numbers"),
    Case("doubling list, inspected", doubling_list, ("hypsc", "inspect", "model.onnx"), 1, "E_LIMIT", "lists up to"),
    Case("computed shape", computed, COMPILE, 1, "E_LIMIT", "of shape 32768 x 32768 needs 4.29 GB"),
    Case("computed shape, unfused", computed, (*COMPILE, "--optimize", "none"), 1, "E_LIMIT", "of shape 32768 x 32768"),
    Case("nested", chosen(nested_expand), COMPILE, 1, "E_LIMIT", "`e`"),
    Case(
        "function",
        called(
            function(
                "F",
                helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(whole(2**28, 4))),
                helper.make_node("Expand", ["a", "s"], ["b"]),
            )
        ),
        COMPILE,
        1,
        "E_LIMIT",
        "`y` of shape 268435456 x 4",
    ),
    Case("guessed sizes", guessed, COMPILE, 1, "E_LIMIT", "", "--max-tensor-bytes"),
    Case(
        "input",
        proto(
            lambda: model_of(
                [helper.make_node("Relu", ["x"], ["y"])], [floats("x", 2**20, 2**20)], [floats("y", 2**20, 2**20)]
            )
        ),
        COMPILE,
        1,
        "E_LIMIT",
        "`x` of shape 1048576 x 1048576 needs 4.40 TB",
    ),
    Case(
        "asked shape",
        proto(lambda: model_of([helper.make_node("Relu", ["x"], ["y"])], [floats("x", "n", 4)], [floats("y", "n", 4)])),
        (*COMPILE, "--input", "x:1000000000x4"),
        1,
        "E_LIMIT",
        "`x` of shape 1000000000 x 4 needs 16",
    ),
    Case("doubling 24", doubling(12, fan=4), COMPILE, 1, "E_LIMIT", "nodes once inlined, more than 1000000"),
    Case("doubling 200", doubling(200), COMPILE, 1, "E_LIMIT", "functions deeper than 16"),
    Case("doubling wide", doubling(15, fan=1000), COMPILE, 1, "E_LIMIT", "nodes once inlined"),
    Case("nested 60", deep(60), COMPILE, 1, "E_LIMIT", "nests graphs deeper than 32"),
    Case("nested by calls", deep_by_calls, COMPILE, 1, "E_LIMIT", "nests graphs deeper than 32"),
    Case("nested 60, inspected", deep(60), ("hypsc", "inspect", "model.onnx"), 1, "E_LIMIT", "deeper than 32"),
    Case(
        "over 2 GiB", large_file, COMPILE, 1, "E_LIMIT", "more than the 2 GiB that protobuf can hold", "external data"
    ),
]
BOMBS = [
    Case(case.id, case.build, case.argv, case.status, case.code, case.says, case.hint, BOMB_NBYTES) for case in BOMBS
]

RELU = helper.make_node("Relu", ["a"], ["b"])
FUNCTIONS = [
    Case("itself", called(function("F", call("F"))), COMPILE, 1, "E_GRAPH", "`d:F` calls itself"),
    Case(
        "each other", called(function("F", call("G")), function("G", call("F"))), COMPILE, 1, "E_GRAPH", "calls itself"
    ),
    Case("twice", called(function("F", RELU), function("F", RELU)), COMPILE, 1, "E_GRAPH", "two functions are called"),
    Case("arity", called(function("F", RELU), inputs=["x", "x"]), COMPILE, 1, "E_GRAPH", "has 2 inputs and function"),
    Case(
        "undefined",
        called(function("F", helper.make_node("Add", ["a", "ghost"], ["b"]))),
        COMPILE,
        1,
        "E_GRAPH",
        "`ghost`, which nothing makes inside function `F`",
    ),
    Case("no output", called(function("F", RELU, makes="z")), COMPILE, 1, "E_GRAPH", "nothing makes the output `z`"),
    Case(
        "cycle",
        called(function("F", helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["b"]))),
        COMPILE,
        1,
        "E_GRAPH",
        "cycle inside function `F`",
    ),
    Case("operator", called(function("F", helper.make_node("Reloo", ["a"], ["b"]))), COMPILE, 1, "E_UNSUPPORTED_OP"),
    Case("twice made", called(function("F", RELU, RELU)), COMPILE, 1, "E_GRAPH", "two nodes make the tensor `b`"),
]


def added(tensor: TensorProto | SparseTensorProto) -> Build:
    """Write a model that adds a weight to its input."""

    def change(model: onnx.ModelProto) -> None:
        if isinstance(tensor, TensorProto):
            model.graph.initializer.append(tensor)
        else:
            model.graph.sparse_initializer.append(tensor)
        model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))

    return changed(change)


def listed(count: int) -> TensorProto:
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4], float_data=[1.0] * count)


def sparse(positions: Sequence[int], dims: Sequence[int], values: int = 0) -> SparseTensorProto:
    ones = numpy_helper.from_array(np.ones(values or len(positions), np.float32), "w")
    return SparseTensorProto(
        values=ones, indices=numpy_helper.from_array(whole(*positions), "w_indices"), dims=list(dims)
    )


TENSORS = [
    Case("listed short", added(listed(2)), COMPILE, 1, "E_TENSOR", "holds 2 values in `float_data`"),
    Case("listed long", added(listed(9)), COMPILE, 1, "E_TENSOR", "holds 9 values"),
    Case("no values", added(listed(0)), COMPILE, 1, "E_TENSOR", "holds 0 values"),
    Case("sparse outside", added(sparse([0, 4], [1, 4])), COMPILE, 1, "E_TENSOR", "outside its shape 1 x 4"),
    Case("sparse unsorted", added(sparse([2, 1], [1, 4])), COMPILE, 1, "E_TENSOR", "ascending order"),
    Case("sparse twice", added(sparse([1, 1], [1, 4])), COMPILE, 1, "E_TENSOR", "ascending order"),
    Case("sparse count", added(sparse([1, 2], [1, 4], 3)), COMPILE, 1, "E_TENSOR", "values of shape 3"),
    Case("sparse negative", added(sparse([-1], [1, 4])), COMPILE, 1, "E_TENSOR", "`w`"),
    Case("sparse huge", added(sparse([0], [2**16, 2**16])), COMPILE, 1, "E_LIMIT", "`w`", "--max-tensor-bytes"),
]


def data_with(**entries: str) -> Build:
    """Write a model with its weight in `data.bin`, and say more about it."""

    def build(folder: Path) -> None:
        content(bytes(16), "data.bin")(folder)
        proto(lambda: external_model(external(location="data.bin", **entries)))(folder)

    return build


def twice_located(folder: Path) -> None:
    content(bytes(16), "data.bin")(folder)
    tensor = external(location="data.bin")
    tensor.external_data.add(key="location", value="../secret")
    proto(lambda: external_model(tensor))(folder)


def data_socket(folder: Path) -> None:
    os.mknod(folder / "data.bin", 0o140600)
    proto(lambda: external_model(external(location="data.bin")))(folder)


def data_folder(folder: Path) -> None:
    (folder / "data.bin").mkdir()
    proto(lambda: external_model(external(location="data.bin")))(folder)


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(external_outside())


def in_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(external_outside())


def in_default(folder: Path) -> None:
    mine = function("F", RELU)
    mine.attribute_proto.add(name="k", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external_outside())
    called(mine)(folder)


DATA = [
    Case(
        "in memory",
        proto(lambda: external_model(external(location="*/_ORT_MEM_ADDR_/*", offset="140000000", length="16"))),
        COMPILE,
        1,
        "E_EXTERNAL",
        "at an address in memory",
    ),
    Case("unknown key", data_with(__class__="x"), COMPILE, 1, "E_EXTERNAL", "unknown key `__class__`"),
    Case("checksum", data_with(checksum="0" * 40), COMPILE, 1, "E_EXTERNAL", "checksum"),
    Case("two places", twice_located, COMPILE, 1, "E_EXTERNAL", "`location` twice"),
    Case("socket", data_socket, COMPILE, 1, "E_EXTERNAL", "`data.bin`"),
    Case("folder", data_folder, COMPILE, 1, "E_EXTERNAL", "no plain file"),
    Case("training", changed(in_training), COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("attribute", changed(in_attribute), COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("default", in_default, COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("device", proto(lambda: external_model(external(location="/dev/zero"))), COMPILE, 1, "E_EXTERNAL", "zero"),
]

NAMES = [
    Case(
        "given already",
        proto(
            lambda: model_of(
                [helper.make_node("Relu", ["x"], ["x"]), helper.make_node("Abs", ["x"], ["y"])],
                [floats("x", 1)],
                [floats("y", 1)],
            )
        ),
        COMPILE,
        1,
        "E_GRAPH",
        "`x`, which is given already",
    ),
    Case(
        "two inputs", changed(lambda m: m.graph.input.append(relu().graph.input[0])), COMPILE, 1, "E_GRAPH", "2 inputs"
    ),
    Case(
        "huge name",
        changed(lambda m: setattr(m.graph.node[0], "op_type", "R\x1b[31m\n" * 500_000)),
        COMPILE,
        1,
        "E_UNSUPPORTED_OP",
        r"R\x1b[31m\nR",
    ),
]
