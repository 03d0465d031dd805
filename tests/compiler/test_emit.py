"""What stands in the files of a plan."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cut_fixtures import Array, Cut, cut_model, is_same, plain_session, whole_answer
from hyps_compiler.emit import model_parameters, named_tensors, tensor_infos
from hyps_passes.graph import CutGraph
from model_fixtures import chooser, floats, grow, model_of, save

RNG = np.random.default_rng(0)


def dense(count: int, size: int, *, tied: bool = False) -> ModelProto:
    """Return so many MatMul and Softmax; weights of size x size floats, one for all if tied."""
    nodes, weights, last = [], {}, "x"
    for index in range(count):
        weight = "w0" if tied else f"w{index}"
        weights[weight] = RNG.standard_normal((size, size)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [last, weight], [f"m{index}"], name=f"fc{index}"))
        nodes.append(helper.make_node("Softmax", [f"m{index}"], [f"s{index}"], name=f"soft{index}"))
        last = f"s{index}"
    return model_of(nodes, [floats("x", "N", size)], [floats(last, "N", size)], weights)


def cut(model: ModelProto, folder: Path, **how: Any) -> Cut:
    return cut_model(save(model, folder / "model.onnx"), folder / "cut", **how)


def external(path: Path) -> dict[str, dict[str, str]]:
    """Return where the file's external tensors lie."""
    proto = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }


def test_large_weights_lie_aligned_in_a_file_beside_the_model(tmp_path: Path) -> None:
    made = cut(dense(2, 200), tmp_path)
    for part in (part for part in made.partitions if part.weight_bytes):
        (ref,) = part.weights
        assert ref.path == f"partitions/{part.id}.weights"
        (place,) = external(made.folder / part.file).values()
        assert place["location"] == f"{part.id}.weights"
        assert int(place["offset"]) % 4096 == 0
        assert int(place["length"]) == 160_000
        assert (made.folder / part.file).stat().st_size < 1000


def test_each_large_weight_of_a_file_begins_at_a_page(tmp_path: Path) -> None:
    made = cut(dense(3, 150), tmp_path, borders=lambda graph: [])
    places = external(made.folder / made.partitions[0].file).values()
    offsets = sorted(int(place["offset"]) for place in places)
    assert offsets == [0, 22 * 4096, 44 * 4096]  # 90,000 bytes each
    assert {int(place["length"]) for place in places} == {90_000}


def test_small_partitions_are_one_self_contained_file(tmp_path: Path) -> None:
    made = cut(dense(2, 100), tmp_path)
    assert not any(part.weights for part in made.partitions)
    assert not any(external(made.folder / part.file) for part in made.partitions)
    assert sorted(path.suffix for path in made.folder.rglob("*") if path.is_file()) == [".onnx"] * 4


@pytest.mark.parametrize("count", [2, 3])
def test_a_weight_of_several_partitions_is_written_once(count: int, tmp_path: Path) -> None:
    made = cut(dense(count, 200, tied=True), tmp_path)
    refs = {ref.path for part in made.partitions for ref in part.weights}
    assert refs == {"partitions/shared.weights"}
    assert (made.folder / "partitions/shared.weights").stat().st_size == 160_000
    x = RNG.standard_normal((2, 200)).astype(np.float32)
    (expected,) = whole_answer(tmp_path / "model.onnx", {"x": x}).values()
    assert is_same(expected, made.run({"x": x})[f"s{count - 1}"])


@pytest.mark.parametrize("size", [8, 20, 100, 200])
@pytest.mark.parametrize("is_whole", [True, False])
def test_weights_of_one_size_are_not_mistaken_for_each_other(size: int, is_whole: bool, tmp_path: Path) -> None:
    """They lie in the file, or beside it; alone, or one behind the other."""
    model = dense(3, size)
    made = cut(model, tmp_path, borders=lambda graph: [] if is_whole else graph.legal_borders()[1::2])
    assert len(made.partitions) == (1 if is_whole else 3)
    written = [weight for part in made.partitions for weight in onnx.load(made.folder / part.file).graph.initializer]
    values = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    assert sorted(weight.name for weight in written) == sorted(values)
    assert all(is_same(numpy_helper.to_array(weight), values[weight.name]) for weight in written)


def test_digests_and_lengths_are_of_the_files(tmp_path: Path) -> None:
    made = cut(dense(2, 200), tmp_path)
    for part in made.partitions:
        assert hashlib.sha256((made.folder / part.file).read_bytes()).hexdigest() == part.sha256
        for ref in part.weights:
            data = (made.folder / ref.path).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (ref.sha256, ref.nbytes)


@pytest.mark.parametrize("seed", range(6))
def test_equal_input_gives_equal_bytes(seed: int, tmp_path: Path) -> None:
    model = grow(chooser(seed), steps=12).model
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        folder = cut(model, tmp_path / name).folder
        files.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert files[0] == files[1]


