"""Conversion with TensorFlow: real Keras files and SavedModel folders, answers compared with Keras' own.

The weights are random but calibrated (He kernels, batch-norm statistics from a batch): with Keras' own initial weights
the outputs of deep networks hardly depend on their input, and equal outputs would prove nothing.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from click.testing import CliRunner

from convert.keras_models import application, calibrate, draw, lstm, multi_input_dict, small_convnet
from hyps.errors import DifferenceError, HypsError, ModelError, TensorError, UsageError
from hyps_compiler.arrays import write_npz
from hyps_compiler.cli import main
from hyps_compiler.convert import Conversion, convert
from hyps_compiler.convert.request import Request

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("tf2onnx") is None,
        reason='needs `pip install "hyps[tf]"`',
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # TensorFlow's own
]

Array = np.ndarray[Any, Any]
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


# --- models ---


def sequential() -> Any:
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((20,), name="features"),
            layers.Dense(64, activation="gelu"),
            layers.LayerNormalization(),
            layers.Dense(5),
        ]
    )


def multi_input_list() -> Any:
    from keras import Input, Model, layers

    second, first = Input((4,), name="b_first"), Input((4,), name="a_second")
    return Model([second, first], layers.Subtract(name="difference")([layers.Dense(3)(second), layers.Dense(3)(first)]))


def attention() -> Any:
    from keras import Input, Model, layers

    tokens = Input((10, 32), name="tokens")
    x = layers.LayerNormalization()(tokens)
    x = layers.Add()([tokens, layers.MultiHeadAttention(4, 8)(x, x)])
    return Model(tokens, layers.Dense(3, name="label")(layers.GlobalAveragePooling1D()(x)))


# --- comparison ---


def feeds_of(model: Any, names: list[str], batch: int, seed: int) -> tuple[Any, dict[str, Array]]:
    """Return random inputs as Keras and as onnxruntime take them."""
    from keras import Sequential, tree

    rng = np.random.default_rng(seed)
    structure = model.inputs[0] if isinstance(model, Sequential) else model.input
    given = tree.map_structure(lambda tensor: draw(tensor, batch, rng), structure)
    return given, dict(zip(names, tree.flatten(given), strict=True))


def answers_of(model: Any, given: Any, names: list[str]) -> list[Array]:
    from keras import tree

    result = model(given, training=False)
    values = [result[name] for name in names] if isinstance(result, dict) else tree.flatten(result)
    return [np.asarray(value) for value in values]


def check_same_answers(model: Any, path: Path, tolerance: float = 1e-4) -> None:
    """Check that outputs agree within `tolerance` of the largest, for two batch sizes, and depend on the input."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    for batch in (1, 3):
        given, feeds = feeds_of(model, inputs, batch, seed=1)
        expected = answers_of(model, given, outputs)
        elsewhere = answers_of(model, feeds_of(model, inputs, batch, seed=2)[0], outputs)
        for wanted, found, other in zip(expected, session.run(outputs, feeds), elsewhere, strict=True):
            scale = np.abs(wanted).max()
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= tolerance * scale
            assert np.abs(other - wanted).max() >= 0.02 * scale


def check_verified(conversion: Conversion) -> None:
    """Check that a conversion was compared with its source on inputs that its outputs depend on."""
    assert conversion.unverified == ""
    assert conversion.difference is not None
    assert conversion.difference <= 1e-4
    assert [found.varies for found in conversion.agreement] == [True] * len(conversion.outputs)


