"""Model files that are none, that name data elsewhere, or that cannot be right."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hostile.case import COMPILE, Build, Case
from model_fixtures import floats, model_of


def nothing(folder: Path) -> None:
    """Leave the folder empty."""


def content(data: bytes, name: str = "model.onnx") -> Build:
    def build(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return build


def relu() -> onnx.ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="act")], [floats("x", 1, 4)], [floats("y", 1, 4)])


def proto(make: Callable[[], onnx.ModelProto]) -> Build:
    def build(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(make().SerializeToString())

    return build


def changed(change: Callable[[onnx.ModelProto], object]) -> Build:
    """Write the sound model with something changed."""

    def build(folder: Path) -> None:
        model = relu()
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return build


def nodes(*made: NodeProto, contrib: bool = False) -> Build:
    return proto(lambda: model_of(made, [floats("x", 1, 4)], [floats("y", 1, 4)], contrib=contrib))


def truncated(folder: Path) -> None:
    weight = np.arange(4096, dtype=np.float32).reshape(4, 1024)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [floats("x", 1, 4)], [floats("y", 1, 1024)], {"w": weight}
    ).SerializeToString()
    (folder / "model.onnx").write_bytes(model[: len(model) // 2])


def weight(dims: Sequence[int], raw: bytes) -> Build:
    """Write a model whose weight says one thing in its dims and holds another."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=list(dims), raw_data=raw)

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(tensor)
        model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))

    return changed(change)


def external(name: str = "w", **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items())
    return tensor


def external_model(tensor: TensorProto) -> onnx.ModelProto:
    model = relu()
    model.graph.initializer.append(tensor)
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    return model


def outside(folder: Path, **entries: str) -> None:
    """Write a model whose weight is asked for elsewhere, and what lies there."""
    (folder.parent / "secret").write_bytes(bytes(16))
    (folder / "model.onnx").write_bytes(external_model(external(**entries)).SerializeToString())


def outside_at(**entries: str) -> Build:
    return lambda folder: outside(folder, **entries)


def outside_absolute(folder: Path) -> None:
    outside(folder, location=str(folder.parent / "secret"))


def outside_by_link(folder: Path) -> None:
    outside(folder, location="data.bin")
    (folder / "data.bin").symlink_to("../secret")


def outside_by_folder_link(folder: Path) -> None:
    outside(folder, location="data/secret")
    (folder / "data").symlink_to("..")


def outside_by_hard_link(folder: Path) -> None:
    outside(folder, location="data.bin")
    (folder / "data.bin").hardlink_to(folder.parent / "secret")


def outside_by_fifo(folder: Path) -> None:
    outside(folder, location="data.bin")
    os.mkfifo(folder / "data.bin")


def short_data(**entries: str) -> Build:
    def build(folder: Path) -> None:
        outside(folder, location="data.bin", **entries)
        (folder / "data.bin").write_bytes(bytes(16))

    return build


def nested_external(folder: Path) -> None:
    """Write a model whose nested graph, two levels down, wants a weight from elsewhere."""
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["inner"])], "body", [], [floats("inner", 1, 4)], [external_outside()]
    )
    middle = helper.make_graph([branch("inner_choice", body)], "middle", [], [floats("inner_choice", 1, 4)])
    model = model_of([branch("y", middle)], [floats("x", 1, 4), condition()], [floats("y", 1, 4)])
    (folder.parent / "secret").write_bytes(bytes(16))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def branch(output: str, graph: onnx.GraphProto) -> NodeProto:
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], [f"{output}_e"])], "e", [], [floats(f"{output}_e", 1, 4)]
    )
    return helper.make_node("If", ["c"], [output], then_branch=graph, else_branch=other)


def condition() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("c", TensorProto.BOOL, [])


def external_outside() -> TensorProto:
    return external(location="../secret")


def sparse() -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64), "w_indices")
    values = external_outside()
    del values.dims[:]
    values.dims.append(4)
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[1, 4])


