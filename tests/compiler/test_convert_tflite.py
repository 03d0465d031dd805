"""TensorFlow Lite models: recognised and refused without TensorFlow; with it, real files and its own interpreter."""

import importlib.util
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hyps.errors import DependencyError, DifferenceError, HypsError, ModelError, UsageError
from hyps_compiler.convert import can_convert, convert

HAS_TENSORFLOW = all(importlib.util.find_spec(name) for name in ("tensorflow", "keras", "tf2onnx"))
Array = np.ndarray[Any, Any]

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def with_tensorflow(test: Any) -> Any:
    """Mark what needs TensorFlow."""
    for mark in (
        pytest.mark.tf,
        pytest.mark.skipif(not HAS_TENSORFLOW, reason='needs `pip install "hyps[tf]"`'),
        pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    ):
        test = mark(test)
    return test


def refuse(source: Path, wanted: str) -> HypsError:
    """Check that a file is refused as a bad model with `wanted` in the sentence, and that nothing is left."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(ModelError) as caught:
        convert(source, source.parent / "out.onnx")
    assert wanted in caught.value.message
    assert "\n" not in caught.value.message
    assert sorted(source.parent.iterdir()) == before
    return caught.value


class TestWithoutTensorFlow:
    @pytest.mark.parametrize("name", ["m.tflite", "m.TFLITE"])
    def test_file_is_recognised_by_its_suffix(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        assert can_convert(tmp_path / name)

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.tflite").touch()
        refuse(tmp_path / "m.tflite", "is empty")

    @pytest.mark.parametrize("content", [b"\x20\0\0\0ORTM" + bytes(40), b"TFL3", b"\x08\x07\x12\x04tool" * 9])
    def test_file_of_another_schema(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.tflite").write_bytes(content)
        refuse(tmp_path / "m.tflite", "lacks the mark `TFL3`")

    def test_missing_packages_name_the_command_that_installs_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "m.tflite").write_bytes(b"\x20\0\0\0TFL3" + bytes(40))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DependencyError) as caught:
            convert(tmp_path / "m.tflite", tmp_path / "out.onnx")
        assert "cannot be converted without `tensorflow`" in caught.value.message
        assert caught.value.hint == 'pip install "hyps[tf]"'


# --- models ---


def small_convnet() -> Any:
    from keras import Input, Model, layers

    image = Input((32, 32, 3), name="image")
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(image)))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.AveragePooling2D(2)(layers.Add()([x, layers.Conv2D(16, 1)(x)]))
    x = layers.Conv2DTranspose(8, 2, strides=2)(x)
    x = layers.Concatenate()([layers.Conv2D(8, 3, padding="same", activation="relu")(x), x])
    return Model(image, layers.Dense(10, activation="softmax", name="classes")(layers.GlobalAveragePooling2D()(x)))


def wide() -> Any:
    from keras import Input, Model, layers

    image = Input((16, 16, 8), name="image")
    x = layers.Conv2D(64, 3, activation="relu6")(layers.Conv2D(64, 3, activation="relu")(image))
    return Model(image, layers.Dense(16)(layers.Dense(64, activation="relu")(layers.Flatten()(x))))


def two_inputs() -> Any:
    from keras import Input, Model, layers

    left, right = Input((8,), name="left"), Input((6, 4), name="right")
    both = layers.Concatenate()([layers.Dense(4, activation="relu")(left), layers.Flatten()(layers.Dense(3)(right))])
    return Model([left, right], [layers.Dense(1)(both), layers.Dense(7, activation="tanh")(both)])


def stacked_lstm() -> Any:
    from keras import Input, Model, layers

    steps = Input(batch_shape=(1, 12, 8), name="steps")
    return Model(steps, layers.Dense(3)(layers.LSTM(8)(layers.LSTM(16, return_sequences=True)(steps))))


def mobilenet() -> Any:
    import keras

    return keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.35, weights=None)


def calibrated(model: Any) -> Any:
    """Give a model random weights under which its outputs depend on its inputs."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        values = []
        for weight in layer.weights:
            name, shape = weight.path.split("/")[-1], weight.shape
            fan = int(np.prod(shape[:2] if type(layer).__name__ == "DepthwiseConv2D" else shape[:-1]))
            if name in ("kernel", "depthwise_kernel"):
                values.append(generator.normal(0, (2 / fan) ** 0.5, shape))
            elif name in ("moving_variance", "gamma"):
                values.append(generator.uniform(0.7, 1.3, shape))
            else:
                values.append(weight.numpy() if "recurrent" in name else generator.normal(0, 0.1, shape))
        layer.set_weights(values)
    return model


