"""Real plan folders for tests, written with plain onnx: no compiler is needed to test the runtime."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hyps.formats.plan import (
    FileRef,
    ModelInfo,
    NamedTensor,
    Optimization,
    Partition,
    Plan,
    Shard,
    TensorInfo,
    Variant,
    encode_plan,
)

Weights = dict[str, NDArray[np.generic]]
Shape = tuple[int | str | None, ...]

_ALIGNMENT = 4096


@dataclass(frozen=True)
class Piece:
    """One partition to be: its nodes and what they read and make."""

    id: str
    nodes: Sequence[onnx.NodeProto]
    weights: Weights
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shard: Shard | None = None


@dataclass(frozen=True)
class Dataflow:
    """A whole model, cut into pieces."""

    pieces: Sequence[Piece]
    tensors: dict[str, TensorInfo]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    assumed_dims: dict[str, int] = field(default_factory=dict)

    def whole(self) -> bytes:
        """Return the model that the pieces compute together, as a file would hold it."""
        nodes = [node for piece in self.pieces for node in piece.nodes]
        weights = {name: value for piece in self.pieces for name, value in piece.weights.items()}
        inits = [numpy_helper.from_array(value, name) for name, value in weights.items()]
        graph = helper.make_graph(nodes, "whole", self._infos(self.inputs), self._infos(self.outputs), inits)
        return bytes(_model(graph).SerializeToString())

    def feeds(self, seed: int = 0, **dims: int) -> dict[str, NDArray[np.generic]]:
        """Return random inputs; `dims` gives the sizes of symbolic dimensions."""
        rng = np.random.default_rng(seed)
        sizes = {**self.assumed_dims, **dims}
        return {
            name: rng.standard_normal(
                [sizes[d] if isinstance(d, str) else d or 1 for d in self.tensors[name].shape or ()]
            ).astype(self.tensors[name].dtype)
            for name in self.inputs
        }

    def write(
        self,
        folder: Path,
        *,
        memory_bytes: int | None = None,
        optimization: Optimization = "none",
        cpu_family: str | None = None,
    ) -> Plan:
        """Write the plan folder and return its plan."""
        (folder / "partitions").mkdir(parents=True)
        partitions = tuple(self._write_piece(folder, piece) for piece in self.pieces)
        plan = Plan(
            model=ModelInfo(
                name="test",
                sha256=hashlib.sha256(self.whole()).hexdigest(),
                ir_version=8,
                opset={"ai.onnx": 17},
                inputs=self._named(self.inputs),
                outputs=self._named(self.outputs),
            ),
            optimization=optimization,
            cpu_family=cpu_family,
            memory_bytes=memory_bytes,
            assumed_dims=self.assumed_dims,
            tensors=self.tensors,
            partitions=partitions,
            variants=(Variant(name="local", placement={piece.id: "local" for piece in self.pieces}),),
        )
        write_plan_file(folder, plan)
        return plan

    def _write_piece(self, folder: Path, piece: Piece) -> Partition:
        inits, data = _external(piece)
        graph = helper.make_graph(piece.nodes, piece.id, self._infos(piece.inputs), self._infos(piece.outputs), inits)
        model = _model(graph).SerializeToString()
        path = f"partitions/{piece.id}.onnx"
        (folder / path).write_bytes(model)
        refs = []
        if data:
            (folder / f"{path}.data").write_bytes(data)
            refs.append(FileRef(path=f"{path}.data", sha256=hashlib.sha256(data).hexdigest(), nbytes=len(data)))
        weight_bytes = sum(value.nbytes for value in piece.weights.values())
        sizes = [self.tensors[name].nbytes for name in (*piece.inputs, *piece.outputs)]
        known = [size for size in sizes if size is not None]
        return Partition(
            id=piece.id,
            kind="vertical" if piece.shard is None else "horizontal",
            file=path,
            sha256=hashlib.sha256(model).hexdigest(),
            weights=tuple(refs),
            inputs=piece.inputs,
            outputs=piece.outputs,
            layers=(piece.id,),
            parameters=sum(value.size for value in piece.weights.values()),
            weight_bytes=weight_bytes,
            peak_memory_bytes=weight_bytes + sum(known) if len(known) == len(sizes) else None,
            shard=piece.shard,
        )

    def _infos(self, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(self.tensors[name].dtype)) for name in names}
        return [helper.make_tensor_value_info(name, kinds[name], self.tensors[name].shape) for name in names]

    def _named(self, names: Sequence[str]) -> tuple[NamedTensor, ...]:
        return tuple(NamedTensor(name=n, dtype=self.tensors[n].dtype, shape=self.tensors[n].shape) for n in names)


def write_plan_file(folder: Path, plan: Plan) -> None:
    """Write `plan.json`, as a compiler or someone with an editor would."""
    (folder / "plan.json").write_bytes(encode_plan(plan))


def mlp(*widths: int, batch: str | int = "batch", assumed: int = 1, seed: int = 7) -> Dataflow:
    """Return dense layers with ReLU, each a V-partition: `mlp(8, 16, 4)` has two."""
    pieces = [
        dense_piece(f"v{i}", f"t{i}", f"t{i + 1}", width_in, width_out, seed + i)
        for i, (width_in, width_out) in enumerate(pairwise(widths))
    ]
    sizes: dict[str, Shape] = {f"t{i}": (batch, width) for i, width in enumerate(widths)}
    dims = {batch: assumed} if isinstance(batch, str) else {}
    return Dataflow(pieces, _tensors(sizes, dims), ("t0",), (f"t{len(widths) - 1}",), dims)


def cnn(channels: int = 4, pixels: int = 8, seed: int = 7) -> Dataflow:
    """Return three convolutions, each a V-partition, of which the last also reads the first's output."""
    rng = np.random.default_rng(seed)
    shape = (1, channels, pixels, pixels)
    weights = [rng.standard_normal((channels, channels, 3, 3)).astype(np.float32) for _ in range(3)]
    pieces = [
        Piece("stem", _conv("x", "a", "w0"), {"w0": weights[0]}, ("x",), ("a",)),
        Piece("body", _conv("a", "b", "w1"), {"w1": weights[1]}, ("a",), ("b",)),
        Piece(
            "head",
            [*_conv("b", "c", "w2"), helper.make_node("Add", ["a", "c"], ["y"])],
            {"w2": weights[2]},
            ("a", "b"),
            ("y",),
        ),
    ]
    return Dataflow(pieces, _tensors(dict.fromkeys("xaby", shape), {}), ("x",), ("y",))