def test_open_dimensions_keep_their_names(tmp_path: Path) -> None:
    made = cut(dense(2, 8), tmp_path)
    for part in made.partitions:
        session = plain_session(made.folder / part.file)
        assert [info.shape for info in (*session.get_inputs(), *session.get_outputs())] == [["N", 8]] * 2
    infos = tensor_infos(made.division, made.partitions)
    assert infos["m0"].shape == ("N", 8)
    assert infos["m0"].nbytes == 8 * 4
    assert set(infos) == {"x", "m0", "s0", "m1", "s1"}


def test_only_what_others_need_is_an_output(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1),
        helper.make_node("Softmax", ["a"], ["s"]),
        helper.make_node("TopK", ["s", "k"], ["values", "indices"]),
        helper.make_node("Softmax", ["values"], ["y"]),
    ]
    model = model_of(nodes, [floats("x", 2, 8)], [floats("y", 2, 3)], {"k": np.array([3])}, opset=13)
    made = cut(model, tmp_path, grouped=False)
    assert [part.outputs for part in made.partitions] == [("a",), ("s",), ("values",), ("y",)]


def test_an_input_used_far_down_does_not_travel(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "z"], ["y"]),
    ]
    made = cut(model_of(nodes, [floats("x", 2, 3), floats("z", 3, 3)], [floats("y", 2, 3)]), tmp_path)
    assert [set(part.inputs) for part in made.partitions] == [{"x"}, {"a"}, {"b", "z"}]


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "uint8", "int64", "bool", "string"])
def test_every_type_of_weight_survives(kind: str, tmp_path: Path) -> None:
    """As one file, and as external data; strings always stand in the file."""
    for count in (3, 80_000):
        value: Array = np.arange(count) % 7
        value = np.array([f"s{n}" for n in value], dtype=object) if kind == "string" else value.astype(kind)
        nodes = [helper.make_node("Gather", ["w", "i"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
        index = helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])
        output = helper.make_tensor_value_info("z", helper.np_dtype_to_tensor_dtype(value.dtype), ["N"])
        (tmp_path / str(count)).mkdir()
        made = cut(model_of(nodes, [index], [output], {"w": value}), tmp_path / str(count), grouped=False)
        feeds = {"i": np.array([0, 2, count - 1])}
        assert made.run(feeds)["z"].tolist() == value[feeds["i"]].tolist()


def test_the_files_hold_no_more_than_they_need(tmp_path: Path) -> None:
    """No trace of the machine: no paths, no documentation of the source."""
    model = dense(1, 8)
    model.doc_string = model.graph.doc_string = "where it came from"
    model.metadata_props.add(key="path", value="/somewhere")
    made = cut(model, tmp_path)
    data = b"".join((made.folder / part.file).read_bytes() for part in made.partitions)
    assert b"where" not in data
    assert str(tmp_path).encode() not in data


def test_a_model_without_nodes_is_one_partition(tmp_path: Path) -> None:
    """Its output is its input, or a weight."""
    model = model_of([], [floats("x", 2)], [floats("w", 3)], {"w": np.arange(3, dtype=np.float32)})
    made = cut(model, tmp_path)
    assert made.run({"x": np.zeros(2, np.float32)})["w"].tolist() == [0, 1, 2]


def test_figures_of_the_whole_model(tmp_path: Path) -> None:
    made = cut(dense(2, 8), tmp_path, borders=lambda graph: [])
    assert model_parameters(made.staged.model) == (128, 512)
    assert [tensor.shape for tensor in named_tensors(made.staged.model.graph.inputs)] == [("N", 8)]
    (part,) = made.partitions
    assert (part.parameters, part.weight_bytes, part.macs) == (128, 512, 128)


def test_custom_operators_are_emitted_with_their_domain(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    made = cut(model_of(nodes, [floats("x", 2, 3)], [floats("y", 2, 3)], contrib=True), tmp_path, grouped=False)
    assert len(made.partitions) == 2
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    assert is_same(whole_answer(tmp_path / "model.onnx", {"x": x})["y"], made.run({"x": x})["y"])


def test_nested_graphs_bring_what_they_capture(tmp_path: Path) -> None:
    """The weight that only a branch uses goes with the branch's partition, and with no other."""
    weight = numpy_helper.from_array(RNG.standard_normal((200, 200)).astype(np.float32), "w")
    then = helper.make_graph([helper.make_node("MatMul", ["a", "w"], ["t"])], "then", [], [floats("t", None, 200)])
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["e"])], "else", [], [floats("e", None, 200)])
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    model = model_of(nodes, [floats("x", "N", 200)], [floats("y", "N", 200)])
    model.graph.initializer.append(weight)
    made = cut(model, tmp_path, grouped=False, borders=CutGraph.legal_borders)
    assert [bool(part.weights) for part in made.partitions] == [False, False, False, True]
    assert set(made.partitions[-1].inputs) == {"a", "c"}
    x = RNG.standard_normal((2, 200)).astype(np.float32)
    assert is_same(whole_answer(tmp_path / "model.onnx", {"x": x})["y"], made.run({"x": x})["y"])
