"""The uncut model as the judge of its plan: what it computes at every border, and at those of H-partitions."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hyps.formats.plan import Plan, Shard
from hyps_compiler.ort import Level, open_session
from hyps_compiler.subgraphs import Model, Piece, load_model
from hyps_passes.claims import NEW, Claim, read_claims

_UNTOLD = re.compile("bfloat16|float8|float4|int4|int2")

_SLICE_BY_INPUTS = 10
"""The opset from which `Slice` takes its bounds as inputs."""


class Oracle(Model):
    """The staged model with parts of its tensors as tensors of their own."""

    def __init__(self, proto: ModelProto, folder: Path, parts: Mapping[str, Claim]) -> None:
        """Take a model in which `parts` are made."""
        super().__init__(proto, folder)
        self.parts = dict(parts)

    def scales(self, names: Iterable[str]) -> dict[str, str]:
        """Return, for those of `names` that are parts, the tensor that tells the largest magnitude of the whole."""
        found = {name: _scale_name(self.parts[name].of) for name in names if name in self.parts}
        return {name: scale for name, scale in found.items() if scale in self.makers}


def open_oracle(staged: Path, folder: Path, plan: Plan) -> Oracle:
    """Return the staged model in which every border of the plan is a tensor, as far as the model has it.

    An H-partition makes a part of a tensor of the model: that part is cut out of the model's own tensor by a `Slice`.
    Which part of which tensor it is, the node claims that makes it; of plans without claims the `Concat` that merges
    it tells the tensor, and the plan the axis and range. A part of a sum, and what only a rewritten layer has, is part
    of no tensor of the model.
    """
    model = load_model(staged)
    missing = {name for part in plan.partitions for name in part.outputs if name not in model.makers}
    if not missing:
        return Oracle(model.proto, model.folder, {})
    files = [load_model(folder / part.file) for part in plan.partitions]
    claims = {name: claim for file in files for name, claim in claims_of(file).items() if name in missing}
    shards = {
        name: part.shard
        for part, file in zip(plan.partitions, files, strict=True)
        if part.shard is not None and part.shard.merge == "concat" and not claims_of(file)
        for name in part.outputs
        if name in missing
    }
    merges = [node for file in files for node in file.proto.graph.node if node.op_type == "Concat"]
    told = {name: by_shard(node.output[0], shards[name]) for node in merges for name in node.input if name in shards}
    return with_parts(model, {**told, **claims})


def by_shard(whole: str, shard: Shard) -> Claim:
    """Return the part of a tensor that a shard makes as the plan tells it, its axis counted from the end."""
    return Claim(whole, shard.axis, *shard.range)


def claims_of(model: Model) -> dict[str, Claim]:
    """Return what the nodes of a partition claim to make, by the name that it has there."""
    found = {}
    for node in model.proto.graph.node:
        claims = read_claims({entry.key: entry.value for entry in node.metadata_props})
        found.update({node.output[number]: claim for number, claim in claims.items() if number < len(node.output)})
    return {name: claim for name, claim in found.items() if name}


def is_new(node: NodeProto) -> bool:
    """Return whether the model has no node that this one could be compared with: it merges, say."""
    return any(entry.key == NEW for entry in node.metadata_props)


def with_parts(model: Model, parts: Mapping[str, Claim]) -> Oracle:
    """Return the model in which each of `parts` of a tensor that it has is a tensor too."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    given = {value.name for value in proto.graph.input}
    known = {
        name: claim
        for name, claim in sorted(parts.items())
        if name not in model.makers and name not in given and (claim.of in model.makers or claim.of in given)
    }
    for number, (name, claim) in enumerate(known.items()):
        _cut_out(proto, claim, name, f"hyps.part.{len(proto.graph.node)}.{number}")
    for whole in sorted({claim.of for claim in known.values()}):
        if _scale_name(whole) not in model.makers:
            _tell_scale(proto, whole)
    before = model.parts if isinstance(model, Oracle) else {}
    return Oracle(proto, model.folder, {**before, **known})


def _cut_out(proto: ModelProto, claim: Claim, name: str, node_name: str) -> None:
    if claim.axis is None:
        node = helper.make_node("Identity", [claim.of], [name], node_name)
    elif _opset(proto) < _SLICE_BY_INPUTS:
        bounds: dict[str, Any] = {"starts": [claim.start], "ends": [claim.stop], "axes": [claim.axis]}
        node = helper.make_node("Slice", [claim.of], [name], node_name, **bounds)
    else:
        numbers = zip("sea", (claim.start, claim.stop, claim.axis), strict=True)
        constants = {f"{node_name}.{word}": value for word, value in numbers}
        proto.graph.initializer.extend(
            numpy_helper.from_array(np.array([value], np.int64), key) for key, value in constants.items()
        )
        node = helper.make_node("Slice", [claim.of, *constants], [name], node_name)
    proto.graph.node.append(node)


def _tell_scale(proto: ModelProto, whole: str) -> None:
    """Add the largest magnitude of a tensor, beside which a difference in a part of it is seen."""
    scale = _scale_name(whole)
    steps = [
        helper.make_node("Cast", [whole], [f"{scale}.cast"], f"{scale}.cast", to=TensorProto.FLOAT),
        helper.make_node("Abs", [f"{scale}.cast"], [f"{scale}.abs"], f"{scale}.abs"),
        helper.make_node("ReduceMax", [f"{scale}.abs"], [scale], scale, keepdims=0),
    ]
    proto.graph.node.extend(steps)


def _scale_name(whole: str) -> str:
    return f"hyps.largest.{whole}"


def _opset(proto: ModelProto) -> int:
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    return versions.get("", versions.get("ai.onnx", 0))


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
