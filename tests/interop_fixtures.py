"""Models that say themselves how they are to be divided."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper

from generated.values import Array, floats
from model_fixtures import model_of

WIDTH = 8


def dense_chain(layers: int = 4) -> ModelProto:
    """Return `layers` times MatMul, Add and Relu of 8 columns: nodes `mm0`, `add0`, `relu0`, `mm1`, ..."""
    rng = np.random.default_rng(3)
    nodes: list[NodeProto] = []
    weights: dict[str, Array] = {}
    value = "x"
    for index in range(layers):
        weights[f"w{index}"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3
        weights[f"b{index}"] = rng.standard_normal(WIDTH).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"], name=f"mm{index}"),
            helper.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"], name=f"add{index}"),
            helper.make_node("Relu", [f"a{index}"], [f"r{index}"], name=f"relu{index}"),
        ]
        value = f"r{index}"
    return model_of(nodes, [floats("x", "N", WIDTH)], [floats(value, "N", WIDTH)], weights, ir_version=11)


def random_dag(choices: Sequence[tuple[int, int, int]]) -> ModelProto:
    """Return a model with a node for each choice: what it does, and which of the earlier values it reads."""
    rng = np.random.default_rng(5)
    values = ["x"]
    nodes: list[NodeProto] = []
    weights: dict[str, Array] = {}
    for index, (kind, left, right) in enumerate(choices):
        first, second = values[left % len(values)], values[right % len(values)]
        made = f"v{index}"
        if kind % 3 == 0:
            weights[f"w{index}"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3
            nodes.append(helper.make_node("MatMul", [first, f"w{index}"], [made], name=f"n{index}"))
        elif kind % 3 == 1:
            nodes.append(helper.make_node("Add", [first, second], [made], name=f"n{index}"))
        else:
            nodes.append(helper.make_node("Sigmoid", [first], [made], name=f"n{index}"))
        values.append(made)
    read = {name for node in nodes for name in node.input}
    outputs = [floats(node.output[0], 2, WIDTH) for node in nodes if node.output[0] not in read]
    return model_of(nodes, [floats("x", 2, WIDTH)], outputs, weights, ir_version=11)


def in_configuration(
    model: ModelProto, stages: Mapping[int, int], name: str = "two", devices: Sequence[str] = ("left", "right")
) -> ModelProto:
    """Give the model a device configuration in which nodes have pipeline stages, and return it."""
    model.configuration.add(name=name, num_devices=len(devices), device=devices)
    for index, stage in stages.items():
        model.graph.node[index].device_configurations.add(configuration_id=name, pipeline_stage=stage)
    return model


def with_sharding(model: ModelProto, node: int, tensor: str, axis: int, count: int) -> ModelProto:
    """Let a node of the configuration `two` divide a tensor, and return the model."""
    said = model.graph.node[node].device_configurations
    one = said[0] if said else said.add(configuration_id="two")
    spec = one.sharding_spec.add(tensor_name=tensor, device=[part % 2 for part in range(count)])
    spec.sharded_dim.add(axis=axis).simple_sharding.add(dim_value=WIDTH, num_shards=count)
    return model


def transformer_like() -> ModelProto:
    """Return what Olive's `SplitModel` gets: nodes named after modules, shapes and sums between them, metadata."""
    rng = np.random.default_rng(7)
    nodes: list[NodeProto] = []
    weights: dict[str, Array] = {
        "model.embed_tokens.weight": rng.standard_normal((16, WIDTH)).astype(np.float32),
        "lm_head.weight": rng.standard_normal((WIDTH, 16)).astype(np.float32),
        "two": np.array(2, np.float32),
    }
    nodes.append(
        helper.make_node(
            "Gather", ["model.embed_tokens.weight", "input_ids"], ["h0"], name="/model/embed_tokens/Gather"
        )
    )
    nodes.append(helper.make_node("Pow", ["h0", "two"], ["mask"], name="/model/Pow"))  # every layer reads it
    value = "h0"
    for index in range(4):
        at = f"/model/layers.{index}"
        for part in ("q_proj", "o_proj"):
            weights[f"l{index}.{part}"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3
        nodes += [
            helper.make_node(
                "MatMul", [value, f"l{index}.q_proj"], [f"q{index}"], name=f"{at}/self_attn/q_proj/MatMul"
            ),
            helper.make_node("Mul", [f"q{index}", "mask"], [f"s{index}"], name=f"{at}/self_attn/Mul"),
            helper.make_node("Softmax", [f"s{index}"], [f"p{index}"], name=f"{at}/self_attn/Softmax", axis=-1),
            helper.make_node(
                "MatMul", [f"p{index}", f"l{index}.o_proj"], [f"o{index}"], name=f"{at}/self_attn/o_proj/MatMul"
            ),
            helper.make_node("Add", [value, f"o{index}"], [f"h{index + 1}"], name=f"{at}/Add"),
        ]
        value = f"h{index + 1}"
    nodes.append(helper.make_node("MatMul", [value, "lm_head.weight"], ["logits"], name="/lm_head/MatMul"))
    ids = helper.make_tensor_value_info("input_ids", 7, [1, 5])
    model = model_of(nodes, [ids], [floats("logits", 1, 5, 16)], weights)
    entries = ";".join(f"model.layers.{index}={index // 2}" for index in range(4))
    model.metadata_props.add(key="split_assignments", value=entries)
    return model
