"""Model files in and out of onnx-ir, with what it has no words for: types of maps, and sparse weights."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import GraphProto, NodeProto, SparseTensorProto, TensorProto, TypeProto, ValueInfoProto, numpy_helper
from onnx_ir.external_data import set_base_dir

from hyps_compiler.interop.annotations import drop_annotations
from hyps_compiler.walk import inside

_TYPE = "hyps.type"
"""Key in `Value.meta` of a type that onnx-ir cannot hold, as protobuf's bytes."""

ORT_TYPE = "hyps.ort_type"
"""Key in `Value.meta` of onnxruntime's words for the type of what is no tensor, such as `seq(tensor(float))`."""


def load_model(path: Path) -> ir.Model:
    """Return the model; weights in other files stay there, mapped. Sparse weights become dense, as in onnxruntime.

    Annotations for several devices are left out: rewriting a node would leave them without what they speak of.
    """
    proto = onnx.load(os.fspath(path), format="protobuf", load_external_data=False)
    for body, _ in inside(proto.graph, *proto.functions):
        if isinstance(body, GraphProto):
            body.initializer.extend(_dense(sparse, path.parent) for sparse in body.sparse_initializer)
            del body.sparse_initializer[:]
            _drop_doubled_constants(body)
        _make_constants_dense(body.node, path.parent)
    types = _take_types(proto.graph)
    drop_annotations(proto)
    model = ir.serde.deserialize_model(proto)
    set_base_dir(model.graph, os.fspath(path.parent))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if str(value.name) in types:
            value.meta[_TYPE] = types[str(value.name)]
    return model


def save_model(model: ir.Model, path: Path) -> None:
    """Write the model; its weights in other files stay there."""
    proto = ir.serde.serialize_model(model)
    for value, info in zip(model.graph.inputs, proto.graph.input, strict=True):
        _give_type(value, info)
    for value, info in zip(model.graph.outputs, proto.graph.output, strict=True):
        _give_type(value, info)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def serialize_value(value: ir.Value) -> ValueInfoProto:
    """Return name, type and shape of a value as a file has them."""
    info = ir.serde.serialize_value(value)
    _give_type(value, info)
    return info


def _give_type(value: ir.Value, info: ValueInfoProto) -> None:
    if _TYPE in value.meta:
        info.type.ParseFromString(value.meta[_TYPE])


def _take_types(graph: GraphProto) -> dict[str, bytes]:
    """Remove types that onnx-ir cannot hold, and return those of the model's inputs and outputs by name."""
    taken = {}
    for inner, _ in inside(graph):
        assert isinstance(inner, GraphProto)
        for value in (*inner.input, *inner.output, *inner.value_info):
            if _has_map(value.type):
                if inner is graph:
                    taken[value.name] = value.type.SerializeToString(deterministic=True)
                value.ClearField("type")
    return taken


def _has_map(kind: TypeProto) -> bool:
    while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
        kind = getattr(kind, kind.WhichOneof("value")).elem_type
    return kind.WhichOneof("value") in ("map_type", "opaque_type")


def _drop_doubled_constants(graph: GraphProto) -> None:
    """Remove nodes whose value is an initializer as well: onnxruntime saves some nested constants as both."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [node for node in graph.node if node.op_type != "Constant" or node.output[0] not in weights]
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _make_constants_dense(nodes: Sequence[NodeProto], folder: Path) -> None:
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "sparse_value":
                dense = _dense(attribute.sparse_tensor, folder)
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(dense)


def _dense(sparse: SparseTensorProto, folder: Path) -> TensorProto:
    """Return a sparse tensor, which has been checked, as a dense one; its indices are positions or coordinates."""
    dims = tuple(sparse.dims)
    values = numpy_helper.to_array(sparse.values, base_dir=os.fspath(folder))
    indices = numpy_helper.to_array(sparse.indices).astype(np.int64)
    dense = np.zeros(dims, values.dtype)
    dense.reshape(-1)[np.ravel_multi_index(tuple(indices.T), dims) if indices.ndim == 2 else indices] = values
    return numpy_helper.from_array(dense, sparse.values.name)
