"""Whatever is handed to the commands, the answer is one sentence and an exit status, and nothing is left behind."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from command_fixtures import Finished, run_command, snapshot
from hyps_compiler.arrays import write_npz
from model_fixtures import floats, model_of
from plan_fixtures import mlp

Build = Callable[[Path], None]
"""Puts what a case needs into the folder that its command runs in."""

COMPILE = ("hypsc", "compile", "model.onnx", "-o", "out")
RUN = ("hypsc", "run", "plan")
SERVE = ("hyps-worker", "plan", "--bind", "tcp://127.0.0.1:0")

LIMIT_S = 20.0
LIMIT_BYTES = 10**9
WORKERS = 2
"""Commands run at once: most of their time they import."""


@dataclass(frozen=True)
class Case:
    """One thing that must be refused."""

    id: str
    build: Build
    argv: Sequence[str]
    status: int
    code: str
    says: str = ""
    """Part of the sentence."""
    hint: str = ""
    """Part of the hint."""


# What is in the folder


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
    Case("tflite", content(b"\x1c\0\0\0TFL3" + bytes(64)), COMPILE, 1, "E_NOT_ONNX", "TensorFlow Lite", "ONNX"),
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


def sound(folder: Path) -> None:
    proto(relu)(folder)


def dense(folder: Path) -> None:
    """Write three layers, so that there is something to cut."""
    (folder / "model.onnx").write_bytes(mlp(8, 16, 4, batch=1).whole())


def dynamic(folder: Path) -> None:
    """Write a model that runs at one size of its open dimension only."""
    made = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    shape = {"s": np.array([-1, 1001], np.int64)}
    model = model_of(made, [floats("x", "n", "m")], [floats("y", None, 1001)], shape)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def compiling(*more: str) -> tuple[str, ...]:
    return (*COMPILE, *more)


OPTIONS = [
    Case("memory 0", dense, compiling("--memory", "0"), 2, "E_USAGE", "`--memory`"),
    Case("memory abc", dense, compiling("--memory", "abc"), 2, "E_USAGE", "`--memory`: `abc`", "256MB"),
    Case("memory -5MB", dense, compiling("--memory", "-5MB"), 2, "E_USAGE", "`-5MB`", "256MB"),
    Case("max params -1", dense, compiling("--max-params", "-1"), 2, "E_USAGE", "`--max-params`: `-1`", "30M"),
    Case("max params 1", dense, compiling("--max-params", "1"), 3, "E_INFEASIBLE", "--max-params 1", "--max-params "),
    Case("partitions 0", dense, compiling("--partitions", "0"), 2, "E_USAGE", "--partitions"),
    Case("partitions 10000", dense, compiling("--partitions", "10000"), 3, "E_INFEASIBLE", "--partitions 10000"),
    Case("cut unknown", dense, compiling("--cut", "ghost"), 1, "E_UNKNOWN_TENSOR", "`ghost`", "inspect"),
    Case(
        "cut unknown, plain", dense, compiling("--cut", "ghost", "--optimize", "none"), 1, "E_UNKNOWN_TENSOR", "`ghost`"
    ),
    Case("cut empty", dense, compiling("--cut", ""), 2, "E_USAGE", "--cut", "pooling"),
    Case("cut comma", dense, compiling("--cut", "all,,pooling"), 2, "E_USAGE", "--cut", "pooling"),
    Case("optimize", dense, compiling("--optimize", "fast"), 2, "E_USAGE", "--optimize"),
    Case("input malformed", dense, compiling("--input", "t0"), 2, "E_USAGE", "`t0`", "image:1x3x224x224"),
    Case("input no number", dense, compiling("--input", "t0:1xtwo"), 2, "E_USAGE", "`t0:1xtwo`", "image:1x3"),
    Case("input huge", dense, compiling("--input", "t0:" + "9" * 5000), 2, "E_USAGE", "--input", "image:1x3"),
    Case("input unknown", dense, compiling("--input", "ghost:1x8"), 1, "E_TENSOR", "`ghost`", "t0"),
    Case("input rank", dense, compiling("--input", "t0:1x8x1"), 1, "E_TENSOR", "`t0`"),
    Case("input dim", dense, compiling("--input", "t0:1x9"), 1, "E_TENSOR", "`t0`"),
    Case("inputs missing", dense, compiling("--inputs", "gone.npz"), 1, "E_NOT_FOUND", "`gone.npz`"),
    Case("dynamic memory", dynamic, compiling("--memory", "100MB"), 3, "E_DYNAMIC_SHAPE", "--memory", "--input"),
    Case("no output", dense, ("hypsc", "compile", "model.onnx"), 2, "E_USAGE", "--output", "compile --help"),
    Case("two models", dense, ("hypsc", "compile", "model.onnx", "b", "-o", "out"), 2, "E_USAGE", "b", "--help"),
    Case("command", nothing, ("hypsc", "compil"), 2, "E_USAGE", "`compil`", "`compile`"),
    Case("option", nothing, compiling("--memry", "1MB"), 2, "E_USAGE", "`--memry`", "`--memory`"),
    Case("worker option", nothing, ("hyps-worker", "plan", "--treads", "1"), 2, "E_USAGE", "`--treads`", "`--threads`"),
    Case("convert onnx", sound, ("hypsc", "convert", "model.onnx", "-o", "m"), 1, "E_NOT_CONVERTIBLE", "model.onnx"),
    Case("convert missing", nothing, ("hypsc", "convert", "m.keras", "-o", "m.onnx"), 1, "E_NOT_FOUND", "m.keras"),
]


def occupied(folder: Path) -> None:
    dense(folder)
    (folder / "out").mkdir()
    (folder / "out" / "precious.txt").write_text("mine")


def under_file(folder: Path) -> None:
    dense(folder)
    (folder / "file").write_text("mine")


def out_is_link(folder: Path) -> None:
    occupied(folder)
    (folder / "link").symlink_to("out")


OUTPUT = [
    Case("occupied", occupied, COMPILE, 1, "E_EXISTS", "`out`", "-o"),
    Case("occupied by others", occupied, compiling("--force"), 1, "E_EXISTS", "`out`", "-o"),
    Case("a file", dense, ("hypsc", "compile", "model.onnx", "-o", "model.onnx"), 1, "E_EXISTS", "`model.onnx`", "-o"),
    Case("under a file", under_file, ("hypsc", "compile", "model.onnx", "-o", "file/x"), 1, "E_OUTPUT", "`file/x`"),
    Case("no folder", dense, ("hypsc", "compile", "model.onnx", "-o", "a/b"), 1, "E_OUTPUT", "`a/b`", "mkdir -p a"),
    Case("root", dense, ("hypsc", "compile", "model.onnx", "-o", "/"), 1, "E_OUTPUT", "`/`", "-o"),
    Case("nowhere", dense, ("hypsc", "compile", "model.onnx", "-o", ""), 2, "E_USAGE", "`-o`", "path"),
    Case("here", dense, ("hypsc", "compile", "model.onnx", "-o", "."), 1, "E_OUTPUT", "`.`", "-o"),
    Case("here by force", dense, ("hypsc", "compile", "model.onnx", "-o", ".", "--force"), 1, "E_OUTPUT", "`.`"),
    Case("link", out_is_link, ("hypsc", "compile", "model.onnx", "-o", "link", "--force"), 1, "E_EXISTS", "`link`"),
    Case("long name", dense, ("hypsc", "compile", "model.onnx", "-o", "x" * 300), 2, "E_USAGE", "`-o`", "shorter"),
    Case("a device", dense, ("hypsc", "compile", "model.onnx", "-o", "/dev/null"), 1, "E_EXISTS", "`/dev/null`"),
]


def planned(change: Callable[[Path], object] = lambda plan: None) -> Build:
    """Write a plan of two partitions, and change something in its folder."""

    def build(folder: Path) -> None:
        mlp(8, 300, 100, batch=1).write(folder / "plan")
        change(folder / "plan")

    return build


def plan_file(data: bytes) -> Build:
    return planned(lambda plan: (plan / "plan.json").write_bytes(data))


def edited(change: Callable[[bytes], bytes]) -> Build:
    return planned(lambda plan: (plan / "plan.json").write_bytes(change((plan / "plan.json").read_bytes())))


def field(name: str, value: object) -> Build:
    def change(data: bytes) -> bytes:
        told = json.loads(data)
        told[name] = value
        return json.dumps(told).encode()

    return edited(change)


def first_file(path: str) -> Build:
    """Name another file as that of the first partition."""

    def change(data: bytes) -> bytes:
        told = json.loads(data)
        told["partitions"][0]["file"] = path
        return json.dumps(told).encode()

    return edited(change)


def flip_byte(plan: Path) -> None:
    path = plan / "partitions" / "v0.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(plan: Path) -> None:
    first, second = plan / "partitions" / "v0.onnx", plan / "partitions" / "v1.onnx"
    first.rename(plan / "x")
    second.rename(first)
    (plan / "x").rename(second)


def truncate(plan: Path) -> None:
    path = plan / "partitions" / "v0.onnx.data"
    path.write_bytes(path.read_bytes()[:100])


def link_partition(plan: Path) -> None:
    path = plan / "partitions" / "v0.onnx"
    path.rename(plan.parent / "elsewhere")
    path.symlink_to("../../elsewhere")


def no_model(plan: Path) -> None:
    """Put something else in the place of a partition, with the right digest."""
    data = b"no model at all"
    (plan / "partitions" / "v0.onnx").write_bytes(data)
    told = json.loads((plan / "plan.json").read_bytes())
    told["partitions"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (plan / "plan.json").write_text(json.dumps(told))


def other_cpu(folder: Path) -> None:
    mlp(8, 4, batch=1).write(folder / "plan", optimization="native", cpu_family="vax")


def tight(folder: Path) -> None:
    mlp(8, 4, batch=1).write(folder / "plan", memory_bytes=1000)


PLANS = [
    Case("no plan", nothing, RUN, 1, "E_NO_PLAN", "`plan`", "hypsc compile"),
    Case("plan is a file", content(b"x", "plan"), RUN, 1, "E_NO_PLAN", "`plan`", "hypsc compile"),
    Case("no plan.json", planned(lambda at: (at / "plan.json").unlink()), RUN, 1, "E_NO_PLAN", "`plan`", "compile"),
    Case("plan.json empty", plan_file(b""), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json no text", plan_file(b'{"format": "\xff\xfe"}'), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json comma", edited(lambda d: d.replace(b"{", b"{,", 1)), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json nan", edited(lambda d: d.replace(b'"version": 1', b'"version": NaN')), RUN, 1, "E_PLAN"),
    Case("plan.json list", plan_file(b"[]"), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json deep", plan_file(b"[" * 100_000), RUN, 1, "E_PLAN", "`plan.json`", "compile"),
    Case("plan.json digits", plan_file(b'{"version":' + b"9" * 5000 + b"}"), RUN, 1, "E_PLAN", "`plan.json`"),
    Case("future", field("version", 99), RUN, 1, "E_VERSION", "99", "upgrade"),
    Case("other format", field("format", "recipe"), RUN, 1, "E_PLAN", "`recipe`", "compile"),
    Case("escaping path", first_file("../x"), RUN, 1, "E_PLAN", "`../x`", "compile"),
    Case("absolute path", first_file("/etc/passwd"), RUN, 1, "E_PLAN", "`/etc/passwd`", "compile"),
    Case("altered", planned(flip_byte), RUN, 1, "E_TAMPERED", "`partitions/v0.onnx`", "again"),
    Case("swapped", planned(swap), RUN, 1, "E_TAMPERED", "`partitions/v0.onnx`", "again"),
    Case("weights truncated", planned(truncate), RUN, 1, "E_TAMPERED", "`partitions/v0.onnx.data`", "again"),
    Case("partition gone", planned(lambda at: (at / "partitions/v1.onnx").unlink()), RUN, 1, "E_MISSING", "v1.onnx"),
    Case("partition linked", planned(link_partition), RUN, 1, "E_PATH", "`partitions/v0.onnx`", "again"),
    Case("no partition", planned(no_model), RUN, 1, "E_PLAN", "`v0.onnx`"),
    Case("other cpu", other_cpu, RUN, 1, "E_CPU", "`vax`", "--optimize portable"),
    Case("plan memory", tight, RUN, 3, "E_INFEASIBLE", "v0", "--memory"),
    Case("run memory", planned(), (*RUN, "--memory", "1000"), 3, "E_INFEASIBLE", "v", "--memory"),
    Case("inspect altered", field("version", 99), ("hypsc", "inspect", "plan"), 1, "E_VERSION", "99", "upgrade"),
    Case("verify altered", planned(flip_byte), ("hypsc", "verify", "plan", "--model", "m"), 1, "E_TAMPERED", "v0"),
    Case("worker no plan", nothing, SERVE, 1, "E_NO_PLAN", "`plan`", "hypsc compile"),
    Case("worker altered", planned(flip_byte), SERVE, 1, "E_TAMPERED", "`partitions/v0.onnx`", "again"),
    Case("worker future", field("version", 99), SERVE, 1, "E_VERSION", "99", "upgrade"),
    Case("worker address", planned(), ("hyps-worker", "plan", "--bind", "here"), 2, "E_ADDRESS", "`here`", "tcp://"),
    Case("worker open", planned(), ("hyps-worker", "plan", "--bind", "tcp://0.0.0.0:0"), 2, "E_INSECURE", "0.0.0.0"),
]


def request(name: str = "x.npy", shape: tuple[int, ...] = (1, 8), dtype: str = "float32") -> Build:
    def build(folder: Path) -> None:
        planned()(folder)
        np.save(folder / name, np.zeros(shape, dtype))

    return build


def archive(**arrays: tuple[int, ...]) -> Build:
    def build(folder: Path) -> None:
        planned()(folder)
        write_npz(folder / "x.npz", {name: np.zeros(shape, np.float32) for name, shape in arrays.items()})

    return build


def pickled(folder: Path) -> None:
    planned()(folder)
    np.save(folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def beside_plan(name: str, data: bytes) -> Build:
    def build(folder: Path) -> None:
        planned()(folder)
        (folder / name).write_bytes(data)

    return build


def huge_header(folder: Path) -> None:
    """Write 128 bytes that say they hold 4 TiB."""
    planned()(folder)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)


def running(*more: str) -> tuple[str, ...]:
    return (*RUN, *more)


REQUESTS = [
    Case("input name", request(), running("-i", "ghost=x.npy"), 1, "E_TENSOR", "`ghost`", "t0"),
    Case("dtype", request(dtype="int64"), running("-i", "t0=x.npy"), 1, "E_TENSOR", "int64"),
    Case("rank", request(shape=(8,)), running("-i", "t0=x.npy"), 1, "E_TENSOR", "1 x 8"),
    Case("dim", request(shape=(1, 9)), running("-i", "t0=x.npy"), 1, "E_TENSOR", "1 x 9"),
    Case("file gone", planned(), running("-i", "t0=gone.npy"), 1, "E_NOT_FOUND", "`gone.npy`"),
    Case("npz lacks", archive(other=(1, 8)), running("-i", "x.npz"), 1, "E_TENSOR", "`other`", "t0"),
    Case("npz empty", archive(), running("-i", "x.npz"), 1, "E_TENSOR", "`t0`", "t0"),
    Case("no npy", beside_plan("x.npy", b"hello"), running("-i", "t0=x.npy"), 1, "E_TENSOR", "`x.npy`"),
    Case("no npz", beside_plan("x.npz", b"hello"), running("-i", "x.npz"), 1, "E_TENSOR", "`x.npz`"),
    Case("truncated npz", beside_plan("x.npz", b"PK\x03\x04 hello"), running("-i", "x.npz"), 1, "E_TENSOR", "`x.npz`"),
    Case("npz for npy", archive(t0=(1, 8)), running("-i", "t0=x.npz"), 1, "E_TENSOR", "`x.npz`", "-i x.npz"),
    Case("pickled", pickled, running("-i", "t0=x.npy"), 1, "E_TENSOR", "Python objects", "save"),
    Case("4 TiB", huge_header, running("-i", "t0=x.npy"), 1, "E_TENSOR", "`x.npy`"),
    Case("a folder", planned(lambda at: (at.parent / "x.npy").mkdir()), running("-i", "x.npy"), 1, "E_TENSOR", "x.npy"),
    Case("picture", beside_plan("x.png", b"hello"), running("-i", "t0=x.png"), 1, "E_", "", ""),
    Case("answer exists", beside_plan("y.npz", b"mine"), running("-o", "y.npz"), 1, "E_EXISTS", "`y.npz`", "--force"),
    Case("answer nowhere", planned(), running("-o", "a/y.npz"), 1, "E_OUTPUT", "`a/y.npz`", "mkdir -p a"),
    Case("answer empty", planned(), running("-o", ""), 2, "E_USAGE", "`-o`"),
    Case("answer a folder", planned(), running("-o", "plan", "--force"), 1, "E_EXISTS", "`plan`"),
    Case("nothing to run", planned(), ("hypsc", "run"), 2, "E_USAGE", "plan folder", "run --help"),
    Case("two to run", planned(), running("--connect", "tcp://127.0.0.1:1"), 2, "E_USAGE", "not both", "--help"),
    Case("nobody", nothing, ("hypsc", "run", "--connect", "tcp://127.0.0.1:1"), 1, "E_UNAVAILABLE", "127.0.0.1:1"),
    Case("no address", nothing, ("hypsc", "run", "--connect", "here"), 2, "E_ADDRESS", "`here`", "tcp://"),
    Case(
        "connect memory",
        nothing,
        ("hypsc", "run", "--connect", "tcp://127.0.0.1:1", "--memory", "1GB"),
        2,
        "E_USAGE",
        "--memory",
        "hyps-worker",
    ),
]


def verified(folder: Path) -> None:
    """Write a plan and a model with the same outputs that is another."""
    mlp(8, 300, 100, batch=1).write(folder / "plan")
    (folder / "model.onnx").write_bytes(mlp(8, 300, 100, batch=1, seed=99).whole())


def other_names(folder: Path) -> None:
    planned()(folder)
    sound(folder)


VERIFY = ("hypsc", "verify", "plan", "--model", "model.onnx")
VERIFICATIONS = [
    Case("model gone", planned(), VERIFY, 1, "E_NOT_FOUND", "`model.onnx`"),
    Case("other weights", verified, VERIFY, 4, "E_DIFFERENT", "`t"),
    Case("other model", other_names, VERIFY, 1, "E_MODEL", "another model"),
    Case("no model", planned(), ("hypsc", "verify", "plan"), 2, "E_USAGE", "--model"),
    Case("samples", planned(), (*VERIFY, "--samples", "0"), 2, "E_USAGE", "--samples"),
]

# What must hold for each of them


CASES = {
    f"{group}: {case.id}": case
    for group, cases in {
        "file": NOT_MODELS,
        "data": EXTERNAL,
        "graph": GRAPHS,
        "option": OPTIONS,
        "output": OUTPUT,
        "plan": PLANS,
        "request": REQUESTS,
        "verify": VERIFICATIONS,
    }.items()
    for case in cases
}


_SLOW = (
    "fifo|random|indented web page|zip|hdf5|ort|empty folder|hidden parent|folder link|fifo data|"
    "no number|negative offset|sparse constant|no maker|long weight|overflowing dims|memory -5MB|"
    "cut unknown, plain|cut comma|optimize|input no number|inputs missing|two models|here by force|"
    "a device|occupied by others|plan is a file|no plan.json|plan.json no text|plan.json list|"
    "plan.json digits|other format|absolute path|worker altered|worker future|inspect altered|npz empty|"
    "truncated npz|answer a folder|nothing to run|samples|other model|"
    "web page|text|unknown domain|opset 9999|function|absolute|no location|input unknown|input rank|"
    "long name|here|root"
).split("|")
"""Left to the slow tests: others are much like them."""

SLOW = {name for name in CASES if name.split(": ", 1)[1] in _SLOW}


@dataclass(frozen=True)
class Outcome:
    """What a case's command did, and what it left."""

    finished: Finished
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, "Future[Outcome]"]]:
    """Run the commands of all selected cases, a few at once."""
    chosen = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path and "name" in item.callspec.params
    ]
    with ThreadPoolExecutor(WORKERS) as pool:
        yield {name: pool.submit(run_case, CASES[name], tmp_path_factory.mktemp("case")) for name in chosen}


def run_case(case: Case, place: Path) -> Outcome:
    here, temporary = place / "here", place / "tmp"
    here.mkdir()
    temporary.mkdir()
    case.build(here)
    before = snapshot(place)
    finished = run_command(case.argv, here, timeout_s=LIMIT_S, TMPDIR=str(temporary))
    return Outcome(finished, before, snapshot(place))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, outcomes: dict[str, "Future[Outcome]"]) -> None:
    case, outcome = CASES[name], outcomes[name].result()
    finished = outcome.finished
    assert "Traceback" not in finished.stderr
    assert finished.status == case.status, finished.stderr
    assert f"[{case.code}" in finished.error
    assert case.says in finished.error
    assert case.hint in finished.hint
    assert len(finished.stderr) < 1200
    assert finished.stdout == "" or case.status == 4
    assert outcome.after == outcome.before
    assert not finished.has_orphans
    assert 0 < finished.peak_bytes < LIMIT_BYTES