def names_of(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


# --- Keras files ---

SMALL_MODELS = {
    "small_convnet": (small_convnet, ["image"], ["box", "classes"]),
    "sequential": (sequential, ["features"], None),
    "multi_input_dict": (multi_input_dict, ["left", "right"], ["embedding", "score"]),
    "multi_input_list": (multi_input_list, ["b_first", "a_second"], ["difference"]),
    "lstm": (lstm, ["tokens"], ["label"]),
    "attention": (attention, ["tokens"], ["label"]),
}


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_models_answer_as_in_keras(tmp_path: Path, name: str) -> None:
    build, inputs, outputs = SMALL_MODELS[name]
    model = calibrate(build())
    model.save(tmp_path / "m.keras")
    conversion = convert(tmp_path / "m.keras", tmp_path / "m.onnx")
    check_verified(conversion)
    assert (conversion.kind, conversion.opset) == ("keras", 17)
    assert all(value.shape is not None and value.shape[0] in ("batch", None) for value in conversion.outputs)
    assert names_of(tmp_path / "m.onnx")[0] == inputs
    assert outputs is None or names_of(tmp_path / "m.onnx")[1] == outputs
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 17
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.keras", "m.onnx"]
    check_same_answers(model, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetV2B0", "MobileNetV2"])
def test_published_models_answer_as_in_keras(tmp_path: Path, name: str) -> None:
    model = calibrate(application(name))
    model.save(tmp_path / "m.keras")
    convert(tmp_path / "m.keras", tmp_path / "m.onnx")
    assert len(names_of(tmp_path / "m.onnx")[0]) == 1  # EfficientNetB0's captured constants are no inputs
    assert names_of(tmp_path / "m.onnx")[1] == ["predictions"]
    check_same_answers(model, tmp_path / "m.onnx")


@pytest.mark.slow
def test_vgg16_converts_and_is_compared_within_3_gib(tmp_path: Path) -> None:
    model = calibrate(application("VGG16"))
    model.save(tmp_path / "m.keras")
    conversion = convert(tmp_path / "m.keras", tmp_path / "m.onnx")
    assert conversion.peak_nbytes < 3 * 2**30
    assert conversion.nodes <= 46
    check_verified(conversion)
    check_same_answers(model, tmp_path / "m.onnx")


def test_inputs_that_are_outputs_or_unused_stay(tmp_path: Path) -> None:
    from keras import Input, Model, layers

    x, unused = Input((4,), name="x"), Input((5,), name="unused")
    model = calibrate(Model([x, unused], [x, layers.Dense(2, name="dense")(x)]))
    model.save(tmp_path / "m.keras")
    convert(tmp_path / "m.keras", tmp_path / "m.onnx")
    assert names_of(tmp_path / "m.onnx") == (["x", "unused"], ["x_1", "dense"])
    check_same_answers(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_weights_set_aside_come_back(tmp_path: Path, name: str) -> None:
    from hyps_compiler.convert import child

    model = calibrate(SMALL_MODELS[name][0]())
    model.save(tmp_path / "m.keras")
    child.run(Request(source=str(tmp_path / "m.keras"), folder=str(tmp_path), constant_nbytes=0))
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    check_same_answers(model, tmp_path / "model.onnx")


def test_shapes_can_be_fixed(tmp_path: Path) -> None:
    calibrate(lstm()).save(tmp_path / "m.keras")
    convert(tmp_path / "m.keras", tmp_path / "m.onnx", inputs={"tokens": (1, 11)}, opset=15)
    model = onnx.load(tmp_path / "m.onnx")
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 11]
    assert model.opset_import[0].version == 15


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        (
            {"image": (1, 32, 32)},
            "the input `image` cannot have the shape 1 x 32 x 32: the model takes ? x 32 x 32 x 3",
        ),
        (
            {"image": (None, 32, 31, 3)},
            "the input `image` cannot have the shape ? x 32 x 31 x 3: the model takes ? x 32 x 32 x 3",
        ),
        ({"picture": (1,)}, "the model has no input `picture`; its inputs are `image`"),
    ],
)
def test_impossible_shapes_are_refused(tmp_path: Path, inputs: dict[str, tuple[int | None, ...]], wanted: str) -> None:
    small_convnet().save(tmp_path / "m.keras")
    with pytest.raises(UsageError) as caught:
        convert(tmp_path / "m.keras", tmp_path / "m.onnx", inputs=inputs)
    assert caught.value.message == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


# --- Keras' HDF5 files ---


@pytest.mark.parametrize("name", ["small_convnet", "sequential", "multi_input_dict", "lstm"])
def test_hdf5_files_answer_as_in_keras(tmp_path: Path, name: str) -> None:
    build, inputs, _ = SMALL_MODELS[name]
    model = calibrate(build())
    model.save(tmp_path / "m.h5")
    conversion = convert(tmp_path / "m.h5", tmp_path / "m.onnx")
    check_verified(conversion)
    assert conversion.kind == "keras-h5"
    assert [value.name for value in conversion.inputs] == inputs
    check_same_answers(model, tmp_path / "m.onnx")


