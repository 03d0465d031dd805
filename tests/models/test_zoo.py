"""Every reference model is what was published, and computes something."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

import hyps_models
from hyps_models.efficientnet import EFFICIENTNETS, sketch_efficientnet
from hyps_models.meshnet import build_meshnet, sample_volumes
from hyps_models.writing import write_model

PARAMETERS = {
    "alexnet": 61_100_840,
    "densenet169": 14_149_480,
    "digits": 16 * 9 + 16 + 32 * 16 * 9 + 32 + 256 * 128 + 256 + 10 * 256 + 10,
    "efficientnet-b0": 5_288_548,
    "efficientnet-b1": 7_794_184,
    "efficientnet-b2": 9_109_994,
    "efficientnet-b3": 12_233_232,
    "efficientnet-b4": 19_341_616,
    "efficientnet-b5": 30_389_784,
    "efficientnet-b6": 43_040_704,
    "efficientnet-b7": 66_347_960,
    "efficientnetv2-b0": 7_139_704,
    "efficientnetv2-b1": 8_141_052,
    "efficientnetv2-b2": 10_096_086,
    "efficientnetv2-b3": 14_358_406,
    "efficientnetv2-l": 118_515_272,
    "efficientnetv2-m": 54_139_356,
    "efficientnetv2-s": 21_458_488,
    "encoder": 109_482_240,
    "encoder-small": 4_385_920,
    "googlenet": 6_624_904,
    "lstm": 4 * 128 * (40 + 128 + 2) + 4 * 128 * (128 + 128 + 2) + 128 * 128 + 128 + 12 * 128 + 12,
    "meshnet": 5 * 27 + 6 * 5 * 5 * 27 + 7 * 2 * 5 + 3 * 5 + 3,
    "mobilenetv2": 3_504_872,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
}
"""As published (torchvision, timm, BERT), ours (digits, lstm, meshnet) by hand; batch-norm statistics are buffers."""

SMALL_SIDE = 32
"""Of meshnet's volumes here: three of 256 voxels a side would take tens of gigabytes, and the weights are the same."""

OUTPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "digits": {"logits": (10,)},
    "encoder": {"last_hidden_state": (32, 768), "pooler_output": (768,)},
    "encoder-small": {"last_hidden_state": (32, 128), "pooler_output": (128,)},
    "lstm": {"logits": (12,)},
    "meshnet": {"labels": (SMALL_SIDE,) * 3},
}
"""Shapes without the batch; all others have 1000 logits."""

DIGESTS = {
    "alexnet": "bfcc62fd292c318b",
    "densenet169": "1d1279bde4d304d8",
    "digits": "10168f31acb9f6fb",
    "efficientnet-b0": "53092b740870054a",
    "efficientnet-b1": "6747477add66d7c5",
    "efficientnet-b2": "33fbef6d236a6691",
    "efficientnet-b3": "119e487dafe77506",
    "efficientnet-b4": "fd10ee63ef1495ff",
    "efficientnet-b5": "03060759f4c296e8",
    "efficientnet-b6": "e52a7e9d8d96cc45",
    "efficientnet-b7": "a33766a5ac12a129",
    "efficientnetv2-b0": "b133ad1f6971eb69",
    "efficientnetv2-b1": "d1ad7c87dd65f081",
    "efficientnetv2-b2": "9733f16a3a5b4f44",
    "efficientnetv2-b3": "ce0557a5c2c73b92",
    "efficientnetv2-l": "197420020f05a9cc",
    "efficientnetv2-m": "642f4a75b1ee8a9a",
    "efficientnetv2-s": "4e795ffc56409773",
    "encoder": "333e0bfa24abc52e",
    "encoder-small": "6ca53ab30be09d4a",
    "googlenet": "ad161b035025f5bd",
    "lstm": "9ae8d9c17ea83e13",
    "meshnet": "3abdbbd29d345c9a",
    "mobilenetv2": "564007470df8d463",
    "resnet50": "0ca4ebe452b2d565",
    "vgg16": "172c87e7427cd371",
}
"""Of all weights at seed 0, in their order: weights may only change on purpose."""

QUICK = ("digits", "efficientnetv2-b0", "encoder-small", "googlenet", "lstm", "meshnet", "mobilenetv2")
PROBED = ("Conv", "BatchNormalization", "Relu", "Clip", "Gemm", "LayerNormalization", "LSTM")
BATCH = 3


@dataclass(frozen=True, slots=True)
class Built:
    name: str
    model: ModelProto
    results: dict[str, NDArray[np.float32]]
    """Of a batch of three: the model's outputs."""
    mean_squares: dict[str, float]
    """Of the outputs and of the values that layers compute."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(PARAMETERS)],
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Each model once for all tests: pytest runs the tests model by model."""
    name = str(request.param)
    model = hyps_models.build(name)
    file = tmp_path_factory.mktemp("zoo") / "model.onnx"
    if name == "meshnet":
        model = build_meshnet(0, SMALL_SIDE)
        samples = sample_volumes(np.random.default_rng(0), BATCH, SMALL_SIDE)
    else:
        samples = hyps_models.sample_inputs(name, batch=BATCH)
    yield Built(name, model, *_results(model, samples, file))
    file.unlink()


def test_table_and_tests_know_the_same_models() -> None:
    assert hyps_models.names() == sorted(PARAMETERS)


def test_parameters_are_the_published_ones(built: Built) -> None:
    counted = sum(prod(tensor.dims) for tensor in _parameters(built.model))

    assert counted == PARAMETERS[built.name] == hyps_models.MODELS[built.name].parameters


