"""The BERT encoder (Devlin et al. 2018) without a task head: embeddings, layers and pooler.

Word, position and token-type embeddings with their normalization; per layer self-attention, its output projection, two
normalizations and the feed-forward pair; the pooler, a dense layer with tanh on the first token. Position numbers are a
constant and no parameter.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from onnx import ModelProto, TensorProto

from hyps_models.net import Net, Tensors

_VOCABULARY = 30522
_POSITIONS = 512
_TOKEN_TYPES = 2
_EPSILON = 1e-12
_SAMPLE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class _Size:
    layers: int
    width: int
    heads: int


def build_encoder(seed: int) -> ModelProto:
    """Return an encoder of BERT-base's size: 109,482,240 parameters."""
    return _encoder("encoder", seed, _Size(layers=12, width=768, heads=12))


def build_encoder_small(seed: int) -> ModelProto:
    """Return an encoder of BERT-tiny's size: 4,385,920 parameters, nine tenths of them word embeddings."""
    return _encoder("encoder-small", seed, _Size(layers=2, width=128, heads=2))


def sample_tokens(rng: np.random.Generator, batch: int) -> Tensors:
    """Return `batch` sequences of 32 tokens; in every second one the last quarter is padding."""
    shape = (batch, _SAMPLE_TOKENS)
    mask = np.ones(shape, np.int64)
    mask[1::2, -_SAMPLE_TOKENS // 4 :] = 0
    types = np.zeros(shape, np.int64)
    types[:, _SAMPLE_TOKENS // 2 :] = 1
    tokens = rng.integers(0, _VOCABULARY, shape, np.int64)
    return {"input_ids": tokens * mask, "attention_mask": mask, "token_type_ids": types}


def _encoder(name: str, seed: int, size: _Size) -> ModelProto:
    net = Net(name, seed)
    dims = ["batch", "sequence"]
    tokens, mask, types = (
        net.input(key, dims, TensorProto.INT64) for key in ("input_ids", "attention_mask", "token_type_ids")
    )
    x = _embeddings(net, tokens, types, size)
    bias = _mask_bias(net, mask)
    for index in range(size.layers):
        is_last = index == size.layers - 1
        x = _layer(net, x, bias, f"encoder.layer.{index}", size, "last_hidden_state" if is_last else "")
    net.output(x, ["batch", "sequence", size.width])
    net.output(_pooler(net, x, size), ["batch", size.width])
    return net.model()


def _embeddings(net: Net, tokens: str, types: str, size: _Size) -> str:
    name = "embeddings"
    word_table = net.normal(f"{name}.word.weight", (_VOCABULARY, size.width), 1.0)
    place_table = net.normal(f"{name}.position.weight", (_POSITIONS, size.width), 0.3)
    type_table = net.normal(f"{name}.type.weight", (_TOKEN_TYPES, size.width), 0.3)
    x = net.node("Gather", f"{name}.word", [word_table, tokens], axis=0)
    x = net.node("Add", f"{name}.add_type", [x, net.node("Gather", f"{name}.type", [type_table, types], axis=0)])
    places = net.node("Gather", f"{name}.position", [place_table, _positions(net, tokens)], axis=0)
    x = net.node("Add", f"{name}.add_position", [x, places])
    return _norm(net, x, f"{name}.norm", size)


def _positions(net: Net, tokens: str) -> str:
    """Append what yields 0, 1, 2 ... up to the length of the sequences."""
    name = "embeddings.position_ids"
    numbers = net.tensor(name, np.arange(_POSITIONS, dtype=np.int64)[np.newaxis])
    shape = net.node("Shape", f"{name}.shape", [tokens])
    one = net.constant(f"{name}.one", [1])
    length = net.node("Gather", f"{name}.length", [shape, one], axis=0)
    return net.node("Slice", f"{name}.slice", [numbers, net.constant(f"{name}.zero", [0]), length, one])


def _mask_bias(net: Net, mask: str) -> str:
    """Append what yields 0 for a token to attend to and -10000 for padding, `[batch, 1, 1, sequence]`."""
    for axis in (1, 2):
        mask = net.node("Unsqueeze", f"mask.unsqueeze{axis}", [mask, net.constant(f"mask.axis{axis}", [axis])])
    mask = net.node("Cast", "mask.cast", [mask], to=TensorProto.FLOAT)
    absent = net.node("Sub", "mask.invert", [net.constant("mask.one", 1.0), mask])
    return net.node("Mul", "mask.scale", [absent, net.constant("mask.penalty", -10000.0)])


def _layer(net: Net, x: str, bias: str, name: str, size: _Size, output: str) -> str:
    attended = _attention(net, x, bias, f"{name}.attention", size)
    x = _norm(net, net.node("Add", f"{name}.attention.add", [attended, x]), f"{name}.attention.norm", size)
    y = _dense(net, x, f"{name}.feed_forward.expand", size.width, 4 * size.width)
    y = _gelu(net, y, f"{name}.feed_forward.gelu")
    y = _dense(net, y, f"{name}.feed_forward.contract", 4 * size.width, size.width)
    y = net.node("Add", f"{name}.feed_forward.add", [y, x])
    return _norm(net, y, f"{name}.feed_forward.norm", size, output)


def _attention(net: Net, x: str, bias: str, name: str, size: _Size) -> str:
    depth = size.width // size.heads
    query = _heads(net, x, f"{name}.query", size, [0, 2, 1, 3])
    key = _heads(net, x, f"{name}.key", size, [0, 2, 3, 1])
    value = _heads(net, x, f"{name}.value", size, [0, 2, 1, 3])
    scores = net.node("MatMul", f"{name}.scores", [query, key])
    scores = net.node("Div", f"{name}.scale", [scores, net.constant(f"{name}.scale.by", sqrt(depth))])
    scores = net.node("Add", f"{name}.mask", [scores, bias])
    shares = net.node("Softmax", f"{name}.softmax", [scores], axis=-1)
    context = net.node("MatMul", f"{name}.context", [shares, value])
    context = net.node("Transpose", f"{name}.context.transpose", [context], perm=[0, 2, 1, 3])
    shape = net.constant(f"{name}.context.shape", [0, 0, size.width])
    context = net.node("Reshape", f"{name}.context.reshape", [context, shape])
    return _dense(net, context, f"{name}.project", size.width, size.width)


def _heads(net: Net, x: str, name: str, size: _Size, perm: list[int]) -> str:
    x = _dense(net, x, name, size.width, size.width)
    shape = net.constant(f"{name}.shape", [0, 0, size.heads, size.width // size.heads])
    x = net.node("Reshape", f"{name}.reshape", [x, shape])
    return net.node("Transpose", f"{name}.transpose", [x], perm=perm)


def _dense(net: Net, x: str, name: str, inputs: int, outputs: int) -> str:
    """Append a dense layer on a sequence: a MatMul, weights `[inputs, outputs]`, and an Add of the biases."""
    weight = net.normal(f"{name}.weight", (inputs, outputs), 1 / sqrt(inputs))
    x = net.node("MatMul", f"{name}.matmul", [x, weight])
    return net.node("Add", f"{name}.add_bias", [x, net.normal(f"{name}.bias", (outputs,), 0.05)])


def _gelu(net: Net, x: str, name: str) -> str:
    ratio = net.node("Div", f"{name}.div", [x, net.constant(f"{name}.root2", sqrt(2))])
    above = net.node("Erf", f"{name}.erf", [ratio])
    above = net.node("Add", f"{name}.add", [above, net.constant(f"{name}.one", 1.0)])
    x = net.node("Mul", f"{name}.mul", [x, above])
    return net.node("Mul", f"{name}.halve", [x, net.constant(f"{name}.half", 0.5)])


def _norm(net: Net, x: str, name: str, size: _Size, output: str = "") -> str:
    scale = net.tensor(f"{name}.weight", 1 + net.drawn((size.width,), 0.1))
    shift = net.normal(f"{name}.bias", (size.width,), 0.1)
    return net.node("LayerNormalization", name, [x, scale, shift], output, axis=-1, epsilon=_EPSILON)


def _pooler(net: Net, x: str, size: _Size) -> str:
    first = net.constant("pooler.index", 0)
    x = net.node("Gather", "pooler.first", [x, first], axis=1)
    x = net.linear(x, "pooler.dense", size.width, size.width)
    return net.node("Tanh", "pooler.tanh", [x], "pooler_output")
