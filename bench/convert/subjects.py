"""What is converted: sources of every kind, each written by a process of its own, which this file is then."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from convert import keras_models

APPLICATIONS = tuple(
    "MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large EfficientNetB0 EfficientNetB1 EfficientNetV2B0"
    " EfficientNetV2B1 NASNetMobile DenseNet121 DenseNet169 DenseNet201 ResNet50 ResNet50V2 ResNet101 Xception"
    " InceptionV3 InceptionResNetV2 VGG16 VGG19 ConvNeXtTiny EfficientNetV2S ResNet101V2 EfficientNetB4".split()
)

WITH_RIVAL = ("MobileNetV2", "EfficientNetB0", "ResNet50", "VGG16", "lstm", "two-inputs")
"""Also written as SavedModel folders, which tf2onnx's own command takes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One source."""

    name: str
    file: str
    """Name of the file or folder."""
    write: Callable[[Path], Any]
    """Writes it; a Keras model is returned."""
    needs: tuple[str, ...] = ("tensorflow",)


def _keras(build: Callable[[], Any]) -> Callable[[Path], Any]:
    def write(path: Path) -> Any:
        model = keras_models.calibrate(build())
        model.save(path)
        return model

    return write


def _saved_model(path: Path) -> None:
    keras_models.calibrate(keras_models.small_convnet()).export(path, verbose=False)


def _subclassed(path: Path) -> None:
    """Write the SavedModel of a model whose structure is Python code."""
    import keras
    import numpy as np

    class Net(keras.Model):  # type: ignore[misc]  # keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.out(self.hidden(x) + 1.0)

    model = Net()
    model(np.ones((2, 4), np.float32))
    model.export(path, verbose=False)


def _frozen_graph(path: Path) -> None:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2 as to_constants

    model = keras_models.calibrate(keras_models.small_convnet())
    spec = tf.TensorSpec((None, 32, 32, 3), tf.float32, name="image")
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(spec)
    path.write_bytes(to_constants(function).graph.as_graph_def().SerializeToString())


def _tflite(name: str, quantized: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import numpy as np
        import tensorflow as tf

        model = keras_models.calibrate(keras_models.application(name))
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if quantized:
            rng = np.random.default_rng(0)
            shape = (1, *model.input.shape[1:])
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: (
                [rng.uniform(0, 255, shape).astype(np.float32)] for _ in range(4)
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        path.write_bytes(converter.convert())

    return write


def _torch(scripted: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import torch
        import torchvision

        torch.manual_seed(0)
        model = torchvision.models.mobilenet_v2(weights=None)
        image = torch.rand(4, 3, 224, 224)
        for _ in range(20):  # the running statistics then come close to a batch's
            model.train()(image)
        model.eval()
        if scripted:
            torch.jit.trace(model, image[:1]).save(str(path))
        else:
            batch = torch.export.Dim("batch")
            torch.export.save(torch.export.export(model, (image,), dynamic_shapes=({0: batch},)), path)

    return write


def _sklearn(path: Path) -> None:
    import joblib
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = make_classification(400, 20, random_state=0)
    pipeline = make_pipeline(StandardScaler(), RandomForestClassifier(50, random_state=0)).fit(features, labels)
    joblib.dump(pipeline, path)


_TORCH = ("torch", "torchvision")

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("lstm", "lstm.keras", _keras(keras_models.lstm)),
        Subject("two-inputs", "two-inputs.keras", _keras(keras_models.multi_input_dict)),
        Subject("convnet-h5", "convnet.h5", _keras(keras_models.small_convnet)),
        Subject("convnet-savedmodel", "convnet", _saved_model),
        Subject("subclassed-savedmodel", "subclassed", _subclassed),
        Subject("convnet-frozen", "convnet.pb", _frozen_graph),
        Subject("MobileNetV2-tflite", "m.tflite", _tflite("MobileNetV2", quantized=False)),
        Subject("MobileNetV2-tflite-int8", "m8.tflite", _tflite("MobileNetV2", quantized=True)),
        Subject("mobilenet_v2-exported", "m.pt2", _torch(scripted=False), _TORCH),
        Subject("mobilenet_v2-traced", "m.pt", _torch(scripted=True), _TORCH),
        Subject("forest", "forest.joblib", _sklearn, ("sklearn", "joblib")),
        *(Subject(name, f"{name}.keras", _keras(partial(keras_models.application, name))) for name in APPLICATIONS),
    )
}


def main() -> None:
    """Write the named subject into the folder, both given as arguments."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    subject = SUBJECTS[name]
    model = subject.write(folder / subject.file)
    if name in WITH_RIVAL:
        model.export(folder / "exported", verbose=False)


if __name__ == "__main__":
    main()
