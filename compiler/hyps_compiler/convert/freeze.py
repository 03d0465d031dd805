"""A TensorFlow function as a graph of constants, its largest weights left out.

TensorFlow's and tf2onnx's tools copy every constant many times over: a model of W bytes needs some 20 W, which VGG16
does not survive in 12 GiB. So the largest variables are frozen as stand-ins of one element, and the stand-ins then
become inputs of the graph; `hyps_compiler.convert.weights` puts the values into the finished ONNX model.

Imports TensorFlow: for the child process only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

_LARGE_NBYTES = 1_000_000
"""A constant below it is not worth leaving out; it may be a shape, which tf2onnx must see."""

_CALLERS = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "PartitionedCall", "StatefulPartitionedCall"}


@dataclass(frozen=True, slots=True)
class FrozenGraph:
    """A TensorFlow graph without variables."""

    graph_def: Any
    lifted: dict[str, Any]
    """Name of a placeholder in the graph -> the variable, or the held constant, whose value it stands for."""


@dataclass(frozen=True, slots=True)
class HeldConstant:
    """A constant that was taken out of the graph; it is read like a variable."""

    name: str
    proto: Any
    shape: Any
    dtype: Any

    def numpy(self) -> Any:
        """Return the value."""
        return tf.make_ndarray(self.proto)


def freeze(function: Any, constant_nbytes: int) -> FrozenGraph:
    """Return the graph of a ConcreteFunction with its variables as constants, at most `constant_nbytes` of them.

    The largest variables beyond that become placeholders, except those that a loop uses: tf2onnx knows an LSTM by the
    constants in it. Then the largest constants of the graph itself do, by the same rule.
    """
    lifted = _choose_lifted(function.graph.variables, constant_nbytes)
    frozen = _freeze_all_but(function, lifted)
    in_loops = {id(frozen.lifted[name]) for name in _feeding_functions(frozen.graph_def) & set(frozen.lifted)}
    if in_loops:
        frozen = _freeze_all_but(function, lifted - in_loops)
    return FrozenGraph(frozen.graph_def, frozen.lifted | _hold_constants(frozen.graph_def, constant_nbytes))


def fix_shapes(graph_def: Any, shapes: dict[str, tuple[int | None, ...]]) -> None:
    """Set the shapes of placeholders, by node name; None is a dynamic dimension."""
    for node in graph_def.node:
        if node.name in shapes:
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(shapes[node.name]).as_proto())


def variable_nbytes(variable: Any) -> int:
    """Return the size of a variable's value in bytes."""
    return int(variable.shape.num_elements() * variable.dtype.size)


def _freeze_all_but(function: Any, lifted: set[int]) -> FrozenGraph:
    """Return the graph with placeholders for the variables of the given identities, and constants for the others."""
    converter = _Converter(function, lifted)
    graph_def, _ = convert_to_constants._replace_variables_by_constants(converter_data=converter)
    variables = {
        name: data.numpy.variable for name, data in converter.tensor_data.items() if isinstance(data.numpy, _StandIn)
    }
    for node in graph_def.node:
        if node.name in variables:
            _make_placeholder(node)
    _let_inline(graph_def)
    return FrozenGraph(graph_def, variables)


def _hold_constants(graph_def: Any, constant_nbytes: int) -> dict[str, HeldConstant]:
    """Turn the largest constants into placeholders until the others fit `constant_nbytes`; return them by name."""
    protos = {node.name: node.attr["value"].tensor for node in graph_def.node if node.op == "Const"}
    excess = sum(proto.ByteSize() for proto in protos.values()) - constant_nbytes
    in_loops = _feeding_functions(graph_def)
    held: dict[str, HeldConstant] = {}
    for name, proto in sorted(protos.items(), key=lambda pair: -pair[1].ByteSize()):
        dtype = tf.as_dtype(proto.dtype)
        if excess <= 0 or proto.ByteSize() < min(_LARGE_NBYTES, constant_nbytes):
            break
        if dtype.is_floating and name not in in_loops:
            copy = type(proto)()
            copy.CopyFrom(proto)
            held[name] = HeldConstant(name, copy, tf.TensorShape(proto.tensor_shape), dtype)
            excess -= proto.ByteSize()
    for node in graph_def.node:
        if node.name in held:
            _make_placeholder(node)
    return held


def _let_inline(graph_def: Any) -> None:
    """Take off the marks that keep functions compiled by XLA, such as Keras' grouped convolutions, as they are."""
    for node in graph_def.node:
        node.attr.pop("_XlaMustCompile", None)
    for function in graph_def.library.function:
        for mark in ("_XlaMustCompile", "_noinline"):
            function.attr.pop(mark, None)


def _feeding_functions(graph_def: Any) -> set[str]:
    """Return the nodes whose value enters the body of a loop or a branch, as it is or cast."""
    nodes = {node.name: node for node in graph_def.node}
    feeding: set[str] = set()
    pending = [tensor for node in graph_def.node if node.op in _CALLERS for tensor in node.input]
    while pending:
        name = pending.pop().removeprefix("^").split(":")[0]
        feeding.add(name)
        if nodes[name].op in ("Identity", "Cast"):
            pending.append(nodes[name].input[0])
    return feeding


def _choose_lifted(variables: Iterable[Any], constant_nbytes: int) -> set[int]:
    """Return the identities of the fewest variables to leave out so that the rest fits `constant_nbytes`."""
    largest_first = sorted(variables, key=variable_nbytes, reverse=True)
    total_nbytes = sum(map(variable_nbytes, largest_first))
    lifted: set[int] = set()
    for variable in largest_first:
        if total_nbytes <= constant_nbytes:
            break
        lifted.add(id(variable))
        total_nbytes -= variable_nbytes(variable)
    return lifted


class _StandIn:
    """Looks like a large array of zeros and holds one element.

    TensorFlow's tensor protocol repeats the last given element, so the constant made of it is a few bytes long.
    """

    def __init__(self, variable: Any) -> None:
        self.variable = variable
        self.shape = tuple(variable.shape)
        self.dtype = np.dtype(variable.dtype.as_numpy_dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the one element."""
        return np.zeros(1, dtype or self.dtype)


class _Converter(convert_to_constants._FunctionConverterDataInEager):  # type: ignore[misc]  # tensorflow has no types
    """The data of TensorFlow's own freezing, with stand-ins for the values of some variables."""

    def __init__(self, function: Any, lifted: set[int]) -> None:
        self._lifted = lifted
        super().__init__(func=function, lower_control_flow=False, aggressive_inlining=True)

    def _eval(self, tensor: Any) -> Any:
        return _StandIn(tensor) if id(tensor) in self._lifted else tensor.numpy()


def _make_placeholder(node: Any) -> None:
    """Turn a frozen stand-in's Const node into an input of the same type and shape."""
    name, dtype, shape = node.name, node.attr["dtype"].type, tf.TensorShape(node.attr["value"].tensor.tensor_shape)
    node.Clear()
    node.name, node.op = name, "Placeholder"
    node.attr["dtype"].type = dtype
    node.attr["shape"].shape.CopyFrom(shape.as_proto())