def to_tflite(model: Any, how: str) -> bytes:
    """Return a Keras model as TensorFlow Lite: float32, float16, dynamic, int8, uint8, int8-inside or int16."""
    import tensorflow as tf

    generator = np.random.default_rng(1)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    operators = tf.lite.OpsSet
    if how != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if how == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if how in ("int8", "uint8", "int8-inside", "int16"):
        shapes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
        converter.representative_dataset = lambda: (
            [generator.normal(0, 1, shape).astype(np.float32) for shape in shapes] for _ in range(20)
        )
        wide_ones = operators.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide_ones if how == "int16" else operators.TFLITE_BUILTINS_INT8]
    if how in ("int8", "uint8"):
        converter.inference_input_type = converter.inference_output_type = getattr(tf, how)
    content: bytes = converter.convert()
    return content


@pytest.fixture(scope="module")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Any], str], Path]:
    """Return a function that makes the file of a model, each once."""
    folder = tmp_path_factory.mktemp("tflite")
    models: dict[str, Any] = {}

    def make(build: Callable[[], Any], how: str) -> Path:
        path = folder / f"{build.__name__}-{how}.tflite"
        if not path.exists():
            if build.__name__ not in models:
                models[build.__name__] = calibrated(build())
            path.write_bytes(to_tflite(models[build.__name__], how))
        return path

    return make


Make = Callable[[Callable[[], Any], str], Path]


