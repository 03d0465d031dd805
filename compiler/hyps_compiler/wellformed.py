"""Whether a model can be right at all: versions, names, order, sizes of weights. No runtime is asked, nothing is run.

onnxruntime would refuse most of these models too, but late, after work, and in words about its own source code.
"""

from collections import Counter

import onnx
from google.protobuf.message import Message
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from hyps.errors import ModelError, printable
from hyps_compiler.limits import called, check_inlined, check_written, functions_by_name
from hyps_compiler.operators import known_operators
from hyps_compiler.ordering import order
from hyps_compiler.walk import Body, bodies, graphs_in, initializer_names

_EXPORT_AGAIN = "export the model again"


def check_model(model: ModelProto, shown: str) -> None:
    """Refuse a model that no runtime could run; `shown` is what to call its file.

    Raises:
        ModelError: it holds text that is none (`E_NOT_ONNX`), has no outputs (`E_EMPTY_GRAPH`), a version from the
            future (`E_VERSION`), an operator that onnxruntime does not have (`E_UNSUPPORTED_OP`), a tensor that is used
            and not made, made twice, or needed to make itself, a function that cannot be called so (`E_GRAPH`), or more
            nodes or nesting than any real model (`E_LIMIT`).
    """
    check_written(model, shown)
    if not _is_text_throughout(model):
        raise ModelError(f"{shown} is damaged: it holds a name that is no UTF-8", _EXPORT_AGAIN, "E_NOT_ONNX")
    check_inlined(model, shown)
    if not model.graph.output:
        raise ModelError(f"{shown} has no outputs, so there is nothing to compute", _EXPORT_AGAIN, "E_EMPTY_GRAPH")
    _check_versions(model, shown)
    _check_operators(model)
    _check_calls(model)
    outermost: list[Body] = [model.graph, *model.functions]  # graphs for training also use names of the model's
    for body in outermost:
        _check_names(body, set(), _inside(body))


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
    if not model.opset_import:
        raise ModelError(f"{shown} does not say of which opset its operators are", _EXPORT_AGAIN, "E_VERSION")
    newest = onnx.defs.onnx_opset_version()
    opsets = [*model.opset_import, *(opset for function in model.functions for opset in function.opset_import)]
    asked = max((opset.version for opset in opsets if opset.domain in ("", "ai.onnx")), default=0)
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
    own = functions_by_name(model)
    for body, _ in bodies(model):
        for node in body.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (domain, node.op_type) not in known and called(node) not in own:
                where = f" of domain `{printable(domain)}`" if domain else ""
                raise ModelError(
                    f"node `{_node_name(node)}` is a `{printable(node.op_type)}`{where},"
                    " an operator that onnxruntime does not have",
                    "export the model with standard operators only",
                    "E_UNSUPPORTED_OP",
                )


def _check_calls(model: ModelProto) -> None:
    """Refuse a call of one of the model's own functions with more inputs or outputs than it has."""
    functions = functions_by_name(model)
    for body, _ in bodies(model) if functions else ():
        for node in body.node:
            function = functions.get(called(node))
            for what in ("input", "output") if function is not None else ():
                given, has = len(getattr(node, what)), len(getattr(function, what))
                if given > has:
                    name = printable(node.op_type)
                    raise _graph_error(f"node `{_node_name(node)}` has {given} {what}s and function `{name}` has {has}")


def _check_names(body: Body, visible: set[str], where: str) -> None:
    """Make sure that every name is made once, and before itself; `visible` names of outer graphs are there already.

    Graphs nest no deeper than `check_written` allows.
    """
    given = _given_names(body)
    made: set[str] = set()
    for node in body.node:
        for name in filter(None, node.output):
            if name in made:
                raise _graph_error(f"two nodes make the tensor `{printable(name)}`{where}")
            if name in given:
                raise _graph_error(
                    f"node `{_node_name(node)}` makes the tensor `{printable(name)}`, which is given already{where}"
                )
            made.add(name)
    added = (given | made) - visible
    visible |= added
    for node in body.node:
        for name in filter(None, node.input):
            if name not in visible:
                raise _graph_error(
                    f"node `{_node_name(node)}` needs the tensor `{printable(name)}`, which nothing makes{where}"
                )
        for nested in graphs_in(node):
            _check_names(nested, visible, where)
    for name in _output_names(body):
        if name not in visible:
            raise _graph_error(f"nothing makes the output `{printable(name)}`{where}")
    visible -= added
    _check_order(body, where)


def _given_names(body: Body) -> set[str]:
    """Return the names of inputs and weights."""
    inputs = Counter(filter(None, _input_names(body)))
    for name, count in inputs.most_common(1):
        if count > 1:
            raise _graph_error(f"{count} inputs are called `{printable(name)}`{_inside(body)}")
    given = set(inputs)
    return given | initializer_names(body) if isinstance(body, GraphProto) else given


def _input_names(body: Body) -> list[str]:
    return list(body.input) if isinstance(body, FunctionProto) else [value.name for value in body.input]


def _output_names(body: Body) -> list[str]:
    return list(body.output) if isinstance(body, FunctionProto) else [value.name for value in body.output]


def _inside(body: Body) -> str:
    """Return where a fault lies, behind the sentence that says what it is."""
    return f" inside function `{printable(body.name)}`" if isinstance(body, FunctionProto) else ""


def _check_order(body: Body, where: str) -> None:
    """Refuse a cycle. Nodes need not be sorted: onnxruntime sorts them itself."""
    sequence, needs = order(body)
    if len(sequence) < len(body.node):
        node = body.node[_on_cycle(needs, set(range(len(body.node))).difference(sequence))]
        raise _graph_error(f"node `{_node_name(node)}` needs its own output: the graph has a cycle{where}")


def _on_cycle(needs: list[set[int]], waiting: set[int]) -> int:
    """Return a node that lies on a cycle, not merely behind one."""
    index = min(waiting)
    seen: set[int] = set()
    while index not in seen:
        seen.add(index)
        index = min(needs[index] & waiting)
    return index


def _node_name(node: NodeProto) -> str:
    """Return what to call a node: its name, or of what it makes."""
    made = next(filter(None, node.output), "")
    return printable(node.name or made or node.op_type)


def _graph_error(message: str) -> ModelError:
    return ModelError(message, _EXPORT_AGAIN, "E_GRAPH")
