"""What PyTorch's exporters leave in an ONNX model brought into the form that the source has: its names, nothing else.

Imports onnx_ir: for the child process only.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter says which submodules a node came from: a Python list, outermost first, the operator last."""

_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
"""What PyTorch calls the place of operators that it adds itself."""

_SCOPE = re.compile(r"'([^']*)'")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def tidy(
    model: ir.Model, *, inputs: Sequence[str], outputs: Sequence[str], dims: Mapping[str, str | int] | None = None
) -> None:
    """Name the inputs, outputs, nodes and open dimensions of a model, and take out all that is only for its makers.

    That is: where in the source file of which folder of whose computer an operator was written, and the like.

    Args:
        model: the model, which is changed.
        inputs: the names that its inputs shall have, in order.
        outputs: the same for its outputs.
        dims: the exporter's name of an open dimension -> its name, or the size to give it.
    """
    _name_nodes(model.graph)
    _name_values(
        [*zip(model.graph.inputs, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)], model
    )
    for value in _values(model):
        if dims and value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, dims) for dim in value.shape])
    _strip(model)


def _name_nodes(graph: ir.Graph) -> None:
    """Name every node after the submodule that it came from and its operator; all different."""
    seen: Counter[str] = Counter()
    for node in graph.all_nodes():
        base = f"{_scope(node)}/{node.op_type}".lstrip("/")
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base] - 1}"


def _scope(node: ir.Node) -> str:
    """Return the submodule in which a node was written, or whose weights it reads where that is not known."""
    weights = (value.name for value in node.inputs if value is not None and value.is_initializer() and value.name)
    owner = next((name.removesuffix(".weight") for name in weights if name.endswith(".weight")), "")
    if owner and node.op_type.startswith("Conv"):  # with a batch-norm folded into it, it says that it is that
        return owner
    scopes = _SCOPE.findall(node.metadata_props.get(_SCOPES, ""))
    return next((scope for scope in reversed(scopes[:-1]) if scope and scope != _NO_SCOPE), "" if scopes else owner)


def _name_values(wanted: Sequence[tuple[ir.Value, str]], model: ir.Model) -> None:
    """Give values their names; others that have one of them are called something else."""
    taken = {name for _, name in wanted}
    named = {id(value) for value, _ in wanted}
    for value in [*_values(model), *model.graph.initializers.values()]:
        if value.name in taken and id(value) not in named:
            value.name = _free(f"{value.name}_0", taken, model)
    for value, _ in wanted:  # in two steps, as two of them may change names
        value.name = _free("unnamed", taken, model)
    for value, name in wanted:
        value.name = name


def _free(base: str, taken: Iterable[str], model: ir.Model) -> str:
    """Return a name that begins with `base` and that no value has."""
    used = {*taken, *(value.name for value in _values(model)), *model.graph.initializers}
    name, number = base, 0
    while name in used:
        number += 1
        name = f"{base}{number}"
    return name


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the inputs of the graph, what the nodes at any depth compute, and inputs and weights of nested graphs."""
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().inputs
                yield from attribute.as_graph().initializers.values()


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str | int]) -> int | str | None:
    """Return a dimension by its new name; one computed from a size that is now known is left to shape inference."""
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    text = str(dim.value)
    known = names.get(text)
    if known is not None:
        return known
    if any(isinstance(names.get(symbol), int) for symbol in _SYMBOL.findall(text)):
        return None
    return _SYMBOL.sub(lambda match: str(names.get(match[0], match[0])), text)


def _strip(model: ir.Model) -> None:
    """Take comments and metadata out of a model and everything in it."""
    model.doc_string = None
    model.metadata_props.clear()
    graphs = {id(graph): graph for graph in (model.graph, *(node.graph for node in model.graph.all_nodes()))}
    for graph in graphs.values():
        if graph is not None:
            graph.doc_string = None
            graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
    for value in [*_values(model), *model.graph.initializers.values()]:
        value.doc_string = None
        value.metadata_props.clear()
        if value.const_value is not None and value.const_value.doc_string:
            value.const_value.doc_string = None