def interpret(content: bytes, feeds: list[Array]) -> list[Array]:
    """Return what TensorFlow Lite computes."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(model_content=content)
    for detail, value in zip(interpreter.get_input_details(), feeds, strict=True):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), feeds, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def both_answers(source: Path, model: Path, batch: int = 3) -> tuple[list[Array], list[Array]]:
    """Return the answers of TensorFlow Lite and of onnxruntime to the same random request."""
    generator = np.random.default_rng(99)
    session = onnxruntime.InferenceSession(model)
    feeds: dict[str, Array] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        if "int8" in value.type:
            limits = np.iinfo(value.type[len("tensor(") : -1])
            feeds[value.name] = generator.integers(limits.min, limits.max + 1, shape).astype(limits.dtype)
        else:
            feeds[value.name] = generator.normal(0, 1, shape).astype(np.float32)
    return interpret(source.read_bytes(), list(feeds.values())), session.run(None, feeds)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@with_tensorflow
class TestFloat:
    @pytest.mark.parametrize(
        ("build", "how"),
        [
            *((build, "float32") for build in (small_convnet, wide, two_inputs, stacked_lstm, mobilenet)),
            (small_convnet, "float16"),
        ],
    )
    def test_computes_what_the_source_computes(
        self, tmp_path: Path, tflite: Make, build: Callable[[], Any], how: str
    ) -> None:
        source = tflite(build, how)
        made = convert(source, tmp_path / "out.onnx")
        assert made.difference is not None
        assert made.difference < 1e-4
        assert made.constant_outputs == ()
        for expected, actual in zip(*both_answers(source, tmp_path / "out.onnx"), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))

    def test_names_are_those_of_the_signature_and_the_batch_stays_dynamic(self, tmp_path: Path, tflite: Make) -> None:
        made = convert(tflite(two_inputs, "float32"), tmp_path / "out.onnx")
        assert [value.name for value in made.inputs] == ["left", "right"]
        assert {value.name for value in made.outputs} == {"output_0", "output_1"}
        assert all(value.shape is not None and not isinstance(value.shape[0], int) for value in made.inputs)

    def test_fixed_batch_stays_fixed(self, tmp_path: Path, tflite: Make) -> None:
        made = convert(tflite(stacked_lstm, "float32"), tmp_path / "out.onnx")
        assert [value.shape for value in made.inputs] == [(1, 12, 8)]

    def test_shape_can_be_fixed(self, tmp_path: Path, tflite: Make) -> None:
        made = convert(tflite(small_convnet, "float32"), tmp_path / "out.onnx", inputs={"image": (4, 32, 32, 3)})
        assert [value.shape for value in made.inputs] == [(4, 32, 32, 3)]

    def test_shape_that_the_model_does_not_take_is_refused(self, tmp_path: Path, tflite: Make) -> None:
        with pytest.raises(UsageError, match="the model takes 1 x 12 x 8"):
            convert(tflite(stacked_lstm, "float32"), tmp_path / "out.onnx", inputs={"steps": (2, 12, 8)})

    def test_one_transpose_stays_of_those_around_convolutions(self, tmp_path: Path, tflite: Make) -> None:
        convert(tflite(mobilenet, "float32"), tmp_path / "out.onnx", samples=0)
        found = operators(tmp_path / "out.onnx")
        assert found["Transpose"] == 1
        assert found["Conv"] == 52
        assert not {"Cast", "Identity", "BatchNormalization"} & set(found)


@with_tensorflow
class TestDynamicRange:
    def test_weights_become_floats_and_the_rounding_of_the_source_is_told(self, tmp_path: Path, tflite: Make) -> None:
        source = tflite(wide, "dynamic")
        made = convert(source, tmp_path / "out.onnx")
        assert made.difference is not None
        assert made.difference < 1e-4
        assert "4 weights of 8 bits became float32" in made.notes[0]
        assert not {"DequantizeLinear", "DynamicQuantizeLinear"} & set(operators(tmp_path / "out.onnx"))
        (expected,), (actual,) = both_answers(source, tmp_path / "out.onnx")
        away = np.abs(actual - expected).max() / np.abs(expected).max()
        assert 1e-4 < away < 0.05  # TensorFlow Lite rounds what meets the weights

    def test_loop(self, tmp_path: Path, tflite: Make) -> None:
        made = convert(tflite(stacked_lstm, "dynamic"), tmp_path / "out.onnx")
        assert made.difference is not None
        assert made.difference < 1e-4


@with_tensorflow
class TestQuantized:
    @pytest.mark.parametrize(
        ("build", "how"),
        [*((small_convnet, how) for how in ("int8", "uint8", "int8-inside", "int16")), (two_inputs, "int8")],
    )
    def test_shallow_model_is_off_by_two_steps_at_most(
        self, tmp_path: Path, tflite: Make, build: Callable[[], Any], how: str
    ) -> None:
        source = tflite(build, how)
        made = convert(source, tmp_path / "out.onnx")
        assert all(found.steps is not None and found.steps <= 3 for found in made.agreement)
        assert "no operator is off by more than" in made.notes[0]
        assert all(value.dtype == (how if how.endswith("int8") else "float32") for value in made.inputs)
        for expected, actual in zip(*both_answers(source, tmp_path / "out.onnx"), strict=True):
            assert actual.dtype == expected.dtype
            unit = 1.0 if how.endswith("int8") else float(np.abs(expected).max()) / 100
            assert np.abs(actual.astype(float) - expected.astype(float)).max() <= 3 * unit

    def test_deep_model_is_proved_operator_by_operator(self, tmp_path: Path, tflite: Make) -> None:
        made = convert(tflite(mobilenet, "int8"), tmp_path / "out.onnx", samples=1)
        assert "no operator is off by more than 1 step of" in made.notes[0]
        assert operators(tmp_path / "out.onnx")["Transpose"] == 1

    def test_weights_stay_integers_with_a_scale_per_channel(self, tmp_path: Path, tflite: Make) -> None:
        convert(tflite(small_convnet, "int8"), tmp_path / "out.onnx", samples=0)
        graph = onnx.load(tmp_path / "out.onnx").graph
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        read = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
        kernels = [node for node in read if values[node.input[0]].ndim == 4]
        assert {values[node.input[0]].dtype.name for node in kernels} == {"int8"}
        assert any(values[node.input[1]].size > 1 for node in kernels)


SABOTAGE = {
    "operator": """
import tf2onnx.tfonnx  # its own handlers first
from tf2onnx.handler import tfl_op
@tfl_op(["TFL_ADD"], tf_op="Sub")
class Wrong:
    @classmethod
    def to_tf(cls, ctx, node, **_):
        del node.attr["fused_activation_function"]
