"""Plans, models and clusters for tests of reports: small, with everything that a page can show."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hyps.formats.plan import ModelInfo, NamedTensor, Partition, Plan, Prediction, Shard, TensorInfo, Variant
from hyps.formats.profiles import encode_profile
from profile_fixtures import layer, profile

HOSTILE = "</script><img src=x onerror=window.pwned=1>"
"""A name that would run code on a page that does not escape it."""

CLUSTER = """
entry = "camera"
arrival = 0.001

[[devices]]
name = "camera"
speed = 0.25

[[devices]]
name = "edge"
tier = "edge"

[[devices]]
name = "cloud"
tier = "cloud"
speed = 4.0

[[links]]
between = ["camera", "edge"]
up = "1kB/s"
latency = "10ms"

[[links]]
between = ["edge", "cloud"]
up = "800B/s"
latency = "30ms"
"""


def small_model(path: Path) -> Path:
    """Write a model of two convolutions, a pooling and two dense layers, and return its path."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (64, 16), "w4": (16, 8)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["d1"], "fc1"),
        helper.make_node("Relu", ["d1"], ["r3"], "relu3"),
        helper.make_node("MatMul", ["r3", "w4"], ["logits"], "fc2"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph(nodes, "small", [image], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def write_profile(path: Path, model: Path) -> Path:
    """Write a profile of `model` whose seconds all come from the model of time, and return its path."""
    made = profile([layer("made", {1: 0.5})], [], {1: 0.001})
    told = msgspec.structs.replace(made, sha256=hashlib.sha256(model.read_bytes()).hexdigest())
    path.write_bytes(encode_profile(told))
    return path


def write_cluster(path: Path) -> Path:
    """Write a cluster of three devices, one behind the other, and return its path."""
    path.write_text(CLUSTER)
    return path


def chain(
    count: int,
    *,
    shards: int = 0,
    memory_bytes: int | None = None,
    seconds: float | None = 0.002,
    hostile: str = "",
) -> Plan:
    """Return a plan of `count` V-partitions one after another, every fifth also reading what stands four before.

    Args:
        count: how many V-partitions.
        shards: how many H-partitions stand before the last of them, which then merges them.
        memory_bytes: the plan's budget.
        seconds: of each partition; None: nothing is predicted.
        hostile: stands in the names of the first partition's layers and tensors.
    """
    tensors = {"t0": _tensor()}
    parts: list[Partition] = []
    last = "t0"
    for index in range(count):
        inputs = [last]
        if shards and index == count - 1:
            parts += [_shard(last, place, shards) for place in range(shards)]
            inputs = [f"{last}.part{place}" for place in range(shards)]
            tensors.update({name: _tensor() for name in inputs})
        elif index % 5 == 4:
            inputs.append(parts[index - 4].outputs[0])
        last = f"blocks.{index}.out{hostile if index == 0 else ''}"
        tensors[last] = _tensor()
        layers = (f"blocks.{index}.conv{hostile if index == 0 else ''}", f"blocks.{index}.relu")
        parts.append(_partition(f"p{index:03}", tuple(inputs), last, layers, 1000 * (index % 7 + 1)))
    times = {part.id: seconds for part in parts} if seconds is not None else {}
    ends = {"dtype": "float32", "shape": (1, 64)}
    return Plan(
        model=ModelInfo(
            name=f"chain{hostile}",
            sha256="ab" * 32,
            ir_version=8,
            opset={"ai.onnx": 17},
            inputs=(NamedTensor(name="t0", **ends),),  # type: ignore[arg-type]  # a dict of both
            outputs=(NamedTensor(name=last, **ends),),  # type: ignore[arg-type]  # likewise
            parameters=sum(part.parameters for part in parts),
            weight_bytes=sum(part.weight_bytes for part in parts),
        ),
        tensors=tensors,
        partitions=tuple(parts),
        memory_bytes=memory_bytes,
        variants=(
            Variant(
                name="local",
                placement={part.id: "local" for part in parts},
                prediction=Prediction(partition_s=times),
            ),
        ),
    )


def _tensor() -> TensorInfo:
    return TensorInfo(dtype="float32", shape=(1, 64), nbytes=256)


def _shard(source: str, index: int, count: int) -> Partition:
    told = Shard(layer="wide", axis=-1, index=index, count=count, range=(index, index + 1))
    made = _partition(f"h{index:02}", (source,), f"{source}.part{index}", (f"wide[{index + 1}/{count}]",), 500)
    return msgspec.structs.replace(made, kind="horizontal", shard=told)


def _partition(name: str, inputs: tuple[str, ...], output: str, layers: tuple[str, ...], parameters: int) -> Partition:
    return Partition(
        id=name,
        kind="vertical",
        file=f"partitions/{name}.onnx",
        sha256="0" * 64,
        inputs=inputs,
        outputs=(output,),
        layers=layers,
        parameters=parameters,
        weight_bytes=4 * parameters,
        peak_memory_bytes=4 * parameters + 2000,
        macs=parameters,
    )
