"""Small models with one thing changed at random: what a fuzzer that knows protobuf would hand in."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model_fixtures import floats, model_of

NUMBERS = (-1, 0, 1, 2, 3, 7, 16, 127, 255, 2**15, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "w", "y", "t", "../x", "/dev/zero", "a\x1b[31m\n", "\0", "\u202e", "n" * 5000, "d", "F", "G", "b")
OPERATORS = ("Relu", "Add", "MatMul", "If", "Loop", "Scan", "Concat", "Expand", "Reshape", "Constant", "Shape", "Cast")
DATA = 16
"""Bytes of the file in which one of the models has its weight."""


def dense() -> ModelProto:
    weights = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["t"]), helper.make_node("Relu", ["t"], ["y"])]
    return model_of(nodes, [floats("x", "n", 4)], [floats("y", "n", 4)], weights)


def shapes() -> ModelProto:
    nodes = [
        helper.make_node("Shape", ["x"], ["n"]),
        helper.make_node("Concat", ["n", "k"], ["s"], axis=0),
        helper.make_node("Expand", ["x", "s"], ["e"]),
        helper.make_node("Reshape", ["e", "flat"], ["y"]),
    ]
    weights = {"k": np.array([4], np.int64), "flat": np.array([-1], np.int64)}
    return model_of(nodes, [floats("x", 2, 4)], [floats("y", None)], weights)


def nested() -> ModelProto:
    def graph(*nodes: NodeProto) -> GraphProto:
        return helper.make_graph(list(nodes), "g", [], [floats(nodes[-1].output[0], 4)])

    inner = graph(helper.make_node("If", ["c"], ["i"], then_branch=_abs(), else_branch=_abs()))
    weight = numpy_helper.from_array(np.ones(4, np.float32), "q")
    inner.initializer.append(weight)
    outer = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=_abs())
    truth = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    return model_of([outer], [floats("x", 4), truth], [floats("y", 4)])


def _abs() -> GraphProto:
    return helper.make_graph([helper.make_node("Abs", ["x"], ["a"])], "g", [], [floats("a", 4)])


def functions() -> ModelProto:
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    one = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones(4, np.float32)))
    first = helper.make_function("d", "F", ["a"], ["b"], [one, helper.make_node("Add", ["a", "one"], ["b"])], domains)
    body = [helper.make_node("F", ["a"], ["t"], domain="d"), helper.make_node("F", ["t"], ["b"], domain="d")]
    model = model_of([helper.make_node("G", ["x"], ["y"], domain="d")], [floats("x", 4)], [floats("y", 4)])
    model.opset_import.append(domains[1])
    model.functions.extend([first, helper.make_function("d", "G", ["a"], ["b"], body, domains)])
    return model


def sparse() -> ModelProto:
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [floats("x", 2, 3)], [floats("y", 2, 3)])
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 4], np.int64), "w_indices")
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=[2, 3]))
    return model


def external() -> ModelProto:
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [floats("x", 4)], [floats("y", 4)])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "w.bin", "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    return model


SEEDS: dict[str, Callable[[], ModelProto]] = {
    seed.__name__: seed for seed in (dense, shapes, nested, functions, sparse, external)
}


def mutated(name: str, seed: int, most: int = 3) -> ModelProto:
    """Return one of the models with one to `most` things changed; equal seeds give equal models."""
    rng = random.Random(seed)
    model = SEEDS[name]()
    for _ in range(rng.randint(1, most)):
        _mutate(model, rng)
    return model


def _mutate(model: ModelProto, rng: random.Random) -> None:
    messages = _messages(model)
    message = rng.choice(messages)
    if isinstance(message, NodeProto) and rng.random() < 0.5:
        _rewire(message, messages, rng)
        return
    field = _field(message, rng)
    value = getattr(message, field.name)
    if hasattr(value, "extend"):
        _change_list(value, field, messages, rng)
    elif field.type != field.TYPE_MESSAGE:
        setattr(message, field.name, _scalar(field, rng))
    elif rng.random() < 0.5:
        message.ClearField(field.name)
    else:
        value.CopyFrom(_like(value, messages, rng))


def _like(message: Any, messages: Sequence[Message], rng: random.Random) -> Any:
    """Return a copy of a message of the same kind; protobuf crashes where one is copied into what it holds itself."""
    copied = type(message)()
    copied.CopyFrom(rng.choice([other for other in messages if type(other) is type(message)] or [message]))
    return copied


def _field(message: Message, rng: random.Random) -> Any:
    """Return the description of one of the fields, which protobuf has no full types for."""
    return rng.choice([field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields))


def _messages(model: ModelProto) -> list[Message]:
    """Return the messages that the model is made of."""
    found: list[Message] = []
    waiting: list[Message] = [model]
    while waiting:
        found.append(waiting.pop())
        for field, value in found[-1].ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += list(value) if hasattr(value, "extend") else [value]
    return found


def _rewire(node: NodeProto, messages: Sequence[Message], rng: random.Random) -> None:
    """Give the node another operator, or another name at one of its ends."""
    nodes = [other for other in messages if isinstance(other, NodeProto)]
    names = [name for other in nodes for name in (*other.input, *other.output)] or ["x"]
    ends = node.input if rng.random() < 0.6 else node.output
    if rng.random() < 0.3:
        node.op_type = rng.choice(OPERATORS)
    elif not ends or rng.random() < 0.3:
        ends.append(rng.choice(names))
    else:
        ends[rng.randrange(len(ends))] = rng.choice(names)


def _change_list(values: Any, field: Any, messages: Sequence[Message], rng: random.Random) -> None:
    """Double, drop or replace an element."""
    index = rng.randrange(len(values)) if len(values) else 0
    choice = rng.random()
    if choice < 0.3 and len(values):
        del values[index]
    elif choice < 0.6 and len(values):
        values.extend([values[index]])
    elif field.type == field.TYPE_MESSAGE:
        values.append(_like(values.add(), messages, rng))
    else:
        values.append(_scalar(field, rng))


def _scalar(field: Any, rng: random.Random) -> Any:
    """Return some value of the field's type."""
    if field.type == field.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 4, 15, 16, 64)))
    if field.type == field.TYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan")))
    numbers = [number for number in NUMBERS if field.type != field.TYPE_INT32 or -(2**31) <= number < 2**31]
    return rng.choice([number for number in numbers if number >= 0 or field.type != field.TYPE_UINT64])
