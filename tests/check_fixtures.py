"""What tests of `hypsc check` compare: findings made by hand, and small models with a dense layer of any width."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from hyps_compiler.checking.facts import Facts, Layer, Measured, Outcome, PartitionFacts, PlanFacts
from hyps_compiler.checking.keys import software_digest
from hyps_compiler.checking.limits import Checked, judge
from hyps_compiler.checking.rules import Rule
from model_fixtures import model_of, save


def skip_if_edited(before: str) -> None:
    """Skip the rest of a test whose processes were not of one software: a cache is right to know nothing then."""
    if software_digest() != before:
        pytest.skip("the sources were edited while the test ran")


def layer(name: str, weight_bytes: int, kind: str = "Gemm") -> Layer:
    return Layer(name=name, kind=kind, parameters=weight_bytes // 4, weight_bytes=weight_bytes)


def partition(number: int, *layers: Layer, memory_bytes: int | None = None) -> PartitionFacts:
    nbytes = sum(one.weight_bytes for one in layers)
    return PartitionFacts(
        id=f"p{number:03d}",
        layers=layers,
        parameters=nbytes // 4,
        weight_bytes=nbytes,
        outputs=(f"out{number}",),
        memory_bytes=memory_bytes,
    )


def plan(*partitions: PartitionFacts, peak: Measured | None = None, border_bytes: int | None = 0) -> PlanFacts:
    known = [(part.memory_bytes, part.id) for part in partitions if part.memory_bytes is not None]
    most = Measured(value=max(known)[0], where=max(known)[1]) if known else None
    return PlanFacts(
        digest="0" * 64,
        producer="a test",
        partitions=partitions,
        peak_memory_bytes=peak or most,
        border_bytes=border_bytes,
        largest_border=partitions[0].outputs[0] if len(partitions) > 1 else "",
    )


def outcome(found: PlanFacts, difference: float | None = 0.0) -> Outcome:
    told = None if difference is None else Measured(value=difference, where="logits")
    return Outcome(facts=Facts(plan=found, difference=told))


def checked(model: str, found: Outcome, rule: Rule, previous: PlanFacts | None = None) -> Checked:
    return Checked(model, rule, found, judge(found, rule, previous, "budget.toml"), previous)


def save_dense(path: Path, widths: Sequence[int] = (16, 8, 4)) -> Path:
    """Write a model of dense layers fc1, fc2, ... with a ReLU behind each, and return its path."""
    rng = np.random.Generator(np.random.PCG64(7))
    weights, nodes, name = {}, [], "x"
    for number, (inner, outer) in enumerate(itertools.pairwise(widths), start=1):
        weights[f"fc{number}.weight"] = rng.standard_normal((outer, inner)).astype(np.float32)
        weights[f"fc{number}.bias"] = rng.standard_normal(outer).astype(np.float32)
        inputs = [name, f"fc{number}.weight", f"fc{number}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [f"h{number}"], f"fc{number}", transB=1))
        nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number}"], f"relu{number}"))
        name = f"r{number}"
    made = model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", widths[-1]])],
        weights,
    )
    return save(made, path)