def sparse_initializer(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(16))
    model = relu()
    model.graph.sparse_initializer.append(sparse())
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def sparse_constant(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(16))
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(
        onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse())
    )
    model = relu()
    model.graph.node[0].CopyFrom(constant)
    model.graph.node.append(helper.make_node("Add", ["x", "w"], ["y"]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def function_external(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(16))
    constant = helper.make_node("Constant", [], ["w"], value=external_outside())
    body = [constant, helper.make_node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("mine", "Shift", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = model_of([helper.make_node("Shift", ["x"], ["y"], domain="mine")], [floats("x", 1, 4)], [floats("y", 1, 4)])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(function)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def other_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "acme"
    model.opset_import.add(domain="acme", version=1)


GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NOT_MODELS = [
    Case("missing", nothing, COMPILE, 1, "E_NOT_FOUND", "`model.onnx` does not exist"),
    Case("folder", lambda at: (at / "model.onnx").mkdir(), COMPILE, 1, "E_NOT_A_FILE", "`model.onnx`"),
    Case("fifo", lambda at: os.mkfifo(at / "model.onnx"), COMPILE, 1, "E_NOT_A_FILE", "`model.onnx`"),
    Case("empty", content(b""), COMPILE, 1, "E_NOT_ONNX", "`model.onnx` is empty", "again"),
    Case("truncated", truncated, COMPILE, 1, "E_NOT_ONNX", "`model.onnx` is truncated", "again"),
    Case("random", content(np.random.default_rng(1).bytes(1024)), COMPILE, 1, "E_NOT_ONNX", "no ONNX model", "again"),
    Case("png", content(b"\x89PNG\r\n\x1a\n" + bytes(64)), COMPILE, 1, "E_NOT_ONNX", "PNG", ".onnx"),
    Case("web page", content(b"<!doctype html><html><body>404</body></html>"), COMPILE, 1, "E_NOT_ONNX", "web page"),
    Case("indented web page", content(b"\n\n  <HTML lang='en'>"), COMPILE, 1, "E_NOT_ONNX", "web page", "download"),
    Case("git lfs", content(GIT_LFS), COMPILE, 1, "E_NOT_ONNX", "Git LFS pointer", "git lfs pull"),
    Case("zip", content(b"PK\x03\x04" + bytes(64)), COMPILE, 1, "E_NOT_ONNX", "zip archive", "ONNX"),
    Case("hdf5", content(b"\x89HDF\r\n\x1a\n" + bytes(64)), COMPILE, 1, "E_NOT_ONNX", "HDF5", "Keras"),
    Case("tflite", content(b"\x1c\0\0\0TFL3" + bytes(64)), COMPILE, 1, "E_NOT_ONNX", "TensorFlow Lite", ".tflite"),
    Case("ort", content(b"\x1c\0\0\0ORTM" + bytes(64)), COMPILE, 1, "E_NOT_ONNX", "onnxruntime's own", "ONNX"),
    Case("text", content(b"hello, this is no model\n" * 9), COMPILE, 1, "E_NOT_ONNX", "no ONNX model", "again"),
    Case("empty folder", lambda at: (at / "plan").mkdir(), ("hypsc", "inspect", "plan"), 1, "E_NOT_A_FILE", "`plan`"),
    Case("zoo", nothing, ("hypsc", "compile", "zoo:nothing", "-o", "out"), 1, "E_NOT_FOUND", "`nothing`", "digits"),
    Case("keras", content(b"no zip", "m.keras"), ("hypsc", "compile", "m.keras", "-o", "out"), 1, "E_MODEL", "zip"),
]

EXTERNAL = [
    Case("missing data", outside_at(location="gone.bin"), COMPILE, 1, "E_EXTERNAL_MISSING", "`gone.bin`", "beside"),
    Case("parent", outside_at(location="../secret"), COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("hidden parent", outside_at(location="a/../../secret"), COMPILE, 1, "E_EXTERNAL", "tensor `w`"),
    Case("absolute", outside_absolute, COMPILE, 1, "E_EXTERNAL", "outside the model's folder", "beside"),
    Case("link", outside_by_link, COMPILE, 1, "E_EXTERNAL", "`data.bin`", "copy"),
    Case("folder link", outside_by_folder_link, COMPILE, 1, "E_EXTERNAL", "`data/secret`", "copy"),
    Case("hard link", outside_by_hard_link, COMPILE, 1, "E_EXTERNAL", "`data.bin`", "copy"),
    Case("fifo data", outside_by_fifo, COMPILE, 1, "E_EXTERNAL", "`data.bin`"),
    Case("no location", outside_at(), COMPILE, 1, "E_EXTERNAL", "tensor `w`"),
    Case("past the end", short_data(offset="8", length="16"), COMPILE, 1, "E_EXTERNAL", "to byte 24", "truncated"),
    Case("negative offset", short_data(offset="-8"), COMPILE, 1, "E_EXTERNAL", "`w`"),
    Case("no number", short_data(offset="x"), COMPILE, 1, "E_EXTERNAL", "`w`"),
    Case("too short", short_data(length="8"), COMPILE, 1, "E_EXTERNAL", "8 bytes", "truncated"),
    Case("nested", nested_external, COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("sparse initializer", sparse_initializer, COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("sparse constant", sparse_constant, COMPILE, 1, "E_EXTERNAL", "`../secret`"),
    Case("function", function_external, COMPILE, 1, "E_EXTERNAL", "`../secret`"),
]

CYCLE = (helper.make_node("Add", ["x", "b"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"]))
GRAPHS = [
    Case("no outputs", changed(lambda m: m.graph.ClearField("output")), COMPILE, 1, "E_EMPTY_GRAPH", "no outputs"),
    Case(
        "unknown operator",
        nodes(helper.make_node("Reloo", ["x"], ["y"])),
        COMPILE,
        1,
        "E_UNSUPPORTED_OP",
        "`y` is a `Reloo`",
    ),
    Case(
        "unknown domain",
        changed(other_domain),
        COMPILE,
        1,
        "E_UNSUPPORTED_OP",
        "`acme`",
    ),
    Case("cycle", nodes(*CYCLE, helper.make_node("Relu", ["b"], ["y"])), COMPILE, 1, "E_GRAPH", "cycle"),
    Case("undefined input", nodes(helper.make_node("Add", ["x", "ghost"], ["y"])), COMPILE, 1, "E_GRAPH", "`ghost`"),
    Case(
        "made twice",
        nodes(helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])),
        COMPILE,
        1,
        "E_GRAPH",
        "`y`",
    ),
    Case("no maker", changed(lambda m: setattr(m.graph.output[0], "name", "z")), COMPILE, 1, "E_GRAPH", "`z`"),
    Case("ir 999", changed(lambda m: setattr(m, "ir_version", 999)), COMPILE, 1, "E_VERSION", "999"),
    Case("opset 9999", changed(lambda m: setattr(m.opset_import[0], "version", 9999)), COMPILE, 1, "E_VERSION", "9999"),
    Case("no opset", changed(lambda m: m.ClearField("opset_import")), COMPILE, 1, "E_VERSION", "opset"),
    Case("short weight", weight([4, 4], bytes(16)), COMPILE, 1, "E_TENSOR", "`w`", "again"),
    Case("long weight", weight([4], bytes(64)), COMPILE, 1, "E_TENSOR", "`w`", "again"),
    Case("negative dim", weight([-1, 4], bytes(16)), COMPILE, 1, "E_TENSOR", "`w`", "again"),
    Case("overflowing dims", weight([2**33, 2**33], bytes(16)), COMPILE, 1, "E_TENSOR", "`w`", "again"),
]