@pytest.mark.parametrize("name", sorted(EFFICIENTNETS))
def test_sketch_has_the_published_parameters_too(name: str) -> None:
    counted = sum(prod(tensor.dims) for tensor in _parameters(sketch_efficientnet(name)))

    assert counted == PARAMETERS[name]


def test_weights_are_the_same_everywhere(built: Built) -> None:
    assert _digest(built.model) == DIGESTS[built.name]


def test_model_is_valid_and_leaves_the_batch_open(built: Built, tmp_path: Path) -> None:
    with open(tmp_path / "model.onnx", "wb") as file:
        write_model(built.model, file)

    onnx.checker.check_model(tmp_path / "model.onnx")
    assert (built.model.ir_version, built.model.opset_import[0].version) == (8, 17)
    for value in [*built.model.graph.input, *built.model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_nodes_and_values_have_unique_names(built: Built) -> None:
    graph = built.model.graph
    nodes = [node.name for node in graph.node]
    values = [value for node in graph.node for value in node.output]
    weights = [tensor.name for tensor in graph.initializer]

    assert all(nodes)
    assert len(set(nodes)) == len(nodes)
    assert len({*values, *weights}) == len(values) + len(weights)


def test_outputs_have_their_shapes(built: Built) -> None:
    expected = OUTPUTS.get(built.name, {"logits": (1000,)})

    assert {value.name for value in built.model.graph.output} == set(expected)
    for name, shape in expected.items():
        assert built.results[name].shape == (BATCH, *shape)


def test_no_layer_fades_or_overflows(built: Built) -> None:
    for name, mean_square in built.mean_squares.items():
        assert 0.05 < mean_square**0.5 < 20, name  # nor is any value of it NaN or infinite


def test_outputs_depend_on_the_input(built: Built) -> None:
    for output in built.model.graph.output:
        first, second, third = built.results[output.name].reshape(BATCH, -1).astype(np.float32)
        for one, other in ((first, second), (first, third), (second, third)):
            assert np.linalg.norm(one - other) > 0.1 * np.linalg.norm(one)


@pytest.mark.parametrize("name", ["encoder-small", "lstm", "mobilenetv2"])
def test_same_seed_gives_the_same_bytes_and_another_seed_others(name: str, tmp_path: Path) -> None:
    for file, seed in (("first", 7), ("second", 7), ("third", 8)):
        hyps_models.save(name, tmp_path / file, seed)

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").read_bytes() != (tmp_path / "third").read_bytes()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "meshnet" else ()) for name in sorted(PARAMETERS)]
)
def test_samples_follow_the_seed_and_the_batch(name: str) -> None:
    first = hyps_models.sample_inputs(name, seed=3, batch=2)
    again = hyps_models.sample_inputs(name, seed=3, batch=2)
    other = hyps_models.sample_inputs(name, seed=4, batch=2)

    assert all(len(array) == 2 for array in first.values())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not all(np.array_equal(first[key], other[key]) for key in first)


def test_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(hyps_models.UnknownModelError, match=r"`vgg\\x1b61`.*vgg16"):
        hyps_models.build("vgg\x1b61")


def test_impossible_seed_and_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="seed -1 is negative"):
        hyps_models.build("lstm", seed=-1)
    with pytest.raises(ValueError, match="batch 0 is below 1"):
        hyps_models.sample_inputs("lstm", batch=0)


def test_failed_save_leaves_an_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"earlier")

    with pytest.raises(hyps_models.UnknownModelError):
        hyps_models.save("vgg61", tmp_path / "model.onnx")

    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"


def test_a_device_or_folder_is_never_replaced(tmp_path: Path) -> None:
    for target in (Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            hyps_models.save("lstm", target)


def test_all_names_what_is_exported() -> None:
    modules = {"arrays", "convnet", "net", "writing", "zoo"}
    exported = {name for name in vars(hyps_models) if not name.startswith("_")}

    assert set(hyps_models.__all__) <= exported
    assert not {name for name in exported - modules if callable(getattr(hyps_models, name))} - set(hyps_models.__all__)


def _parameters(model: ModelProto) -> Iterator[TensorProto]:
    for tensor in model.graph.initializer:
        is_buffer = tensor.name.endswith((".running_mean", ".running_var"))
        if tensor.data_type == TensorProto.FLOAT and not is_buffer:
            yield tensor


def _digest(model: ModelProto) -> str:
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    return digest.hexdigest()[:16]


def _results(
    model: ModelProto, inputs: dict[str, NDArray[np.generic]], file: Path
) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
    """Return the outputs, and the mean squares; the values themselves would take gigabytes in large networks."""
    names = [value.name for value in model.graph.output]
    floats = {value.name for value in model.graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    probes = {node.output[0] for node in model.graph.node if node.op_type in PROBED} | floats
    counts = (len(model.graph.node), len(names))
    for probe in sorted(probes):
        square, mean = f"{probe}:square", f"{probe}:mean"
        model.graph.node.add(op_type="Mul", input=[probe, probe], output=[square])
        model.graph.node.add(op_type="ReduceMean", input=[square], output=[mean]).attribute.add(
            name="keepdims", type=onnx.AttributeProto.INT, i=0
        )
        model.graph.output.add(name=mean)
    with open(file, "wb") as stream:
        write_model(model, stream)
    del model.graph.node[counts[0] :], model.graph.output[counts[1] :]
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # by default all probes run last and keep every value
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    results = dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))
    return {name: results[name] for name in names}, {probe: float(results[f"{probe}:mean"]) for probe in probes}
