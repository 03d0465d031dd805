"""Writes an ONNX graph node by node, the way an exporter does: seeded weights, names for everything, opset 17."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

Floats = NDArray[np.float32]
Tensors = dict[str, NDArray[np.generic]]
"""Named input tensors of one request."""
Attribute = int | float | str | Sequence[int]


class Net:
    """A model under construction; the weights are drawn from one seeded generator in the order of the calls.

    The value that a node computes is named after the node: `classifier.fc1` computes `classifier.fc1.output`. The
    graph's messages are filled in place, so that no weight is ever held more than twice.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._model = ModelProto(ir_version=IR_VERSION, producer_name="hyps_models")
        self._model.opset_import.add(domain="", version=OPSET)
        self._model.graph.name = name

    def input(self, name: str, dims: Sequence[int | str], elem_type: int = TensorProto.FLOAT) -> str:
        """Declare an input of the model; a word in `dims` is a dimension that the request chooses."""
        self._model.graph.input.append(helper.make_tensor_value_info(name, elem_type, dims))
        return name

    def output(self, name: str, dims: Sequence[int | str], elem_type: int = TensorProto.FLOAT) -> None:
        """Declare the value `name` as an output of the model."""
        self._model.graph.output.append(helper.make_tensor_value_info(name, elem_type, dims))

    def node(self, op_type: str, name: str, inputs: Sequence[str], output: str = "", **attributes: Attribute) -> str:
        """Append a node with one output and return the output's name."""
        return self.nodes(op_type, name, inputs, [output or f"{name}.output"], **attributes)[0]

    def nodes(
        self, op_type: str, name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute
    ) -> Sequence[str]:
        """Append a node with several outputs, an empty name for one that is not wanted, and return `outputs`."""
        node = self._model.graph.node.add(op_type=op_type, name=name, input=inputs, output=outputs)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        return outputs

    def constant(self, name: str, values: float | int | Sequence[int]) -> str:
        """Append a `Constant` node: a float32 scalar, an int64 scalar, or a vector of int64."""
        array = np.asarray(values, np.float32 if isinstance(values, float) else np.int64)
        output = f"{name}.output"
        value = numpy_helper.from_array(array)
        self._model.graph.node.append(helper.make_node("Constant", [], [output], name, value=value))
        return output

    def tensor(self, name: str, array: NDArray[np.generic]) -> str:
        """Append an initializer and return its name."""
        data = array.tobytes()
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        dims = array.shape
        del array  # the protobuf message copies `data`: where the caller keeps nothing, two copies live, not three
        self._model.graph.initializer.add(name=name, data_type=elem_type, dims=dims).raw_data = data
        return name

    def normal(self, name: str, shape: Sequence[int], std: float) -> str:
        """Append a float32 initializer drawn from a normal distribution."""
        return self.tensor(name, self.drawn(shape, std))

    def drawn(self, shape: Sequence[int], std: float = 1.0) -> Floats:
        """Return an array drawn from a normal distribution of mean 0."""
        array = self.rng.standard_normal(tuple(shape), np.float32)
        array *= np.float32(std)
        return array

    def linear(self, x: str, name: str, inputs: int, outputs: int, gain: float = 1.0, output: str = "") -> str:
        """Append a dense layer on a matrix as one Gemm, weights stored `[outputs, inputs]`.

        `gain` is the mean square of an output over that of an input: 1 keeps it, 2 makes up for a Relu behind.
        """
        weight = self.normal(f"{name}.weight", (outputs, inputs), (gain / inputs) ** 0.5)
        bias = self.normal(f"{name}.bias", (outputs,), 0.05)
        return self.gemm(x, name, (weight, bias), output)

    def gemm(self, x: str, name: str, tensors: tuple[str, str], output: str = "") -> str:
        """Append a dense layer whose weights and biases are initializers that are there already."""
        return self.node("Gemm", name, [x, *tensors], output, alpha=1.0, beta=1.0, transB=1)

    def model(self) -> ModelProto:
        """Return the finished model."""
        return self._model
