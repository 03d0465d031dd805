"""Benchmarks' clusters run what they were told to run, where they were told."""

from pathlib import Path

import pytest

import testbed
from fleet.plans import Model, layer_names, move_plan, read_model, write_plan
from fleet.running import MANAGER, Choices, Question, ask, fleet, make_question, run_whole
from hyps.formats.plan import decode_plan
from pipeline import balance, rates_of
from testbed import SWITCH, Layout, Machine, Wire
from thesis import critical_s

_MISSING = testbed.missing()
needs_root = pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "never")
_BYTES_PER_S = 20e6


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make_question("digits", tmp_path_factory.mktemp("question"))


@pytest.fixture(scope="module")
def model(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_model(question.model, tmp_path_factory.mktemp("model"))


def test_a_plan_is_cut_and_sliced_and_placed_as_told(model: Model, tmp_path: Path) -> None:
    names = layer_names(model)

    plan = write_plan(model, tmp_path / "plan", lambda part: "a", behind=names[:1], slices=(names[-1], 3))
    moved = move_plan(tmp_path / "plan", lambda part: "b" if part.shard else "a")

    assert sum(part.kind == "horizontal" for part in plan.partitions) == 3
    assert plan.partitions[0].layers == (names[0],)
    assert decode_plan((tmp_path / "plan" / "plan.json").read_bytes()) == moved
    assert sorted(moved.variants[0].placement.values()).count("b") == 3


def test_rates_are_those_of_the_full_pipeline() -> None:
    filling, steady = [2.5, 2.9], [3.0 + 0.1 * index for index in range(71)]

    assert rates_of([*filling, *steady, 10.4], 10.0) == pytest.approx([10.0] * 10)


def test_a_pipeline_wins_as_much_as_its_busiest_device_allows() -> None:
    assert balance({"a": 0.1, "b": 0.1, "c": 0.2}) == pytest.approx(2.0)
    assert balance({"a": 0.0}) == 1.0


def test_slices_on_several_devices_are_computed_side_by_side_and_all_else_in_turn(model: Model, tmp_path: Path) -> None:
    plan = write_plan(model, tmp_path / "plan", lambda part: "a", slices=(layer_names(model)[-1], 2))
    runs = {part.id: 0.25 if part.shard else 1.0 for part in plan.partitions}
    others = sum(part.shard is None for part in plan.partitions)
    apart = {part.id: "b" if part.shard and part.shard.index else "a" for part in plan.partitions}

    assert critical_s(plan, plan.variants[0].placement, runs) == pytest.approx(others + 0.5)
    assert critical_s(plan, apart, runs) == pytest.approx(others + 0.25)


def test_unsplit_onnxruntime_is_timed_in_a_process_of_its_own(question: Question) -> None:
    assert len(run_whole(question, 4)) == 4


@pytest.mark.root
@pytest.mark.network
@needs_root
def test_partitions_run_where_they_were_placed_and_answers_are_the_whole_models(
    model: Model, question: Question, tmp_path: Path
) -> None:
    cut = layer_names(model)[1:2]
    write_plan(model, tmp_path / "plan", lambda part: "a" if part.id == "p000" else "b", behind=cut)
    wires = tuple(Wire(name, SWITCH, _BYTES_PER_S) for name in ("a", "b", MANAGER))

    with (
        testbed.build(Layout({name: Machine() for name in ("a", "b", MANAGER)}, wires)) as devices,
        fleet(tmp_path / "plan", ["a", "b"], devices, tmp_path / "fleet") as made,
    ):
        asked = ask(made, question, requests=5, reports=True)
        at_once = ask(made, question, in_flight=3, seconds=0.5)

    took = zip(asked.runs_s, asked.latencies_s, strict=True)
    assert len(asked.latencies_s) == 5
    assert all(0 < runs["p000"] + runs["p001"] < latency_s for runs, latency_s in took)
    assert asked.largest_gap < 1e-5
    assert len(at_once.done_s) > 3


@pytest.mark.root
@needs_root
def test_a_node_that_cannot_start_is_told_with_what_it_said(model: Model, tmp_path: Path) -> None:
    write_plan(model, tmp_path / "plan", lambda part: "a")
    machines = {"a": Machine(), MANAGER: Machine()}

    with (
        testbed.build(Layout(machines, (Wire("a", MANAGER),))) as devices,
        pytest.raises(RuntimeError, match="no-such-option"),
        fleet(tmp_path / "plan", ["a"], devices, tmp_path / "fleet", Choices(node=["--no-such-option"])),
    ):
        pass
