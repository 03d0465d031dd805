"""Frozen TensorFlow graphs (`.pb` files) as functions with named inputs and outputs.

Imports TensorFlow: for the child process only.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from hyps.errors import ModelError, UsageError, printable
from hyps_compiler.convert import effects
from hyps_compiler.convert.checks import COPY_HINT
from hyps_compiler.convert.request import first_line

_NO_RESULTS = {"Assert", "Const", "NoOp", "Placeholder", "SaveV2"}
"""Operations that nothing else reads and that yet are no outputs."""

_VARIABLES = {"Variable", "VariableV2", "VarHandleOp"}


def load_graph(source: Path, outputs: Sequence[str], *, trust: bool) -> tuple[Any, list[str], list[str]]:
    """Return a frozen graph as a ConcreteFunction, and the names of its inputs and of its outputs.

    Inputs are the placeholders, outputs what nothing else reads unless `outputs` names them. A placeholder with a
    default value keeps it. Without `trust` it has no operation that could do more than compute: TensorFlow's read and
    write files, and call Python.

    Raises:
        ModelError: the file is no frozen graph, or not whole, or holds what is not trusted.
        UsageError: there is no such output.
    """
    graph_def = _read(source)
    _refuse_variables(graph_def, source)
    for node in graph_def.node:
        if node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            node.attr.pop("shape", None)
            node.attr["T"].CopyFrom(node.attr["dtype"])
            node.attr.pop("dtype")
    try:
        whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    except Exception as error:  # TensorFlow raises ValueError and its own for nodes it does not know
        raise ModelError(
            f"tensorflow {tf.__version__} cannot load the graph `{printable(source.name)}`: {first_line(error)}"
        ) from error
    results = [_tensor(whole.graph, name) for name in outputs] if outputs else _unread(whole.graph, graph_def)
    if not results:
        raise ModelError(f"the graph `{printable(source.name)}` computes nothing that is not used in it")
    if not trust:
        _refuse_effects(graph_def, results, source)
    placeholders = [node.name for node in graph_def.node if node.op == "Placeholder"]
    needed = _ancestors(graph_def, [tensor.op.name for tensor in results]) if outputs else set(placeholders)
    feeds = [whole.graph.get_tensor_by_name(f"{name}:0") for name in placeholders if name in needed]
    function = whole.prune(feeds, results)
    return function, [tensor.op.name for tensor in feeds], [_plain(tensor.name) for tensor in results]


def _read(source: Path) -> Any:
    """Return the graph in a file."""
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(source.read_bytes())
    except DecodeError as error:
        raise ModelError(
            f"`{printable(source.name)}` is cut short, or no frozen TensorFlow graph", COPY_HINT
        ) from error
    if not graph_def.node or not all(node.op for node in graph_def.node):
        raise ModelError(f"`{printable(source.name)}` is no frozen TensorFlow graph: it has no operations", COPY_HINT)
    return graph_def


def _refuse_variables(graph_def: Any, source: Path) -> None:
    """Raise if the graph has variables, whose values are not in it."""
    for node in graph_def.node:
        if node.op in _VARIABLES:
            raise ModelError(
                f"the graph `{printable(source.name)}` is not frozen: it has the variable `{printable(node.name)}`",
                "freeze it with TensorFlow, or convert the SavedModel",
            )


def _refuse_effects(graph_def: Any, results: Sequence[Any], source: Path) -> None:
    """Raise if what would run, a needed node or one of a function, may do more than compute."""
    needed = _ancestors(graph_def, [tensor.op.name for tensor in results])
    functions = graph_def.library.function
    run = itertools.chain((node for node in graph_def.node if node.name in needed), *(f.node_def for f in functions))
    effects.refuse_effects(run, {function.signature.name for function in functions}, source)


def _unread(graph: Any, graph_def: Any) -> list[Any]:
    """Return the tensors of the nodes that no node reads."""
    read = {name.removeprefix("^").split(":")[0] for node in graph_def.node for name in node.input}
    ends = [node.name for node in graph_def.node if node.name not in read and node.op not in _NO_RESULTS]
    return [tensor for name in ends for tensor in graph.get_operation_by_name(name).outputs]


def _tensor(graph: Any, name: str) -> Any:
    """Return a tensor by the name that a user gives: its node's, perhaps with `:` and a number."""
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError) as error:
        near = [operation.name for operation in graph.get_operations() if os.path.basename(name) in operation.name]
        hint = f"it has `{printable(near[-1])}`" if near else "the last operations of the graph are its outputs"
        raise UsageError(f"the graph has no tensor `{printable(name)}`", hint) from error


def _ancestors(graph_def: Any, names: Sequence[str]) -> set[str]:
    """Return the nodes that the named ones need, themselves included."""
    nodes = {node.name: node for node in graph_def.node}
    needed: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += [read.removeprefix("^").split(":")[0] for read in nodes[name].input]
    return needed


def _plain(tensor: str) -> str:
    """Return a tensor's name without the number of a node's first result."""
    node, _, number = tensor.partition(":")
    return node if number == "0" else f"{node}_{number}"
