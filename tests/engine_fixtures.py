"""Small networks for the division engine: built node by node, divided, and run whole and in pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from cut_fixtures import Array, plain_session
from hyps_passes import ops
from hyps_passes.division.engine import Divide
from hyps_passes.division.region import Region
from hyps_passes.rewrites.normalize import normalize
from model_fixtures import model_of

Sizes = dict[str, tuple[int, ...]]

OPEN = 3
"""The size that requests have where the model leaves it open."""

COPIES = frozenset({"Add", "Concat", "Slice", "Sum"})


class Net:
    """A network in the making; node `n3` makes value `v3`."""

    def __init__(self, inputs: Mapping[str, Sequence[int | str]], *, seed: int = 0, opset: int = 17) -> None:
        """Take the shapes of the inputs; a word is an open dimension, 1 when it is divided and `OPEN` when it runs."""
        self.inputs, self.opset = dict(inputs), opset
        self._rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def weight(self, *shape: int, dtype: Any = np.float32) -> str:
        """Return the name of a new weight of random numbers."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(self._rng.standard_normal(shape) * 0.5).astype(dtype)
        return name

    def constant(self, value: Any) -> str:
        """Return the name of a new weight."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def add(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its first output; further ones end in `.1`, `.2`."""
        number = len(self.nodes)
        made = [f"v{number}", *(f"v{number}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), made, f"n{number}", domain=domain, **attributes))
        return made[0]

    def proto(self, *outputs: str) -> onnx.ModelProto:
        """Return the model, with inferred shapes."""
        given = [helper.make_tensor_value_info(name, 1, list(shape)) for name, shape in self.inputs.items()]
        made = [onnx.ValueInfoProto(name=name) for name in outputs]
        contrib = any(node.domain for node in self.nodes)
        model = model_of(self.nodes, given, made, self.weights, opset=self.opset, contrib=contrib)
        return onnx.shape_inference.infer_shapes(model, strict_mode=not contrib)

    def feeds(self, seed: int = 1) -> dict[str, Array]:
        """Return a request."""
        rng = np.random.default_rng(seed)
        return {
            name: rng.standard_normal([size if isinstance(size, int) else OPEN for size in shape]).astype(np.float32)
            for name, shape in self.inputs.items()
        }


@dataclass(frozen=True)
class Divided:
    """A model in two forms."""

    whole: onnx.ModelProto
    model: ir.Model
    sizes: Sizes

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return what the whole and what the divided model computes."""
        proto = ir.serde.serialize_model(self.model)
        onnx.checker.check_model(proto, full_check=not self._is_contrib)
        return answers(self.whole, feeds), answers(proto, feeds)

    def computed(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return multiply-accumulates by operator, and elements made where there are none: whole and divided."""
        whole = ir.serde.deserialize_model(self.whole)
        return _work(whole, sizes_of(whole)), _work(self.model, self.sizes)

    @property
    def _is_contrib(self) -> bool:
        return any(node.domain for node in self.whole.graph.node)


def divided(
    whole: onnx.ModelProto, nodes: Sequence[str], axis: int | None, count: int, *, carry: bool = False
) -> Divided:
    """Return the model with some of its nodes divided.

    Raises:
        IndivisibleError: they cannot be.
    """
    model = prepared(whole)
    sizes = sizes_of(model)
    Divide(Region("region", tuple(nodes), axis, carry), count).apply(model, sizes)
    return Divided(whole, model, sizes)


def prepared(whole: onnx.ModelProto) -> ir.Model:
    """Return the model as the passes know it."""
    return normalize(ir.serde.deserialize_model(whole))


def sizes_of(model: ir.Model) -> Sizes:
    """Return the inferred shapes; open dimensions have size 1."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {
        str(value.name): tuple(dim if isinstance(dim, int) else 1 for dim in value.shape)
        for value in values
        if value.shape is not None
    }


def answers(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return what onnxruntime computes, without graph optimizations."""
    session = plain_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _work(model: ir.Model, sizes: Sizes) -> dict[str, int]:
    shapes = ops.Shapes(sizes)
    work: dict[str, int] = {}
    for node in model.graph:
        if node.op_type not in COPIES:
            made = [shape for shape in map(shapes, node.outputs) if shape is not None]
            amount = ops.macs(node, shapes) or sum(int(np.prod(shape)) for shape in made)
            work[node.op_type] = work.get(node.op_type, 0) + amount
    return work
