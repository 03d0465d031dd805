"""Writes a model to a file weight by weight: protobuf's own serialization takes three times the model's memory."""

from typing import BinaryIO

from onnx import GraphProto, ModelProto, TensorProto

_GRAPH_FIELD = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER_FIELD = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA_FIELD = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write_model(model: ModelProto, file: BinaryIO) -> None:
    """Write `model`, whose weights are raw data, in protobuf's wire format; the same model gives the same bytes.

    Of the graph, what `Net` writes is kept: name, nodes, inputs, outputs and initializers.
    """
    graph = model.graph
    head = ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, opset_import=model.opset_import)
    skeleton = GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    body = skeleton.SerializeToString(deterministic=True)
    fronts = [_initializer_front(tensor) for tensor in graph.initializer]
    nbytes = len(body) + sum(len(front) + data_nbytes for front, data_nbytes in fronts)
    file.write(head.SerializeToString(deterministic=True))
    file.write(_header(_GRAPH_FIELD, nbytes))
    file.write(body)
    for tensor, (front, _) in zip(graph.initializer, fronts, strict=True):
        file.write(front)
        file.write(tensor.raw_data)


def _initializer_front(tensor: TensorProto) -> tuple[bytes, int]:
    """Return the bytes of an initializer up to its data, and how many bytes of data follow."""
    described = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    data_nbytes = len(tensor.raw_data)
    message = bytes(described.SerializeToString(deterministic=True)) + _header(_RAW_DATA_FIELD, data_nbytes)
    return _header(_INITIALIZER_FIELD, len(message) + data_nbytes) + message, data_nbytes


def _header(field: int, nbytes: int) -> bytes:
    """Return the tag of a length-delimited field and the length."""
    return _varint(field << 3 | 2) + _varint(nbytes)


def _varint(number: int) -> bytes:
    """Return `number` in groups of seven bits, lowest first, the top bit set on all but the last."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