def sharded(width: int = 12, shards: int = 3, seed: int = 7) -> Dataflow:
    """Return a dense V-partition, a dense layer in H-partitions, and a V-partition that merges them."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((width, width)).astype(np.float32)
    bounds = [width * i // shards for i in range(shards + 1)]
    rows = [f"rows{i}" for i in range(shards)]
    pieces = [dense_piece("first", "x", "s", width, width, seed + 1)]
    for i, (start, stop) in enumerate(pairwise(bounds)):
        node = helper.make_node("Gemm", ["s", f"fc{i}"], [rows[i]], transB=1)
        shard = Shard(layer="fc", axis=-1, index=i, count=shards, range=(start, stop))
        pieces.append(Piece(f"fc{i}", [node], {f"fc{i}": weight[start:stop]}, ("s",), (rows[i],), shard))
    last = dense_piece("last", "merged", "y", width, 5, seed + 2)
    merge = helper.make_node("Concat", rows, ["merged"], axis=-1)
    pieces.append(replace(last, nodes=[merge, *last.nodes], inputs=tuple(rows)))
    sizes: dict[str, Shape] = {"x": ("batch", width), "s": ("batch", width), "y": ("batch", 5)}
    sizes.update({name: ("batch", bounds[i + 1] - bounds[i]) for i, name in enumerate(rows)})
    return Dataflow(pieces, _tensors(sizes, {"batch": 1}), ("x",), ("y",), {"batch": 1})


def dense_piece(name: str, source: str, target: str, width_in: int, width_out: int, seed: int) -> Piece:
    """Return a dense layer with ReLU that reads `source` and makes `target`."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((width_out, width_in)) / np.sqrt(width_in)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", [source, f"{name}_w"], [f"{name}_sum"], transB=1),
        helper.make_node("Relu", [f"{name}_sum"], [target]),
    ]
    return Piece(name, nodes, {f"{name}_w": weight}, (source,), (target,))


def _conv(source: str, target: str, weight: str) -> list[onnx.NodeProto]:
    conv = helper.make_node("Conv", [source, weight], [f"{target}_conv"], pads=[1, 1, 1, 1])
    return [conv, helper.make_node("Relu", [f"{target}_conv"], [target])]


def _tensors(shapes: dict[str, Shape], dims: dict[str, int]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(dtype="float32", shape=shape, nbytes=_nbytes(shape, dims)) for name, shape in shapes.items()
    }


def _nbytes(shape: Shape, dims: dict[str, int]) -> int | None:
    nbytes = 4
    for dim in shape:
        size = dims.get(dim) if isinstance(dim, str) else dim
        if size is None:
            return None
        nbytes *= size
    return nbytes


def _external(piece: Piece) -> tuple[list[onnx.TensorProto], bytes]:
    """Return the initializers, their bytes elsewhere, and those bytes, each aligned so that it can be mapped."""
    inits, data = [], bytearray()
    for name, value in piece.weights.items():
        data += bytes(-len(data) % _ALIGNMENT)
        init = numpy_helper.from_array(np.ascontiguousarray(value), name)
        inits.append(init)
        if value.dtype.kind == "i":
            continue  # onnxruntime wants shapes and axes in the model itself
        raw = init.raw_data
        init.ClearField("raw_data")
        init.data_location = TensorProto.EXTERNAL
        entries = {"location": f"{piece.id}.onnx.data", "offset": len(data), "length": len(raw)}
        init.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in entries.items())
        data += raw
    return inits, bytes(data)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