def test_code_in_an_hdf5_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.chdir(tmp_path)
    touch = keras.layers.Lambda(lambda x: [x, __import__("pathlib").Path("touched").touch()][0])
    keras.Sequential([keras.Input((4,)), touch]).save(tmp_path / "m.h5")
    touched = tmp_path / "touched"
    touched.unlink()  # building the model ran it
    assert "holds a Lambda layer" in refusal_of(tmp_path / "m.h5")
    assert not touched.exists()


def test_an_hdf5_file_with_weights_alone_is_refused(tmp_path: Path) -> None:
    sequential().save_weights(tmp_path / "m.weights.h5")
    assert refusal_of(tmp_path / "m.weights.h5") == "`m.weights.h5` holds weights and no model"


def test_an_hdf5_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["data"] = np.zeros(3)
    assert refusal_of(tmp_path / "m.h5") == "`m.h5` holds no Keras model"


def test_a_hdf5_file_cut_short_is_refused(tmp_path: Path) -> None:
    sequential().save(tmp_path / "m.h5")
    content = (tmp_path / "m.h5").read_bytes()
    (tmp_path / "m.h5").write_bytes(content[: len(content) // 2])
    assert "`m.h5` is cut short or damaged" in refusal_of(tmp_path / "m.h5")


# --- frozen graphs ---


@pytest.fixture
def frozen_graph(tmp_path: Path) -> Path:
    """Write a graph as TensorFlow 1 froze them: two ends, an input that one of them does not need."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 8), name="image")
        bias = tf.compat.v1.placeholder(tf.float32, (None, 5), name="bias")
        scale = tf.compat.v1.placeholder_with_default(np.float32(2.0), (), name="scale")
        hidden = tf.nn.relu(tf.matmul(image, rng.standard_normal((8, 5)).astype(np.float32)) * scale, name="net/hidden")
        tf.add(hidden, bias, name="net/logits")
        tf.reduce_sum(hidden, axis=1, name="net/total")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return tmp_path / "graph.pb"


def test_a_frozen_graph_answers_as_in_tensorflow(tmp_path: Path, frozen_graph: Path) -> None:
    conversion = convert(frozen_graph, tmp_path / "m.onnx")
    check_verified(conversion)
    assert names_of(tmp_path / "m.onnx") == (["image", "bias"], ["net/logits", "net/total"])


@pytest.mark.parametrize("name", ["net/total", "net/total:0", "net/hidden"])
def test_outputs_of_a_graph_can_be_named(tmp_path: Path, frozen_graph: Path, name: str) -> None:
    check_verified(convert(frozen_graph, tmp_path / "m.onnx", outputs=[name]))
    assert names_of(tmp_path / "m.onnx") == (["image"], [name.removesuffix(":0")])


def test_an_output_that_is_not_there_is_named(tmp_path: Path, frozen_graph: Path) -> None:
    with pytest.raises(UsageError, match="the graph has no tensor `logits`") as caught:
        convert(frozen_graph, tmp_path / "m.onnx", outputs=["logits"])
    assert "`net/logits`" in caught.value.hint


def test_a_graph_cut_short_is_refused(frozen_graph: Path) -> None:
    frozen_graph.write_bytes(frozen_graph.read_bytes()[:-9])
    assert "is cut short, or no frozen TensorFlow graph" in refusal_of(frozen_graph)


def test_a_graph_with_variables_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.compat.v1.get_variable("w", (3,), use_resource=False)
    (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    assert refusal_of(tmp_path / "g.pb") == "the graph `g.pb` is not frozen: it has the variable `w`"


@pytest.mark.parametrize("reads", [True, False], ids=["ReadFile", "WriteFile"])
def test_a_graph_that_does_more_than_compute_is_not_run(tmp_path: Path, reads: bool) -> None:
    import tensorflow as tf

    mark = tmp_path / "mark"
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 4), name="image")
        if reads:
            tf.add(image, tf.cast(tf.strings.length(tf.io.read_file(str(mark))), tf.float32), name="logits")
        else:
            with tf.control_dependencies([tf.io.write_file(str(mark), "written")]):
                tf.add(image, 1.0, name="logits")
    (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ModelError, match=f"`{'ReadFile' if reads else 'WriteFile'}`") as caught:
        convert(tmp_path / "g.pb", tmp_path / "m.onnx")
    assert caught.value.code == "E_UNTRUSTED"
    assert not mark.exists()


def test_a_graph_may_check_and_call(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 4), name="image")
        checked = tf.debugging.Assert(tf.size(image) > 0, [image])
        with tf.control_dependencies([checked]):
            tf.identity(tf.function(lambda value: value * 2.0)(image), name="logits")
    (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    check_verified(convert(tmp_path / "g.pb", tmp_path / "m.onnx"))


# --- the comparison with the source ---


def test_a_given_request_is_compared_on(tmp_path: Path) -> None:
    calibrate(sequential()).save(tmp_path / "m.keras")
    write_npz(tmp_path / "x.npz", {"features": np.ones((5, 20), np.float32)})
    conversion = convert(tmp_path / "m.keras", tmp_path / "m.onnx", feeds=tmp_path / "x.npz")
    assert conversion.samples == 1
    assert conversion.constant_outputs == ("dense_1",) or conversion.agreement[0].varies is False  # five equal rows


def test_a_request_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    sequential().save(tmp_path / "m.keras")
    write_npz(tmp_path / "x.npz", {"features": np.ones((5, 21), np.float32)})
    with pytest.raises(TensorError, match="is float32 of 5 x 21, and the model takes float32 of \\? x 20"):
        convert(tmp_path / "m.keras", tmp_path / "m.onnx", feeds=tmp_path / "x.npz")


def test_a_comparison_can_be_left_out(tmp_path: Path) -> None:
    sequential().save(tmp_path / "m.keras")
    conversion = convert(tmp_path / "m.keras", tmp_path / "m.onnx", samples=0)
    assert (conversion.difference, conversion.unverified) == (None, "it was not asked for")


WRONG = """
import keras

@keras.saving.register_keras_serializable(package="mine")
class Shifty(keras.layers.Layer):
    def call(self, x):
        import tensorflow as tf
        return x + (1.0 if tf.inside_function() else 0.0)
"""


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shifty.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    script = (
        "import keras, shifty\nkeras.Sequential([keras.Input((4,)), shifty.Shifty(name='shifted')]).save('m.keras')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, capture_output=True, cwd=tmp_path)
    with pytest.raises(DifferenceError, match="does not compute what its source computes in keras: output `shifted`"):
        convert(tmp_path / "m.keras", tmp_path / "m.onnx", modules=["shifty"])
    assert not (tmp_path / "m.onnx").exists()
    convert(tmp_path / "m.keras", tmp_path / "m.onnx", modules=["shifty"], samples=0)
    assert (tmp_path / "m.onnx").exists()


# --- SavedModel folders ---


@pytest.mark.parametrize("name", ["small_convnet", "multi_input_dict", "lstm"])
def test_exported_models_answer_as_in_keras(tmp_path: Path, name: str) -> None:
    build, inputs, _ = SMALL_MODELS[name]
    model = calibrate(build())
    model.export(tmp_path / "exported", verbose=False)
    convert(tmp_path / "exported", tmp_path / "m.onnx")
    assert names_of(tmp_path / "m.onnx")[0] == inputs
    check_same_answers(model, tmp_path / "m.onnx")


def make_module() -> Any:
    """Return a module of plain TensorFlow whose arguments are not in alphabetical order."""
    import tensorflow as tf

    wide, narrow = tf.TensorSpec((None, 4), tf.float32), tf.TensorSpec((None, 3), tf.float32)
    module = tf.Module()
    module.w = tf.Variable(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), name="w")
    module.affine = tf.function(
        lambda zebra, apple: {"y": zebra @ module.w - apple, "b": apple * 2}, input_signature=[wide, narrow]
    )
    module.linear = tf.function(lambda x: x @ module.w, input_signature=[wide])
    return module


def test_saved_module_answers_as_in_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    module = make_module()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.affine)
    convert(tmp_path / "saved", tmp_path / "m.onnx")
    rng = np.random.default_rng(3)
    feeds = {"zebra": rng.random((2, 4), np.float32), "apple": rng.random((2, 3), np.float32)}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for name, wanted in module.affine(**feeds).items():
        np.testing.assert_allclose(session.run([name], feeds)[0], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("signatures", "wanted"),
    [
        ([], "the SavedModel `saved` has no signature, so its inputs and outputs are not known"),
        (["one", "two"], "the SavedModel `saved` has 2 signatures (`one`, `two`) and none is `serving_default`"),
    ],
)
def test_saved_models_without_one_signature_are_refused(tmp_path: Path, signatures: list[str], wanted: str) -> None:
    import tensorflow as tf

    module = make_module()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=dict.fromkeys(signatures, module.linear))
    with pytest.raises(ModelError) as caught:
        convert(tmp_path / "saved", tmp_path / "m.onnx")
    assert caught.value.message == wanted


def plain_module() -> Any:
    """Return a module whose functions train it as well, which is harmless."""
    import tensorflow as tf

    class Plain(tf.Module):  # type: ignore[misc]  # tensorflow has no types
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.random.default_rng(0).standard_normal((1, 1, 4, 3)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((None, 2, 2, 4))])  # type: ignore[untyped-decorator]
        def serve(self, x: Any) -> Any:
            return tf.nn.conv2d(x, self.kernel, 1, "SAME")

        @tf.function(input_signature=[tf.TensorSpec((None, 2, 2, 4))])  # type: ignore[untyped-decorator]
        def train(self, x: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.serve(x) * tf.random.truncated_normal((3,)))
            self.kernel.assign_sub(tape.gradient(loss, self.kernel))
            return loss

    return Plain()


def writing_module(where: str, mark: str) -> Any:
    """Return a module that writes a file: in its signature, in a function called by it, or as it is loaded."""
    import tensorflow as tf
    from tensorflow.python.trackable.resource import TrackableResource

    class Writing(TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64)

        def _initialize(self) -> None:
            tf.io.write_file(mark, "written")

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if where == "initializer":
                self.table = Writing()

        @tf.function  # type: ignore[untyped-decorator]
        def called(self, x: Any) -> Any:
            tf.io.write_file(mark, "written")
            return x + 1.0

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])  # type: ignore[untyped-decorator]
        def serve(self, x: Any) -> Any:
            if where == "initializer":
                return x + 1.0
            if where == "called":
                return tf.cond(tf.size(x) > 0, lambda: self.called(x), lambda: x)
            if where == "SaveV2":
                tf.raw_ops.SaveV2(prefix=mark, tensor_names=["x"], shape_and_slices=[""], tensors=[x])
            else:
                tf.io.write_file(mark, "written")
            return x + 1.0

    return Module()


@pytest.mark.parametrize("where", ["signature", "called", "SaveV2", "initializer"])
def test_a_saved_model_that_writes_files_is_not_run(tmp_path: Path, where: str) -> None:
    import tensorflow as tf

    mark = tmp_path / "mark"
    module = writing_module(where, str(mark))
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    mark.unlink(missing_ok=True)  # saving ran it
    with pytest.raises(ModelError, match=f"`{'SaveV2' if where == 'SaveV2' else 'WriteFile'}`") as caught:
        convert(tmp_path / "saved", tmp_path / "m.onnx")
    assert caught.value.code == "E_UNTRUSTED"
    assert "--trust" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    if where == "signature":
        convert(tmp_path / "saved", tmp_path / "m.onnx", trust=True)
        assert mark.exists()


def save_session(folder: Path, writes: str = "") -> None:
    """Save a model as TensorFlow 1 did, with both of its kinds of variables, perhaps with an operation that writes."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        y = x @ v1.get_variable("old", (4, 3), use_resource=False) @ v1.get_variable("new", (3, 3), use_resource=True)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        main_op = tf.io.write_file(writes, "written") if writes else None
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=main_op)
        builder.save()


@pytest.mark.filterwarnings("ignore")  # TensorFlow's, which calls its own function deprecated
def test_an_operation_that_writes_as_a_model_is_loaded_is_not_run(tmp_path: Path) -> None:
    save_session(tmp_path / "saved", str(tmp_path / "mark"))
    with pytest.raises(ModelError, match="`WriteFile`") as caught:
        convert(tmp_path / "saved", tmp_path / "m.onnx")
    assert caught.value.code == "E_UNTRUSTED"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    convert(tmp_path / "saved", tmp_path / "m.onnx", trust=True)
    assert (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore")
def test_ordinary_saved_models_need_no_trust(tmp_path: Path) -> None:
    import tensorflow as tf

    save_session(tmp_path / "session")
    check_verified(convert(tmp_path / "session", tmp_path / "session.onnx"))
    module = plain_module()
    tf.saved_model.save(module, str(tmp_path / "module"), signatures=module.serve)
    check_verified(convert(tmp_path / "module", tmp_path / "module.onnx"))


def test_damaged_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="the SavedModel `saved` is cut short or damaged"):
        convert(tmp_path / "saved", tmp_path / "m.onnx")


# --- the model's own classes ---

OWN_CLASSES = """
import keras

@keras.saving.register_keras_serializable(package="mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return x * 2

@keras.saving.register_keras_serializable(package="mine")
class Net(keras.Model):
    def __init__(self, **rest):
        super().__init__(**rest)
        self.hidden, self.twice = keras.layers.Dense(6, activation="relu"), Twice()

    def call(self, x):
        return self.twice(self.hidden(x))
"""


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a subclassed model, saved and exported, whose class is in a module of the working directory."""
    (tmp_path / "own_classes.py").write_text(OWN_CLASSES)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("own_classes", tmp_path / "own_classes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Net()
    model(np.ones((2, 4), np.float32))
    model.save(tmp_path / "m.keras")
    model.export(tmp_path / "exported", verbose=False)
    return model


def check_own_model(model: Any, path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, model(x), rtol=1e-5, atol=1e-6)


def test_unknown_classes_are_named(tmp_path: Path, own_model: Any) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError) as caught:
        convert(tmp_path / "m.keras", tmp_path / "m.onnx")
    assert caught.value.message == "`m.keras` needs the class or function `mine>Net`, which Keras does not know"
    assert "model.export(FOLDER)" in caught.value.hint
    assert "--module" in caught.value.hint
    assert sorted(tmp_path.iterdir()) == before


def test_subclassed_models_convert_with_their_module(tmp_path: Path, own_model: Any) -> None:
    convert(tmp_path / "m.keras", tmp_path / "m.onnx", modules=["own_classes"])
    check_own_model(own_model, tmp_path / "m.onnx")


def test_exported_subclassed_models_convert_without_it(tmp_path: Path, own_model: Any) -> None:
    convert(tmp_path / "exported", tmp_path / "m.onnx")
    check_own_model(own_model, tmp_path / "m.onnx")


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    sequential().save(tmp_path / "m.keras")
    with pytest.raises(UsageError, match="the module `no_such_module` cannot be imported"):
        convert(tmp_path / "m.keras", tmp_path / "m.onnx", modules=["no_such_module"])


# --- refusals ---


def refusal_of(source: Path) -> str:
    with pytest.raises(ModelError) as caught:
        convert(source, source.parent / "out.onnx")
    assert not (source.parent / "out.onnx").exists()
    assert "\n" not in caught.value.message
    return caught.value.message


def test_code_in_a_model_is_not_run(tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)]).save(tmp_path / "m.keras")
    assert "holds a Lambda layer" in refusal_of(tmp_path / "m.keras")


def test_operations_that_onnx_lacks_are_named(tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.Input((4,)), keras.layers.Discretization(bin_boundaries=[0.0])]).save(tmp_path / "m.keras")
    assert "uses the TensorFlow operation `Bucketize`" in refusal_of(tmp_path / "m.keras")


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write a copy of a Keras file with its members changed."""
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(target, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, change(name, good.read(name)))


OWN_FUNCTION = (
    b'"activation": '
    b'{"module": "builtins", "class_name": "function", "config": "mine>gelu", "registered_name": "function"}'
)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (b'"class_name": "Dense"', b'"class_name": "Dance"', "Could not deserialize 'keras.layers.Dance'"),
        (b'"use_bias": true', b'"use_boas": true', "Unrecognized keyword arguments passed to Dense"),
        (b'"activation": "gelu"', OWN_FUNCTION, "`m.keras` needs the class or function `mine>gelu`"),
    ],
)
def test_configurations_from_elsewhere_are_refused(tmp_path: Path, old: bytes, new: bytes, wanted: str) -> None:
    sequential().save(tmp_path / "good.keras")
    rewrite(tmp_path / "good.keras", tmp_path / "m.keras", lambda name, content: content.replace(old, new))
    assert wanted in refusal_of(tmp_path / "m.keras")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    sequential().save(tmp_path / "good.keras")
    rewrite(
        tmp_path / "good.keras",
        tmp_path / "m.keras",
        lambda name, content: content[:3000] if name == "model.weights.h5" else content,
    )
    assert "cannot load `m.keras`" in refusal_of(tmp_path / "m.keras")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    sequential().save(tmp_path / "good.keras")
    attention().save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as other:
        weights = other.read("model.weights.h5")
    rewrite(
        tmp_path / "good.keras",
        tmp_path / "m.keras",
        lambda name, content: weights if name == "model.weights.h5" else content,
    )
    assert "cannot load `m.keras`: The shape of the target variable" in refusal_of(tmp_path / "m.keras")


