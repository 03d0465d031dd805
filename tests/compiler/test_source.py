"""Model files: what they are, and where their weights lie."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hyps.errors import ModelError
from hyps.formats.plan import Optimization
from hyps_compiler import compile as compile_plan
from hyps_compiler.frontend import open_model
from hyps_compiler.inspection import inspect_model
from hyps_compiler.partition import Request
from hyps_compiler.snapshot import copy
from hyps_compiler.source import open_source
from hyps_compiler.verification import verify_folder
from hyps_compiler.walk import tensors
from model_fixtures import floats, model_of, save


def scaled(weight: TensorProto) -> onnx.ModelProto:
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])], [floats("x", 1, 4)], [floats("y", 1, 4)])
    model.graph.initializer.append(weight)
    return model


def plain() -> TensorProto:
    return numpy_helper.from_array(np.ones((1, 4), np.float32), "w")


def external(**entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in entries.items())
    return tensor


def test_a_sound_file_is_told(tmp_path: Path) -> None:
    path = save(scaled(plain()), tmp_path / "my model.onnx")
    source = open_source(path)
    assert (source.name, source.ir_version, source.opset) == ("my model", 8, {"ai.onnx": 17})
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source.nbytes, source.outputs) == (path.stat().st_size, ("y",))


def test_external_data_counts_and_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(32))
    path = save(scaled(external(location="sub/w.bin", offset=16, length=16)), tmp_path / "m.onnx")
    source = open_source(path)
    assert source.nbytes == path.stat().st_size + 32
    assert source.sha256 == hashlib.sha256(path.read_bytes() + bytes(32)).hexdigest()


@pytest.mark.parametrize(
    "entries",
    [{"length": 16}, {"offset": 4, "length": 16}, {}, {"offset": 8}, {"length": 0}, {"offset": 8, "length": 0}],
)
def test_external_data_without_a_length_goes_to_the_end_of_the_file(tmp_path: Path, entries: dict[str, int]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(24))
    path = save(scaled(external(location="w.bin", **entries)), tmp_path / "m.onnx")
    assert open_source(path).nbytes == path.stat().st_size + 24


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"length": 8}, "has 8 bytes, and the tensor's shape needs 16"),
        ({"length": 24}, "has 24 bytes, and the tensor's shape needs 16"),
        ({"offset": 12}, "has 12 bytes"),
        ({"offset": 12, "length": 0}, "has 12 bytes"),
        ({"offset": 12, "length": 16}, "reaches to byte 28 of a file of 24"),
        ({"offset": -1}, "no whole number"),
        ({"offset": "9" * 30}, "no whole number"),
        ({"length": "1e3"}, "no whole number"),
    ],
)
def test_external_data_must_be_all_there(tmp_path: Path, entries: dict[str, object], says: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(24))
    path = save(scaled(external(location="w.bin", **entries)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=says) as caught:
        open_source(path)
    assert caught.value.code == "E_EXTERNAL"


@pytest.mark.parametrize(
    "location", ["../w.bin", "a/../../w.bin", "/etc/passwd", "a\\w.bin", "a\0b", "", ".", "..", "x/"]
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    here = tmp_path / "here"
    (here / "x").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = save(scaled(external(location=location)), here / "m.onnx")
    with pytest.raises(ModelError) as caught:
        open_source(path)
    assert caught.value.code == "E_EXTERNAL"


def cached(folder: Path) -> Path:
    """Return the path of a model that lies as a model hub keeps it: links to files named after their hashes."""
    weights = np.arange(4, dtype=np.float32)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "b").write_bytes(weights.tobytes())
    save(scaled(external(location="m.onnx_data")), folder / "blobs" / "a")
    links = folder / "snapshots" / "1"
    links.mkdir(parents=True)
    (links / "m.onnx").symlink_to("../../blobs/a")
    (links / "m.onnx_data").symlink_to("../../blobs/b")
    return links / "m.onnx"


@pytest.mark.parametrize("level", ["none", "portable", "native"])
def test_a_model_hubs_cache_compiles_and_verifies(level: Optimization, tmp_path: Path) -> None:
    path = cached(tmp_path)
    plan = compile_plan(path, tmp_path / "plan", optimize=level, cut="y")
    assert plan.model.sha256 == open_source(path).sha256
    assert not verify_folder(tmp_path / "plan", str(path), None, 1).report.problems()
    assert inspect_model(str(path), Request(), {}).weight_bytes == 16


def test_data_that_is_a_link_is_copied_as_it_was_checked(tmp_path: Path) -> None:
    path = cached(tmp_path)
    source = open_model(path, tmp_path / "work")
    assert source.path.with_name("m.onnx_data").read_bytes() == (tmp_path / "blobs" / "b").read_bytes()
    taken = open_source(path).stamps[1]
    (path.parent / "m.onnx_data").unlink()
    (path.parent / "m.onnx_data").write_bytes(bytes(16))
    with pytest.raises(ModelError) as caught:
        copy(taken, tmp_path / "copy")
    assert caught.value.code == "E_CHANGED"


def to_elsewhere(blobs: Path, link: Path) -> None:
    (blobs.parent / "secret").write_bytes(bytes(16))
    link.symlink_to(blobs.parent / "secret")


def to_below(blobs: Path, link: Path) -> None:
    (blobs / "sub").mkdir()
    (blobs / "sub" / "b").write_bytes(bytes(16))
    link.symlink_to(blobs / "sub" / "b")


def to_link(blobs: Path, link: Path) -> None:
    (blobs / "b").rename(blobs.parent / "secret")
    (blobs / "b").symlink_to("../secret")
    link.symlink_to(blobs / "b")


def to_second_name(blobs: Path, link: Path) -> None:
    (blobs / "c").hardlink_to(blobs / "b")
    link.symlink_to(blobs / "b")


def to_folder(blobs: Path, link: Path) -> None:
    (blobs / "b").unlink()
    (blobs / "b").mkdir()
    link.symlink_to(blobs / "b")


def to_parent(blobs: Path, link: Path) -> None:
    link.symlink_to(blobs / "..")


def from_plain_model(blobs: Path, link: Path) -> None:
    (link.parent / "m.onnx").unlink()
    (blobs / "a").rename(link.parent / "m.onnx")
    link.symlink_to(blobs / "b")


@pytest.mark.parametrize(
    "spoil", [to_elsewhere, to_below, to_link, to_second_name, to_folder, to_parent, from_plain_model]
)
def test_links_to_data_lead_to_plain_files_beside_the_real_model_alone(
    spoil: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    path = cached(tmp_path)
    link = path.with_name("m.onnx_data")
    link.unlink()
    spoil(tmp_path / "blobs", link)
    with pytest.raises(ModelError) as caught:
        open_source(path)
    assert caught.value.code == "E_EXTERNAL"


def test_a_link_and_a_second_name_are_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(bytes(16))
    path = save(scaled(external(location="w.bin")), tmp_path / "m.onnx")
    (tmp_path / "w.bin").symlink_to("real")
    with pytest.raises(ModelError, match="through a link") as caught:
        open_source(path)
    assert "`cp -L`" in caught.value.hint
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").hardlink_to(tmp_path / "real")
    with pytest.raises(ModelError, match="has another name") as caught:
        open_source(path)
    assert "`cp FILE COPY && mv COPY FILE`" in caught.value.hint


def test_tensors_are_found_wherever_they_hide() -> None:
    def named(name: str) -> TensorProto:
        return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], raw_data=bytes(4))

    sparse = onnx.SparseTensorProto(values=named("v"), indices=named("i"), dims=[1])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=named("in"))], "g", [], [], [named("gi")])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=named("t")),
        helper.make_node("Strange", [], ["b"], many=[named("t1"), named("t2")]),
        helper.make_node("If", ["q"], ["d"], then_branch=inner),
    ]
    holder = helper.make_node("Constant", [], ["e"])
    holder.attribute.append(
        onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse])
    )
    model = model_of([*nodes, holder], [], [])
    model.graph.sparse_initializer.append(sparse)
    body = [helper.make_node("Constant", [], ["f"], value=named("fn"))]
    model.functions.append(helper.make_function("d", "F", [], ["f"], body, []))
    model.training_info.add().algorithm.initializer.append(named("tr"))
    liar = model.graph.node[0].attribute.add(name="liar", type=onnx.AttributeProto.INT)
    liar.t.CopyFrom(named("lie"))
    found = [tensor.name for tensor in tensors(model)]
    assert sorted(found) == sorted(["v", "i", "t", "t1", "t2", "gi", "in", "v", "i", "fn", "tr", "lie"])
