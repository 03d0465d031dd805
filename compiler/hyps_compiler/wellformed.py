"""Whether a model can be right at all: versions, names, order, sizes of weights. No runtime is asked, nothing is run.

onnxruntime would refuse most of these models too, but late, after work, and in words about its own source code.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence, Set

import onnx
import onnx_ir as ir
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from hyps.errors import ModelError, printable
from hyps_compiler.operators import known_operators

_EXPORT_AGAIN = "export the model again"
_MOST_ELEMENTS = 2**62
_DTYPES = frozenset(kind.value for kind in ir.DataType)


def check_model(model: ModelProto, shown: str) -> None:
    """Refuse a model that no runtime could run; `shown` is what to call its file.

    Raises:
        ModelError: it holds text that is none (`E_NOT_ONNX`), has no outputs (`E_EMPTY_GRAPH`), a version from the
            future (`E_VERSION`), an operator that onnxruntime does not have (`E_UNSUPPORTED_OP`), or a tensor that is
            used and not made, made twice, or needed to make itself (`E_GRAPH`).
    """
    if not _is_text_throughout(model):
        raise ModelError(f"{shown} is damaged: it holds a name that is no UTF-8", _EXPORT_AGAIN, "E_NOT_ONNX")
    if not model.graph.output:
        raise ModelError(f"{shown} has no outputs, so there is nothing to compute", _EXPORT_AGAIN, "E_EMPTY_GRAPH")
    _check_versions(model, shown)
    _check_operators(model)
    _check_names(model.graph, frozenset())


def check_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor of no known type, or whose dimensions are impossible or do not match its bytes.

    Raises:
        ModelError: as said (`E_TENSOR`).
    """
    name = printable(tensor.name)
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"tensor `{name}` has the negative dimension {min(tensor.dims)}", _EXPORT_AGAIN, "E_TENSOR")
    if tensor.data_type not in _DTYPES:
        message = f"tensor `{name}` is of element type {tensor.data_type}, which onnx {onnx.__version__} does not know"
        raise ModelError(message, "export it for an older version, or upgrade onnx and onnxruntime", "E_TENSOR")
    expected = tensor_nbytes(tensor)
    if tensor.HasField("raw_data") and expected is not None and len(tensor.raw_data) != expected:
        raise ModelError(
            f"tensor `{name}` holds {len(tensor.raw_data)} bytes and its shape {_shape(tensor)} needs {expected}",
            _EXPORT_AGAIN,
            "E_TENSOR",
        )


def tensor_nbytes(tensor: TensorProto) -> int | None:
    """Return the bytes that a tensor's shape and element type take; None for strings."""
    kind = ir.DataType(tensor.data_type)
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return -(-_count(tensor.dims) * kind.bitwidth // 8)


def _count(dims: Sequence[int]) -> int:
    """Return the number of elements; no more than is impossible anyway, so that a stranger's dims cost no time."""
    if 0 in dims:
        return 0
    count = 1
    for size in dims:
        count *= size
        if count > _MOST_ELEMENTS:
            return _MOST_ELEMENTS
    return count


def _is_text_throughout(message: Message) -> bool:
    """Return whether every text in the message is one: protobuf hands out bytes where it is not."""
    if isinstance(message, TensorProto):  # its data is long, and no text
        return _is_text(message.name) and all(map(_is_text_throughout, message.external_data))
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        values = (value,) if isinstance(value, (str, bytes, Message)) else value
        is_right = _is_text_throughout if field.type == field.TYPE_MESSAGE else _is_text
        if not all(map(is_right, values)):
            return False
    return True


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_versions(model: ModelProto, shown: str) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{shown} has IR version {model.ir_version} and onnx {onnx.__version__} reads up to {onnx.IR_VERSION}",
            "export it for an older version, or upgrade onnx and onnxruntime",
            "E_VERSION",
        )
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if not opsets:
        raise ModelError(f"{shown} does not say of which opset its operators are", _EXPORT_AGAIN, "E_VERSION")
    newest = onnx.defs.onnx_opset_version()
    asked = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    if asked > newest:
        raise ModelError(
            f"{shown} has opset {asked} and onnx {onnx.__version__} knows up to {newest}",
            f"export it for opset {newest} or older, or upgrade onnx and onnxruntime",
            "E_VERSION",
        )


def _check_operators(model: ModelProto) -> None:
    known = known_operators()
    if not known:
        return
    own = {(function.domain, function.name) for function in model.functions}
    bodies = (function.node for function in model.functions)
    for node in _all_nodes((model.graph.node, *bodies)):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) not in known and (node.domain, node.op_type) not in own:
            where = f" of domain `{printable(domain)}`" if domain else ""
            raise ModelError(
                f"node `{_node_name(node)}` is a `{printable(node.op_type)}`{where},"
                " an operator that onnxruntime does not have",
                "export the model with standard operators only",
                "E_UNSUPPORTED_OP",
            )


def _all_nodes(groups: Iterable[Iterable[NodeProto]]) -> Iterator[NodeProto]:
    """Yield nodes, and those of the graphs in them."""
    for group in groups:
        for node in group:
            yield node
            yield from _all_nodes(graph.node for graph in _graphs_in(node))


def _check_names(graph: GraphProto, outer: Set[str]) -> None:
    """Make sure that every name in the graph is made once, and before itself; `outer` names are there already."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in makers:
                raise _graph_error(f"two nodes make the tensor `{printable(name)}`")
            makers[name] = index
    known = outer | given | makers.keys()
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                raise _graph_error(
                    f"node `{_node_name(node)}` needs the tensor `{printable(name)}`, which nothing makes"
                )
        for nested in _graphs_in(node):
            _check_names(nested, known)
    for value in graph.output:
        if value.name not in known:
            raise _graph_error(f"nothing makes the output `{printable(value.name)}`")
    _check_order(graph, makers)


def _check_order(graph: GraphProto, makers: dict[str, int]) -> None:
    """Refuse a cycle. Nodes need not be sorted: onnxruntime sorts them itself."""
    needs = [{makers[name] for name in _read_names(node) if name in makers} for node in graph.node]
    waiting = [len(made) for made in needs]
    readers: list[list[int]] = [[] for _ in graph.node]
    for index, made in enumerate(needs):
        for maker in made:
            readers[maker].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if any(waiting):
        node = graph.node[_on_cycle(needs, waiting)]
        raise _graph_error(f"node `{_node_name(node)}` needs its own output: the graph has a cycle")


def _on_cycle(needs: list[set[int]], waiting: list[int]) -> int:
    """Return a node that lies on a cycle, not merely behind one."""
    index = next(index for index, count in enumerate(waiting) if count)
    seen: set[int] = set()
    while index not in seen:
        seen.add(index)
        index = min(maker for maker in needs[index] if waiting[maker])
    return index


def _read_names(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that its nested graphs capture included."""
    yield from filter(None, node.input)
    for graph in _graphs_in(node):
        inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        inner.update(name for child in graph.node for name in child.output)
        for child in graph.node:
            yield from (name for name in _read_names(child) if name not in inner)
        yield from (value.name for value in graph.output if value.name not in inner)


def _graphs_in(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _node_name(node: NodeProto) -> str:
    """Return what to call a node: its name, or of what it makes."""
    made: Collection[str] = [name for name in node.output if name]
    return printable(node.name or next(iter(made), "") or node.op_type)


def _shape(tensor: TensorProto) -> str:
    return " x ".join(map(str, tensor.dims[:8])) or "scalar"


def _graph_error(message: str) -> ModelError:
    return ModelError(message, _EXPORT_AGAIN, "E_GRAPH")
