"""Makes a model of what has grown: its outputs, the order of its nodes, and where its weights stand."""

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper

from generated.grown import Grown, can_move, element_types
from generated.values import FLOAT, Tensor

if TYPE_CHECKING:
    from generated.grower import Grower

_MOST_OUTPUTS = 4


def finished(grower: "Grower") -> Grown:
    """Return the model; what is strange about it is the grower's choice."""
    outputs = [*_outputs(grower), *grower.outputs]
    _strange_outputs(grower, outputs)
    inputs = [given.info for given in grower.inputs]
    ir_version = _weights_as_inputs(grower, inputs)
    nodes = _ordered(grower)
    dense, sparse = _sparse_weights(grower)
    graph = helper.make_graph(nodes, "grown", inputs, outputs, dense, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", grower.opset)]
    opsets += [helper.make_opsetid(domain, version) for domain, version in sorted(grower.domains.items())]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=ir_version, producer_name="tests", functions=grower.functions
    )
    data_files = _data_files(grower, model)
    return Grown(
        model,
        tuple(grower.inputs),
        frozenset(grower.features) | _plain_features(grower, model),
        tuple(grower.recipes),
        frozenset(info.name for info in outputs if info.name in grower.rounded),
        data_files,
        grower.opset,
        grower.needs_rows,
    )


def _outputs(grower: "Grower") -> list[ValueInfoProto]:
    unseen = [v for v in grower.values if v.name not in grower.used and v.name not in grower.input_names]
    made = [v for v in grower.values if v.name not in grower.input_names]
    outputs = unseen[-_MOST_OUTPUTS:] or made[-1:]
    if len(unseen) > _MOST_OUTPUTS:
        grower.features.add("nodes that nobody needs")
    if made and grower.choose(3) == 0:
        outputs.append(made[grower.choose(len(made))])  # one that others use as well, perhaps
    return [_declared(grower, value) for value in dict.fromkeys(outputs) if _can_be_fed_back(value)]


def _can_be_fed_back(value: Tensor) -> bool:
    return value.of != TensorProto.BFLOAT16


def _declared(grower: "Grower", value: Tensor) -> ValueInfoProto:
    """Return the output's declaration; some say nothing of the shape."""
    info = value.info
    if grower.choose(8) == 0:
        info.type.tensor_type.ClearField("shape")
        grower.features.add("an output is declared without a rank")
    return info


def _strange_outputs(grower: "Grower", outputs: list[ValueInfoProto]) -> None:
    if grower.choose(5) == 0:
        outputs.append(grower.inputs[grower.choose(len(grower.inputs))].info)
        grower.features.add("an input is an output")
    names = [name for name, value in grower.arrays.items() if value.ndim]
    if names and grower.choose(5) == 0:
        name = names[grower.choose(len(names))]
        outputs.append(Tensor(name, grower.arrays[name].shape).info)
        grower.features.add("an initializer is an output")
    if grower.choose(8) == 0:
        name = grower.name()
        three = numpy_helper.from_array(np.arange(3, dtype=np.float32))
        grower.nodes.append(helper.make_node("Constant", [], [name], value=three))
        outputs.append(Tensor(name, (3,)).info)
        grower.features.add("a constant is an output")
    if outputs and grower.choose(8) == 0:
        outputs.append(outputs[grower.choose(len(outputs))])
        grower.features.add("a value is an output twice")
    if not outputs:
        first = grower.values[0]
        outputs.append(grower.op("Neg", [first.name], first.shape).info)


def _weights_as_inputs(grower: "Grower", inputs: list[ValueInfoProto]) -> int:
    """List the initializers as inputs too, as old models do; return the IR version."""
    newest = 10 if grower.opset > 20 else 8
    if grower.choose(4) or not grower.weights:
        return newest
    inputs.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in grower.weights.values()
    )
    grower.features.add("initializers are inputs")
    return newest if grower.choose(2) else grower.least_ir


def _ordered(grower: "Grower") -> list[NodeProto]:
    order = grower.choose(4)
    if order == 0:
        grower.features.add("not sorted")
        return list(reversed(grower.nodes))
    if order == 1 and len(grower.nodes) > 1:
        grower.features.add("not sorted")
        shuffled = np.random.default_rng(grower.choose(64)).permutation(len(grower.nodes))
        return [grower.nodes[index] for index in shuffled]
    return grower.nodes


def _sparse_weights(grower: "Grower") -> tuple[list[TensorProto], list[SparseTensorProto]]:
    """Make some matrices sparse: those have zeros from then on, which is no harm to a random model."""
    dense = list(grower.weights.values())
    listed = "initializers are inputs" in grower.features  # onnxruntime wants defaults of inputs dense
    used = grower.arrays.keys() & grower.used
    fits = [t for t in dense if t.name in used and len(t.dims) == 2 and t.data_type == FLOAT]
    if listed or "an initializer is an output" in grower.features or not fits or grower.choose(6):
        return dense, []
    chosen = fits[grower.choose(len(fits))]
    grower.features.add("a sparse initializer")
    return [t for t in dense if t is not chosen], [_sparse(chosen)]


def _sparse(tensor: TensorProto) -> SparseTensorProto:
    values = numpy_helper.to_array(tensor).reshape(-1)
    kept = np.arange(0, values.size, 3)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values[kept], tensor.name),
        numpy_helper.from_array(kept.astype(np.int64)),
        list(tensor.dims),
    )


def _data_files(grower: "Grower", model: ModelProto) -> int:
    if not any(map(can_move, model.graph.initializer)):
        return 0
    count = (0, 0, 0, 1, 2)[grower.choose(5)]
    if count:
        grower.features.add(("external data in one file", "external data in many files")[count - 1])
    return count


def _plain_features(grower: "Grower", model: ModelProto) -> set[str]:
    """Return features that can be seen in the finished model."""
    found = {f"opset {grower.opset}", f"IR {model.ir_version}"} | {f"type {name}" for name in element_types(model)}
    if grower.batch == "N":
        found.add("an open batch")
    if len(grower.domains) > 1:
        found.add("several domains")
    return found