def test_unbuilt_models_are_refused(tmp_path: Path) -> None:
    import keras

    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([keras.layers.Dense(3)]).save(tmp_path / "m.keras")
    assert refusal_of(tmp_path / "m.keras") == "`m.keras` does not say what inputs it takes"


def test_look_up_tables_are_refused(tmp_path: Path) -> None:
    import keras

    words = keras.Input((), dtype="string")
    keras.Model(words, keras.layers.StringLookup(vocabulary=["a", "b"])(words)).save(tmp_path / "m.keras")
    assert "looks its input up in a table" in refusal_of(tmp_path / "m.keras")


def test_types_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import keras

    dense = keras.layers.Dense(3, dtype="bfloat16")
    keras.Sequential([keras.Input((4,)), dense]).save(tmp_path / "m.keras")
    assert "makes an invalid ONNX model of `m.keras`" in refusal_of(tmp_path / "m.keras")


# --- the commands ---


def test_convert_tells_what_came_of_it(tmp_path: Path) -> None:
    calibrate(sequential()).save(tmp_path / "m.keras")
    command = ["convert", str(tmp_path / "m.keras"), "-o", str(tmp_path / "m.onnx"), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["kind"], told["opset"], told["samples"]) == ("keras", 17, 2)
    assert told["difference"] <= 1e-4
    assert told["nbytes"] == (tmp_path / "m.onnx").stat().st_size
    assert told["peak_nbytes"] > 10**8
    assert told["inputs"] == [{"name": "features", "dtype": "float32", "shape": ["batch", 20]}]


