"""The uncut model as the judge of its plan: what it computes at every border, and at those of H-partitions."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper

from hyps.formats.plan import Plan, Shard
from hyps_compiler.ort import Level, open_session
from hyps_compiler.subgraphs import Model, Piece, load_model

_UNTOLD = re.compile("bfloat16|float8|float4|int4|int2")

_SLICE_BY_INPUTS = 10
"""The opset from which `Slice` takes its bounds as inputs."""


def open_oracle(staged: Path, folder: Path, plan: Plan) -> Model:
    """Return the staged model in which every border of the plan is a tensor.

    An H-partition makes a part of a tensor of the model: that part is cut out of the model's own tensor by a `Slice`,
    along the axis and range that the plan states. Which tensor it is a part of is told by the `Concat` that merges it.
    """
    model = load_model(staged)
    shards = {name: part.shard for part in plan.partitions if part.shard is not None for name in part.outputs}
    missing = {name: shard for name, shard in shards.items() if name not in model.makers}
    if not missing:
        return model
    merges = [node for part in plan.partitions for node in _concats(folder / part.file)]
    parts = {
        name: (node.output[0], missing[name])
        for node in merges
        if node.output[0] in model.makers
        for name in node.input
        if name in missing
    }
    return with_parts(model, parts)


def with_parts(model: Model, parts: Mapping[str, tuple[str, Shard]]) -> Model:
    """Return the model in which each of `parts` is the part of a tensor that a shard makes."""
    proto = model.proto
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    for number, (name, (whole, shard)) in enumerate(sorted(parts.items())):
        (start, stop), node_name = shard.range, f"hyps.part.{len(proto.graph.node)}.{number}"
        if opset < _SLICE_BY_INPUTS:
            node = helper.make_node("Slice", [whole], [name], node_name, starts=[start], ends=[stop], axes=[shard.axis])
        else:
            bounds = {
                f"{node_name}.{word}": value for word, value in zip("sea", (start, stop, shard.axis), strict=True)
            }
            proto.graph.initializer.extend(
                numpy_helper.from_array(np.array([value], np.int64), key) for key, value in bounds.items()
            )
            node = helper.make_node("Slice", [whole, *bounds], [name], node_name)
        proto.graph.node.append(node)
    return Model(proto, model.folder)


def expose(model: Model, names: Iterable[str]) -> ort.InferenceSession:
    """Return a session, without graph optimizations, that tells the named tensors as well as the model's outputs.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    return open_session(model.exposing(list(names)).SerializeToString(), "none", folder=model.folder)


def open_piece(model: Model, piece: Piece, values: Mapping[str, Any], level: Level = "none") -> ort.InferenceSession:
    """Return a session of a piece of the model whose inputs are like those in `values`.

    Raises:
        ModelError: onnxruntime refuses the piece.
    """
    proto = model.build(piece, values)
    return open_session(proto.SerializeToString(), level, folder=model.folder, prepack=level == "default")


def told(session: Any) -> set[str]:
    """Return the outputs of a session that it can hand to numpy, which has no bfloat16, for one."""
    return {info.name for info in session.get_outputs() if not _UNTOLD.search(info.type)}


def _concats(path: Path) -> list[NodeProto]:
    return [node for node in load_model(path).proto.graph.node if node.op_type == "Concat"]
