"""Which models a command line names, where their weights lie, and where their plans go."""

import os
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from check_fixtures import save_dense
from hyps.errors import ModelError, UsageError
from hyps_compiler.checking.targets import Target, find_targets, model_files
from hyps_compiler.locations import locations, locations_in


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_for_every_kind(folder: Path) -> None:
    for name in ("b.onnx", "a/c.ONNX", "a/k.keras", "a/t.tflite", "a/s.skops", ".hidden/h.onnx", "readme.md", "w.bin"):
        path = folder / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    saved = folder / "models" / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"")
    (saved / "inner.onnx").write_bytes(b"")
    plan = folder / "models" / "plan" / "partitions"
    plan.mkdir(parents=True)
    (plan.parent / "plan.json").write_text("{}")
    (plan / "p000.onnx").write_bytes(b"")
    os.symlink(folder / "models", folder / "models" / "loop")
    found = [target.model for target in find_targets(["models"])]
    assert found == [
        "models/a/c.ONNX",
        "models/a/k.keras",
        "models/a/s.skops",
        "models/a/t.tflite",
        "models/b.onnx",
        "models/saved",
    ]


def test_files_with_the_weights_of_a_model_are_no_models(folder: Path) -> None:
    path = save_dense(folder / "m.onnx", (64, 64))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.onnx", size_threshold=0)
    assert [target.model for target in find_targets(["."])] == ["m.onnx"]
    assert [(name, file.name) for name, file in model_files(path)] == [("", "m.onnx"), ("weights.onnx", "weights.onnx")]


def test_each_model_is_there_once(folder: Path) -> None:
    save_dense(folder / "m.onnx")
    assert [t.model for t in find_targets(["m.onnx", ".", "zoo:digits", "zoo:digits"])] == ["m.onnx", "zoo:digits"]


def test_one_model_under_two_names_is_refused(folder: Path) -> None:
    save_dense(folder / "m.onnx")
    (folder / "sub").mkdir()
    with pytest.raises(UsageError, match="are one model"):
        find_targets(["m.onnx", "sub/../m.onnx"])


@pytest.mark.parametrize("argument", ["gone.onnx", "empty", "nul\0byte", "x" * 300])
def test_what_is_no_model_is_said(folder: Path, argument: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ModelError) as caught:
        find_targets([argument])
    assert caught.value.code == "E_NOT_FOUND"


def test_plans_lie_where_their_models_do(folder: Path) -> None:
    assert Target("zoo:digits", None).place == PurePosixPath("zoo@digits")
    assert Target("a/m.onnx", Path("a/m.onnx")).place == PurePosixPath("a/m.onnx")
    assert Target("../m.onnx", Path("../m.onnx")).place == PurePosixPath("up/m.onnx")
    assert Target("/x", folder / "y.onnx").place == PurePosixPath("y.onnx")


def _external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def test_locations_are_found_wherever_a_tensor_can_be() -> None:
    inline = numpy_helper.from_array(np.arange(3, dtype=np.float32), "inline")
    inner = helper.make_graph([], "inner", [], [], [_external("a", "in-graph"), inline])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=_external("b", "in-attribute")),
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(nodes, "outer", [], [], [_external("d", "top"), _external("e", "top")])
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(_external("s", "in-sparse"))
    sparse.indices.CopyFrom(_external("i", "in-indices"))
    model = helper.make_model(graph)
    function = model.functions.add(name="f")
    function.node.append(helper.make_node("Constant", [], ["c"], value=_external("g", "in-function")))
    told = locations(model.SerializeToString())
    assert told == ["in-attribute", "in-function", "in-graph", "in-indices", "in-sparse", "top"]


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_searched(data: bytes) -> None:
    assert isinstance(locations(data), list)


@settings(max_examples=50)
@given(st.data())
def test_a_model_that_is_cut_or_changed_is_searched(data: st.DataObject) -> None:
    made = helper.make_model(helper.make_graph([], "g", [], [], [_external("a", "place")])).SerializeToString()
    index = data.draw(st.integers(0, len(made) - 1))
    changed = made[:index] + bytes([data.draw(st.integers(0, 255))]) + made[index + 1 :]
    assert isinstance(locations(changed[: data.draw(st.integers(0, len(changed)))]), list)


def test_an_empty_file_has_no_weights(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    assert locations_in(tmp_path / "m.onnx") == []


def test_a_model_that_is_a_link_is_a_model(folder: Path) -> None:
    save_dense(folder / "real.onnx")
    (folder / "links").mkdir()
    shutil.copy(folder / "real.onnx", folder / "links" / "own.onnx")
    os.symlink(folder / "real.onnx", folder / "links" / "link.onnx")
    assert [t.model for t in find_targets(["links"])] == ["links/link.onnx", "links/own.onnx"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode(b"\xff.onnx")
    model.touch()
    for argument in (model, tmp_path):
        with pytest.raises(ModelError, match=r"\\udcff\.onnx` is no UTF-8"):
            find_targets([str(argument)])