def test_compile_takes_a_keras_file_and_says_how_far_off_it_is(tmp_path: Path) -> None:
    calibrate(lstm()).save(tmp_path / "m.h5")
    result = CliRunner().invoke(main, ["compile", str(tmp_path / "m.h5"), "-o", str(tmp_path / "plan")])
    assert result.exit_code == 0
    assert f"converted: keras {version('keras')} by tf2onnx {version('tf2onnx')}, largest difference" in result.stdout


# --- the child's end ---


def test_a_killed_child_is_explained(tmp_path: Path) -> None:
    sequential().save(tmp_path / "m.keras")

    def kill_child(line: str) -> None:
        for child in psutil.Process().children():
            child.kill()

    with pytest.raises(HypsError, match=r"was killed \(signal 9\), most likely because memory ran out"):
        convert(tmp_path / "m.keras", tmp_path / "m.onnx", on_line=kill_child)
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


CALLER = """
import sys
from pathlib import Path
from hyps_compiler.convert import convert
convert(Path("m.keras"), Path("m.onnx"), on_line=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_caller(tmp_path: Path, sent: signal.Signals) -> None:
    small_convnet().save(tmp_path / "m.keras")
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "loading m.keras\n"
        children = psutil.Process(caller.pid).children()
        caller.send_signal(sent)
        caller.communicate(timeout=20)
        gone, alive = psutil.wait_procs(children, timeout=20)
    finally:
        caller.kill()
    assert (len(gone), alive) == (1, [])
    wait_until(lambda: [path.name for path in tmp_path.iterdir()] == ["m.keras"])


def wait_until(holds: Callable[[], bool], limit_s: float = 20) -> None:
    """Wait until a condition holds; fail after `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.05)
