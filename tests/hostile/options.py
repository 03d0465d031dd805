"""Options that ask for the impossible, and places where no output can be."""

from pathlib import Path

import numpy as np
from onnx import helper

from hostile.case import COMPILE, Case
from hostile.models import nothing, proto, relu
from model_fixtures import floats, model_of
from plan_fixtures import mlp


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
