"""What is told of models and plans."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from onnx import helper

from hyps.formats.plan import Partition, Plan, SplitPoint
from hyps_compiler.inspection import (
    describe_plan,
    inspect_model,
    show_model,
    show_plan,
    show_points,
    summarize_plan,
)
from hyps_compiler.partition import Request
from model_fixtures import floats, model_of, save
from plan_fixtures import mlp, sharded


def long_plan(tmp_path: Path, count: int, *, kind: str = "optional") -> Plan:
    """A plan of many partitions, of which one in the middle is the largest."""
    plan = mlp(8, 4).write(tmp_path / "plan")
    part = plan.partitions[0]
    names = [f"very/long/scope/of/the/model/block{i}/conv" for i in range(count)]
    parts = tuple(
        replace(part, id=f"p{i:03d}", layers=(names[i], "x"), peak_memory_bytes=10**9 if i == count // 2 else 1000)
        for i in range(count)
    )
    points = tuple(
        SplitPoint(tensors=("t",), nbytes=1000, kind=kind, chosen=i % 2 == 0, reason="pooling", after=names[i])  # type: ignore[arg-type]  # one of the words
        for i in range(count - 1)
    )
    return replace(plan, partitions=parts, split_points=points)


def shown_ids(text: str, parts: Sequence[Partition]) -> list[str]:
    return [part.id for part in parts if f"\n{part.id} " in text]


def test_a_short_plan_is_summarized_whole(tmp_path: Path) -> None:
    plan = long_plan(tmp_path, 10)
    text = summarize_plan(plan, "plan")
    assert len(shown_ids(text, plan.partitions)) == 10
    assert "shows all" not in text
    assert text.endswith("10 V-partitions")


def test_a_long_plan_is_summarized_by_its_ends_and_its_largest(tmp_path: Path) -> None:
    plan = long_plan(tmp_path, 200)
    text = summarize_plan(plan, "plan")
    ids = shown_ids(text, plan.partitions)
    assert ids[0] == "p000"
    assert "p100" in ids
    assert ids[-1] == "p199"
    assert len(ids) < 20
    told = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("…"))
    assert told + len(ids) == 200
    assert "`hypsc inspect plan` shows all" in text
    assert "split points: 199 optional; cut at 100 of them" in text
    assert len(text.splitlines()) < 30
    assert len(shown_ids(show_plan(plan), plan.partitions)) == 200


def test_only_what_is_cut_is_listed_of_many_points(tmp_path: Path) -> None:
    plan = long_plan(tmp_path, 21)
    text = summarize_plan(plan, "plan")
    assert text.count("pooling") == 10
    assert "`hypsc inspect plan` shows all" in text


def test_every_mandatory_point_is_listed(tmp_path: Path) -> None:
    text = summarize_plan(long_plan(tmp_path, 40, kind="mandatory"), "plan")
    assert text.count("pooling") == 39


@pytest.mark.parametrize("make", [summarize_plan, lambda plan, folder: show_plan(plan)])
def test_tables_keep_to_eighty_columns_and_the_ends_of_names(tmp_path: Path, make: object) -> None:
    assert callable(make)
    text = make(long_plan(tmp_path, 60), "plan")
    assert max(map(len, text.splitlines())) <= 80
    assert "59/conv" in text


def test_one_partition_is_no_plural(tmp_path: Path) -> None:
    plan = mlp(8, 4).write(tmp_path / "plan")
    assert describe_plan(plan) == "the model is left whole, in one partition"
    assert describe_plan(replace(plan, max_params=10)) == "the model fits whole, in one partition"
    assert summarize_plan(plan, "p").splitlines()[0].startswith("test: 1 partition, ")
    shards = sharded().write(tmp_path / "shards")
    assert describe_plan(shards) == "2 V-partitions and 3 H-partitions, of fc"
    one = replace(shards, partitions=shards.partitions[1:3])
    assert describe_plan(replace(one, partitions=(one.partitions[0], shards.partitions[0]))) == (
        "1 V-partition and 1 H-partition, of fc"
    )


def test_no_split_points_are_said() -> None:
    assert show_points(()) == ["no split points"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="bad\x1b[31m"),
        helper.make_node("MaxPool", ["a"], ["b"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["b"], ["c"], name="flatten"),
        helper.make_node("Relu", ["c"], ["y"], name="end"),
    ]
    made = model_of(nodes, [floats("x", "n", 1, 8, 8)], [floats("y", "n", 4)])
    return Path(save(made, tmp_path / "m.onnx"))


def test_a_model_is_told_layer_by_layer(model: Path) -> None:
    view = inspect_model(str(model), Request(), {})
    pool = next(layer for layer in view.layers if layer.name == "pool")
    assert (pool.kind, pool.cut_bytes, pool.ratio, pool.marks) == ("MaxPool", 16, 16 / 256, ("pooling", "compressive"))
    assert pool.output_shape == ("n", 1, 2, 2)
    assert (view.input_bytes, view.assumed_dims, view.parameters) == (256, {"n": 1}, 0)
    text = show_model(view)
    assert "pool,comp" in text
    assert "sizes assume n = 1" in text
    assert "1x1x2x2" in text
    assert text.isascii() or "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_given_shapes_are_assumed(model: Path) -> None:
    view = inspect_model(str(model), Request(), {"x": (5, 1, 8, 8)})
    assert (view.input_bytes, view.assumed_dims) == (1280, {"n": 5})


def test_unknown_sizes_are_question_marks(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node("SequenceLength", ["s"], ["y"])]
    made = model_of(nodes, [floats("x", 2)], [helper.make_tensor_value_info("y", 7, [])])
    text = show_model(inspect_model(str(save(made, tmp_path / "m.onnx")), Request(), {}))
    assert "SequenceCons" in text
