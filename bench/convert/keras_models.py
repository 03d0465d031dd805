"""Keras models with random weights under which their answers depend on their inputs. Imports Keras when called.

With Keras' own initial weights the outputs of deep networks hardly depend on the input, and equal outputs would prove
nothing: so kernels are drawn as He et al. do, and the statistics of batch normalizations are those of a batch.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def application(name: str) -> Any:
    """Return a network of `keras.applications`, at its default input size."""
    import keras

    return getattr(keras.applications, name)(weights=None)


def small_convnet() -> Any:
    """Return a network with every kind of convolution and pooling, and two outputs."""
    from keras import Input, Model, layers

    image = x = Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, strides=2, padding="same")(x))
    x = layers.SeparableConv2D(24, 3, activation="swish")(layers.MaxPooling2D(2)(x))
    x = layers.Conv2DTranspose(8, 2, strides=2)(layers.AveragePooling2D(2)(x))
    x = layers.Conv2D(8, 3, groups=2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    classes = layers.Dense(10, activation="softmax", name="classes")(x)
    return Model(image, [layers.Dense(2, name="box")(x), classes])


def multi_input_dict() -> Any:
    """Return a network with two named inputs and two named outputs."""
    from keras import Input, Model, layers

    left, right = Input((8,), name="left"), Input((6, 4), name="right")
    both = layers.Concatenate()([layers.Dense(4, activation="relu")(left), layers.Flatten()(layers.Dense(3)(right))])
    outputs = {"score": layers.Dense(1)(both), "embedding": layers.Dense(7, activation="tanh")(both)}
    return Model({"right": right, "left": left}, outputs)


def lstm() -> Any:
    """Return a network of words: a table, an LSTM over them, one in both directions."""
    from keras import Input, Model, layers

    tokens = Input((None,), dtype="int32", name="tokens")
    x = layers.LSTM(24, return_sequences=True)(layers.Embedding(100, 16)(tokens))
    return Model(tokens, layers.Dense(3, name="label")(layers.Bidirectional(layers.LSTM(8))(x)))


def calibrate(model: Any, seed: int = 0) -> Any:
    """Give a model random weights under which its outputs depend on its inputs, and return it."""
    from keras import layers, tree

    rng = np.random.default_rng(seed)
    norms = []
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables:
            variable.assign(_values(variable, rng))
        if isinstance(layer, layers.BatchNormalization):
            norms.append(layer)
    if norms:
        momentum = norms[0].momentum
        for layer in norms:
            layer.momentum = 0.0  # one pass in training mode then sets the statistics to those of its batch
        model(tree.map_structure(lambda tensor: draw(tensor, 4, rng), model.input), training=True)
        for layer in norms:
            layer.momentum = momentum
    return model


def draw(tensor: Any, batch: int, rng: np.random.Generator) -> Array:
    """Return a random value for a Keras input; dimensions left open, but the batch, become 11."""
    shape = (batch, *(size or 11 for size in tensor.shape[1:]))
    if "int" in tensor.dtype:
        return rng.integers(0, 100, shape).astype(tensor.dtype)
    return rng.uniform(0, 255 if len(shape) == 4 else 1, shape).astype(tensor.dtype)


def _values(variable: Any, rng: np.random.Generator) -> Array:
    """Return random values for a weight."""
    shape = tuple(variable.shape)
    if "kernel" in variable.name or variable.name == "embeddings":
        fan_in = np.prod(shape[:2]) if "depthwise" in variable.name else np.prod(shape[:-1])
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    low, high = (0.5, 1.5) if variable.name == "gamma" else (-0.2, 0.2)
    return rng.uniform(low, high, shape).astype(np.float32)
