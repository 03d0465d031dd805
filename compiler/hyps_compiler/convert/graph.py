"""A frozen TensorFlow graph made into an ONNX model by tf2onnx.

Imports TensorFlow and tf2onnx: for the child process only.
"""

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tf2onnx import optimizer, tf_loader
from tf2onnx.handler import tf_op
from tf2onnx.tfonnx import process_tf_graph

from hyps.errors import ModelError, printable
from hyps_compiler.convert.request import first_line


def converter_version() -> str:
    """Return name and version of the converter."""
    return f"tf2onnx {tf2onnx.__version__}"


def translated_operations() -> set[str]:
    """Return the TensorFlow operations that have a translation; all of them only compute."""
    return {name for opsets in tf_op.get_opsets().values() for opset in opsets for name in opset}


@tf_op("Erfc")
class _ComplementaryError:
    """Translates 1 - erf(x), which Keras' exact GELU is made of and tf2onnx 1.17 does not know."""

    @classmethod
    def version_9(cls, graph: Any, node: Any, **_: Any) -> None:
        """Replace the node by Sub(1, Erf(x)); called by tf2onnx."""
        (shape,), (dtype,) = node.output_shapes, node.output_dtypes
        graph.remove_node(node.name)
        one = graph.make_const(f"{node.name}_one", np.array(1, onnx.helper.tensor_dtype_to_np_dtype(dtype)))
        error = graph.make_node("Erf", node.input, name=f"{node.name}_erf", shapes=[shape], dtypes=[dtype])
        graph.make_node(
            "Sub", [one.output[0], error.output[0]], name=node.name, outputs=node.output, shapes=[shape], dtypes=[dtype]
        )


def to_onnx(
    graph_def: Any, *, inputs: dict[str, str], outputs: dict[str, str], opset: int, source_name: str
) -> onnx.ModelProto:
    """Return a frozen graph as an ONNX model with exactly the given inputs and outputs.

    Args:
        graph_def: the frozen graph.
        inputs: TensorFlow's tensor name -> the ONNX input's name.
        outputs: the same for outputs.
        opset: the version of ONNX's operators.
        source_name: for messages.

    Raises:
        ModelError: an operation has no counterpart in ONNX.
    """
    _refuse_tables(graph_def, source_name)
    input_tensors, output_tensors = list(inputs), list(outputs)
    with tf.Graph().as_default():
        optimized = tf_loader.tf_optimize(input_tensors, output_tensors, graph_def)
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(optimized, name="")
        del optimized
        onnx_graph = process_tf_graph(
            tf_graph,
            opset=opset,
            input_names=input_tensors,
            output_names=output_tensors,
            tensors_to_rename=inputs | outputs,
        )
    return finish(onnx_graph, list(inputs.values()), source_name)


def finish(onnx_graph: Any, input_names: Sequence[str], source_name: str) -> onnx.ModelProto:
    """Return what tf2onnx made as an ONNX model, optimized and checked, with its inputs in the given order.

    Raises:
        ModelError: an operation has no counterpart in ONNX.
    """
    gc.freeze()  # what is there already, TensorFlow's modules above all, need not be walked before every pass
    onnx_graph = optimizer.optimize_graph(onnx_graph, catch_errors=True, optimizers=_collecting_optimizers())
    gc.unfreeze()
    gc.collect()
    model: onnx.ModelProto = onnx_graph.make_model(f"converted from {source_name}")
    _refuse_foreign_operations(model.graph, source_name, {item.domain: item.version for item in model.opset_import})
    _order_inputs(model.graph, input_names)
    _refuse_mixed_types(model, source_name)
    return model


def _collecting_optimizers() -> "OrderedDict[str, Callable[[], Any]]":
    """Return tf2onnx's passes, each preceded by a garbage collection.

    Every pass works on a deep copy of the graph, and old copies are cycles: without this they pile up to 2.8 times
    the weights per pass.
    """

    def collecting(factory: Callable[[], Any]) -> Callable[[], Any]:
        def make() -> Any:
            gc.collect()
            return factory()

        return make

    return OrderedDict((name, collecting(factory)) for name, factory in optimizer._get_optimizers().items())


def _refuse_tables(graph_def: Any, source_name: str) -> None:
    """Raise if the graph looks words or numbers up in a table, which lies outside the graph."""
    for node in graph_def.node:
        if node.op.startswith("LookupTable"):
            raise ModelError(
                f"`{source_name}` looks its input up in a table (`{printable(node.name)}`), which is not converted",
                "leave the look-up layers out of the model and look the input up before",
            )


def _refuse_mixed_types(model: onnx.ModelProto, source_name: str) -> None:
    """Raise if the operators' types do not fit: tf2onnx makes float16 of some bfloat16 tensors."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            f"tf2onnx makes an invalid ONNX model of `{source_name}`: {first_line(error)}",
            "build the model with the dtype policy `float32`",
        ) from error


def _refuse_foreign_operations(graph: onnx.GraphProto, source_name: str, opsets: dict[str, int]) -> None:
    """Raise if a node, at any depth, is no ONNX operator: tf2onnx leaves what it cannot translate as it is."""
    for node in graph.node:
        if not onnx.defs.has(node.op_type, opsets.get(node.domain, 1), node.domain):
            raise ModelError(
                f"`{source_name}` uses the TensorFlow operation `{printable(node.op_type)}`, "
                "which tf2onnx cannot express in ONNX",
                "a newer opset may have it (--opset); otherwise build the model without that operation",
            )
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _refuse_foreign_operations(attribute.g, source_name, opsets)


def _order_inputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Bring the graph's inputs into the model's order."""
    found = {value.name: value for value in graph.input}
    ordered = [found[name] for name in names if name in found]
    del graph.input[:]
    graph.input.extend(ordered)
