"""Names in what tf2onnx makes brought to what users know: no `:0`, no name of the whole model before each, named sizes.

Imports neither TensorFlow nor tf2onnx.
"""

from collections.abc import Iterable, Mapping

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from hyps_compiler.walk import bodies

_MADE_UP = "unk__"
"""How tf2onnx begins the name of a dimension that is open."""


def simplify_names(model: ModelProto) -> None:
    """Rename tensors and nodes: `vgg16_1/block1_conv1_1/Relu:0` becomes `block1_conv1_1/Relu`.

    Inputs and outputs of the model and inputs of nested graphs keep their names, and names stay different from each
    other: a nested graph that read a tensor of the outer one would otherwise read its own input of that name.
    """
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    kept |= {value.name for body, _ in bodies(model) if isinstance(body, GraphProto) for value in body.input}
    tensors = {name for body, _ in bodies(model) for node in body.node for name in node.output if name}
    tensors |= {item.name for body, _ in bodies(model) if isinstance(body, GraphProto) for item in body.initializer}
    scope = _common_scope(name for name in tensors - kept if "/" in name)
    renamed = _shorter(sorted(tensors - kept), scope, taken=kept)
    nodes = _shorter([node.name for body, _ in bodies(model) for node in body.node if node.name], scope, taken=())
    for body, _ in bodies(model):
        for node in body.node:
            node.name = nodes.get(node.name, node.name)
            _rename(node, renamed)
        if isinstance(body, GraphProto):
            for tensor in body.initializer:
                tensor.name = renamed.get(tensor.name, tensor.name)
            for value in (*body.value_info, *body.output):
                value.name = renamed.get(value.name, value.name)


def name_dims(graph: GraphProto, *, shares_batch: bool) -> None:
    """Name the open dimensions of inputs, and leave those of outputs to shape inference.

    Args:
        graph: the model's graph.
        shares_batch: whether the first open dimension of all inputs is the same one, as in Keras.
    """
    is_alone = len(graph.input) == 1
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if _is_open(value, axis):
                own = f"{value.name}_{axis}"
                dim.dim_param = "batch" if axis == 0 and (shares_batch or is_alone) else own
    for value in graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if _is_open(value, axis):
                dim.Clear()


def _is_open(value: ValueInfoProto, axis: int) -> bool:
    dim = value.type.tensor_type.shape.dim[axis]
    return not dim.HasField("dim_value") and (not dim.dim_param or dim.dim_param.startswith(_MADE_UP))


def _common_scope(names: Iterable[str]) -> str:
    """Return the first part that most of the names have in front, with its slash; empty where they do not share one."""
    counts: dict[str, int] = {}
    for name in names:
        scope = name[: name.index("/") + 1]
        counts[scope] = counts.get(scope, 0) + 1
    largest = max(counts, key=lambda scope: counts[scope], default="")
    return largest if largest and counts[largest] > sum(counts.values()) / 2 else ""


def _shorter(names: Iterable[str], scope: str, *, taken: Iterable[str]) -> dict[str, str]:
    """Return a shorter name for each that can have one; all stay different."""
    wanted = {name: name.removeprefix(scope).removesuffix(":0") or name for name in names}
    used = set(taken)
    for name, short in wanted.items():
        if short in used or (short != name and short in wanted):
            wanted[name] = name
        used.add(wanted[name])
    return wanted


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            names[index] = renamed.get(name, name)