""",
    "pooling": """
import tf2onnx.tfonnx
from tf2onnx.handler import tfl_op
from tf2onnx.tflite_handlers.tfl_nn import TflAveragePool
@tfl_op(["TFL_MAX_POOL_2D"], tf_op="AvgPool")
class Wrong:
    to_tf = TflAveragePool.to_tf
""",
    "weights": """
from tf2onnx.tflite_handlers.tfl_math import TflDequantizeOp
right = TflDequantizeOp.version_10.__func__
def wrong(cls, ctx, node, **options):
    if len(node.attr["scale"].floats) > 1:
        scale = list(node.attr["scale"].floats)
        node.set_attr("scale", scale[1:] + scale[:1])
    right(cls, ctx, node, **options)
TflDequantizeOp.version_10 = classmethod(wrong)
""",
}
"""Modules that make tf2onnx translate wrongly."""


@with_tensorflow
class TestWrongConversion:
    @pytest.mark.parametrize(
        ("how", "mistake"),
        [
            ("float32", "pooling"),
            ("int8", "operator"),
            ("int8", "weights"),
            ("int16", "operator"),
        ],
    )
    def test_is_refused(
        self, tmp_path: Path, tflite: Make, monkeypatch: pytest.MonkeyPatch, how: str, mistake: str
    ) -> None:
        (tmp_path / "sabotage.py").write_text(SABOTAGE[mistake])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DifferenceError, match="does not compute what its source computes"):
            convert(tflite(small_convnet, how), tmp_path / "out.onnx", modules=("sabotage",))
        assert not (tmp_path / "out.onnx").exists()

    def test_is_refused_in_a_deep_model(self, tmp_path: Path, tflite: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sabotage.py").write_text(SABOTAGE["weights"])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DifferenceError):
            convert(tflite(mobilenet, "int8"), tmp_path / "out.onnx", modules=("sabotage",), samples=1)


@with_tensorflow
class TestBadFiles:
    @pytest.mark.parametrize("share", [0.3, 0.999])
    def test_truncated_file(self, tmp_path: Path, tflite: Make, share: float) -> None:
        content = tflite(small_convnet, "float32").read_bytes()
        (tmp_path / "m.tflite").write_bytes(content[: int(len(content) * share)])
        refuse(tmp_path / "m.tflite", "is damaged or no TensorFlow Lite model")

    def test_noise_behind_the_mark(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).bytes(4000)
        (tmp_path / "m.tflite").write_bytes(noise[:4] + b"TFL3" + noise)
        refuse(tmp_path / "m.tflite", "is damaged or no TensorFlow Lite model")

    @pytest.mark.parametrize("operation", ["FlexErf", "MyOperation", "a\x1b[31m"])
    def test_operation_of_others_is_named(self, tmp_path: Path, tflite: Make, operation: str) -> None:
        self._with_first_operation(tflite(small_convnet, "float32"), tmp_path / "m.tflite", 32, operation)
        shown = operation.replace("\x1b", "\\x1b")
        assert "leave that operation out" in refuse(tmp_path / "m.tflite", f"the operation `{shown}`").hint

    @pytest.mark.parametrize(
        ("number", "wanted"),
        [(27, "the TensorFlow Lite operation `SVDF`, which tf2onnx cannot express"), (143, "`READ_VARIABLE`")],
    )
    def test_operation_without_translation_is_named(
        self, tmp_path: Path, tflite: Make, number: int, wanted: str
    ) -> None:
        self._with_first_operation(tflite(small_convnet, "float32"), tmp_path / "m.tflite", number, None)
        refuse(tmp_path / "m.tflite", wanted)

    @staticmethod
    def _with_first_operation(source: Path, target: Path, number: int, name: str | None) -> None:
        """Write a model with another code for its first kind of operation."""
        import flatbuffers  # type: ignore[import-untyped]  # it has no types
        from tensorflow.lite.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model_from_bytearray(bytearray(source.read_bytes()))
        code = model.operatorCodes[0]
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = number, min(number, 127), name
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        target.write_bytes(bytes(builder.Output()))
