"""SavedModel folders of strangers: looked through before TensorFlow loads them, and loaded without what saves them.

TensorFlow runs parts of a SavedModel as it loads it, and a signature may do whatever TensorFlow can. Every SavedModel
also holds operations that write files, by which it could be saved again. Nothing here saves, so those are left out of
the copy that is loaded; that copy, and not the file, which may change meanwhile, is what was looked through.

Imports TensorFlow: for the child process only.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from hyps.errors import ModelError, printable
from hyps_compiler.convert.checks import COPY_HINT
from hyps_compiler.convert.effects import refuse_effects

_WRITERS = {"MergeV2Checkpoints", "SaveV2"}


def screened_copy(source: Path, folder: Path) -> Path:
    """Return a copy of a SavedModel, made in `folder`, that does nothing but compute and read its own variables.

    Raises:
        ModelError: it is damaged, or may do more than that.
    """
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((source / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise ModelError(f"the SavedModel `{printable(source.name)}` is cut short or damaged", COPY_HINT) from error
    has_objects = len(saved.meta_graphs) == 1 and saved.meta_graphs[0].HasField("object_graph_def")
    for meta_graph in saved.meta_graphs:
        if has_objects:
            _drop_graph(meta_graph)
        _screen(meta_graph, source)
    copy = folder / "screened"
    copy.mkdir()
    (copy / "saved_model.pb").write_bytes(saved.SerializeToString())
    for name in ("assets", "variables"):
        if (source / name).is_dir():
            (copy / name).symlink_to(source.resolve() / name)
    return copy


def _screen(meta_graph: Any, source: Path) -> None:
    """Raise if what is in a graph and its functions may do more than compute, writers of variables aside."""
    graph = meta_graph.graph_def
    _drop_writers(graph)
    fed = _clear_file_name(graph, meta_graph.saver_def.filename_tensor_name)
    nodes = [node for node in graph.node if not (fed and node.op == "RestoreV2" and _plain(node.input[0]) == fed)]
    functions = graph.library.function
    refuse_effects(
        chain(nodes, *(function.node_def for function in functions)),
        {function.signature.name for function in functions},
        source,
        allowed=("ShardedFilename",),
        with_state=True,
    )


def _drop_graph(meta_graph: Any) -> None:
    """Leave only what TensorFlow 2 reads: the functions that objects use, and the graph's constants."""
    graph = meta_graph.graph_def
    constants = [node for node in graph.node if node.op == "Const"]
    library = {function.signature.name: function for function in graph.library.function}
    pending = [*meta_graph.object_graph_def.concrete_functions]
    pending += [gradient.gradient_func for gradient in graph.library.registered_gradients]
    pending += [gradient.gradient_func for gradient in graph.library.gradient]
    needed: set[str] = set()
    while pending:
        name = pending.pop()
        if name in library and name not in needed:
            needed.add(name)
            pending += _mentioned(library[name])
    functions = [function for name, function in library.items() if name in needed]
    del graph.node[:], graph.library.function[:]
    graph.node.extend(constants)
    graph.library.function.extend(functions)


def _mentioned(function: Any) -> Iterator[str]:
    """Yield what may be names of functions that a function calls."""
    for node in function.node_def:
        yield node.op
        yield from _names_in(node.attr.values())
    yield from _names_in(function.attr.values())


def _names_in(attributes: Iterable[Any]) -> Iterator[str]:
    for attribute in attributes:
        yield attribute.func.name
        yield from (function.name for function in attribute.list.func)
        yield attribute.s.decode("utf-8", "replace")


def _drop_writers(graph: Any) -> None:
    """Turn what writes variables into nodes that do nothing; no other reads from them."""
    for node in graph.node:
        if node.op in _WRITERS:
            name = node.name
            node.Clear()
            node.name, node.op = name, "NoOp"


def _clear_file_name(graph: Any, tensor: str) -> str:
    """Take the name of the file to restore from out of a graph of TensorFlow 1, so that only the loader's is read.

    Returns:
        The node that the loader feeds; empty where there is none.
    """
    nodes = {node.name: node for node in graph.node}
    fed = name = nodes.get(_plain(tensor))
    for _ in range(2):  # as many defaults of defaults does TensorFlow make
        if name is not None and name.op == "PlaceholderWithDefault":
            name = nodes.get(_plain(name.input[0]))
    if fed is None or name is None or name.op != "Const":
        return ""
    value = name.attr["value"].tensor
    value.ClearField("tensor_content")
    value.string_val[:] = [b""]
    return str(fed.name)


def _plain(tensor: str) -> str:
    """Return the name of a tensor's node."""
    return tensor.removeprefix("^").partition(":")[0]
