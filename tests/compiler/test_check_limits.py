"""Limits against findings: the sentences, what would do, and which status decides."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_fixtures import checked, layer, outcome, partition, plan
from hyps.formats.quantities import parse_count, parse_nbytes, parse_seconds
from hyps_compiler.checking.facts import Facts, Measured, Outcome, PlanFacts, Problem
from hyps_compiler.checking.figures import LIMITS
from hyps_compiler.checking.limits import COMPILES, Verdict, _written, judge, worst
from hyps_compiler.checking.rules import CompileOptions, Rule

OLD = plan(
    partition(0, layer("conv", 1_000_000, "Conv"), memory_bytes=56_000_000),
    partition(1, layer("fc1", 16_800_000), layer("fc2", 4_000), memory_bytes=70_000_000),
    border_bytes=800,
)
NEW = plan(
    partition(0, layer("conv", 1_000_000, "Conv"), memory_bytes=56_000_000),
    partition(1, layer("fc1", 67_100_000), layer("fc2", 16_000), memory_bytes=121_200_000),
    border_bytes=3_200,
)


def verdict(found: PlanFacts, limit: str, most: float, previous: PlanFacts | None = None, **options: object) -> Verdict:
    rule = Rule(options=CompileOptions(**options), limits={limit: most})  # type: ignore[arg-type]  # by name
    return judge(outcome(found), rule, previous, "budget.toml")[-1]


def test_the_sentence_names_partition_layer_value_limit_and_what_would_do() -> None:
    told = verdict(NEW, "peak_memory", 64e6, OLD)
    assert told.message == (
        "partition `p001` needs 121 MB of memory, more than the 64.0 MB of budget.toml: layer `fc1` (Gemm) grew from"
        ' 16.8 MB to 67.1 MB of weights since the previous plan; `limits.peak_memory = "122MB"` would do, or'
        ' `memory = "64MB"`, which has the model divided to fit'
    )
    assert (told.partition, told.layer, told.exit_status) == ("p001", "fc1", 3)


def test_without_a_previous_plan_the_largest_layer_did_it() -> None:
    told = verdict(NEW, "partition_bytes", 1e6)
    assert "its largest is layer `fc1` (Gemm) with 67.1 MB of weights" in told.message
    assert told.layer == "fc1"


def test_a_new_layer_did_it() -> None:
    bigger = plan(partition(0, layer("conv", 1_000_000, "Conv"), layer("extra", 9_000_000, "Conv")))
    told = verdict(bigger, "partition_bytes", 5e6, plan(partition(0, layer("conv", 1_000_000, "Conv"))))
    assert "layer `extra` (Conv) is new since the previous plan, with 9.00 MB of weights" in told.message


def test_where_nothing_has_grown_that_is_said() -> None:
    told = verdict(NEW, "partition_bytes", 5e6, NEW)
    assert "no layer of it has grown much since the previous plan, and its largest is layer `fc1`" in told.message


def test_what_would_do_is_no_wish_for_memory_where_that_is_given() -> None:
    told = verdict(NEW, "peak_memory", 64e6, memory_bytes=64_000_000)
    assert told.message.endswith('`limits.peak_memory = "122MB"` would do')


def test_growth_is_a_share_of_what_was() -> None:
    rule = Rule(growth={"peak_memory": 0.05, "border_bytes": 3.0, "partitions": 0.0})
    _, peak, border, count = judge(outcome(NEW), rule, OLD, "budget.toml")
    assert not peak.is_kept
    assert "121 MB of memory, 73.1 % more than the 70.0 MB of the previous plan, where budget.toml allows 5 %" in (
        peak.message
    )
    assert '`growth.peak_memory = "74%"` would do' in peak.message
    assert border.is_kept, "four times as much is a growth of 300 %"
    assert count.is_kept


def test_growth_from_nothing_is_said_without_a_share() -> None:
    rule = Rule(growth={"border_bytes": 0.5})
    told = judge(outcome(NEW), rule, plan(partition(0, layer("a", 8))), "budget.toml")[-1]
    assert "where it was 0 B of the previous plan" in told.message
    assert told.number is None


def test_growth_without_a_previous_plan_is_not_judged() -> None:
    assert [v.check for v in judge(outcome(NEW), Rule(growth={"peak_memory": 0.0}), None, "b")] == [COMPILES]


def test_outputs_that_differ_too_much_end_with_four() -> None:
    told = judge(outcome(NEW, 2e-4), Rule(limits={"difference": 1e-4}), None, "budget.toml")[-1]
    assert told.exit_status == 4
    assert told.message == (
        "output `logits` differs from the model's by 0.0002 of its largest value, more than the 0.0001 of budget.toml"
    )


@pytest.mark.parametrize("limit", ["peak_memory", "border_bytes", "latency", "difference"])
def test_a_limit_that_cannot_be_checked_is_not_kept(limit: str) -> None:
    unknown = plan(partition(0, layer("a", 8)), border_bytes=None)
    told = judge(outcome(unknown, None), Rule(limits={limit: 1.0}), None, "budget.toml")[-1]
    assert not told.is_kept
    assert f"`{limit}` of budget.toml cannot be checked: " in told.message


def test_a_conversion_is_judged_where_there_was_one() -> None:
    rule = Rule(limits={"conversion_difference": 1e-4})
    assert [v.check for v in judge(outcome(NEW), rule, None, "b")] == [COMPILES]


def test_what_quantization_loses_is_judged_where_there_is_some() -> None:
    rule = Rule(limits={"quantization_loss": 0.01})
    assert [v.check for v in judge(outcome(NEW), rule, None, "b")] == [COMPILES]
    lossy = msgspec.structs.replace(NEW, quantization="int8", quantization_loss=Measured(value=0.02, where="logits"))
    told = judge(outcome(lossy), rule, None, "b")[-1]
    assert told.exit_status == 4
    assert "output `logits` differs from the unquantized model's by 0.02 of its largest value" in told.message
    unknown = judge(outcome(msgspec.structs.replace(lossy, quantization_loss=None)), rule, None, "b")[-1]
    assert "cannot be checked" in unknown.message


def test_the_border_is_named_with_the_layer_before_it() -> None:
    told = verdict(NEW, "border_bytes", 100.0)
    assert "3.20 kB cross borders" in told.message
    assert "the largest is `out0`, behind layer `conv` (Conv)" in told.message
    assert told.layer == "conv"


def test_figures_that_look_alike_are_told_apart() -> None:
    told = verdict(plan(partition(0, layer("a", 1_000_001))), "partition_bytes", 1_000_000)
    assert "1e+06" not in told.message
    assert "1000001 B" in told.message
    assert "1000000 B" in told.message


def test_a_model_that_cannot_keep_its_limit_is_told_with_what_grew() -> None:
    told = Problem(
        message="layer `fc1` (Gemm) needs 90.0 MB of memory, more than --memory 64.0 MB, and cannot be sliced: why",
        hint="the smallest that would do is --memory 91MB",
        code="E_INFEASIBLE",
        exit_status=3,
        layers=(layer("conv", 9_000_000, "Conv"), layer("fc1", 67_100_000)),
    )
    found = judge(Outcome(problem=told), Rule(), OLD, "budget.toml")[0]
    assert (found.exit_status, found.layer) == (3, "fc1")
    assert "layer `fc1` (Gemm) grew from 16.8 MB to 67.1 MB of weights since the previous plan; the smallest" in (
        found.message
    )
    assert 'more than `memory = "64.0 MB"`, and' in found.message
    assert 'the smallest that would do is `memory = "91MB"` [E_INFEASIBLE]' in found.message
    alone = judge(Outcome(problem=told), Rule(), None, "budget.toml")[0]
    assert alone.layer == "fc1"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("more than --max-params 300, and", "more than `max_params = 300`, and"),
        ("give `--memory`, or less", "give `memory`, or less"),
        ("is --memory 5MB; with --optimize portable, --memory", 'is `memory = "5MB"`; with `optimize = "portable"`,'),
        ("the same command with --trust", "the same command with --trust"),
    ],
)
def test_options_are_called_as_in_a_budget(said: str, told: str) -> None:
    problem = Problem(message=said, hint="", code="E_X", exit_status=1)
    assert told in judge(Outcome(problem=problem), Rule(), None, "b")[0].message


@pytest.mark.parametrize(("status", "told"), [(1, 1), (2, 1), (3, 3), (4, 4), (70, 70)])
def test_a_refusal_keeps_its_status_unless_it_is_about_the_command_line(status: int, told: int) -> None:
    problem = Problem(message="m", hint="", code="E_X", exit_status=status)
    assert judge(Outcome(problem=problem), Rule(), None, "b")[0].exit_status == told


@pytest.mark.parametrize(
    ("statuses", "decides"), [([0, 3], 3), ([3, 4], 4), ([4, 1, 3], 1), ([1, 70], 70), ([0, 0], 0), ([], 0)]
)
def test_the_worst_status_decides(statuses: list[int], decides: int) -> None:
    assert worst(statuses) == decides


@given(st.floats(1, 1e12), st.sampled_from(["bytes", "count", "s"]))
def test_what_would_do_does(value: float, unit: str) -> None:
    value = value / 1e6 if unit == "s" else float(int(value))
    read = {"bytes": parse_nbytes, "count": parse_count, "s": parse_seconds}[unit]
    written = _written(value, unit).strip('"')
    assert value <= read(written) * (1 + 1e-12)
    assert read(written) <= value * 1.02 + 1e-6


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_limit_is_kept_or_the_remedy_keeps_it(weight_bytes: int, most: int) -> None:
    found = plan(partition(0, layer("a", weight_bytes)))
    told = verdict(found, "partition_bytes", most)
    assert told.is_kept == (weight_bytes <= most)
    if not told.is_kept:
        remedy = told.message.partition('limits.partition_bytes = "')[2].partition('"')[0]
        assert verdict(found, "partition_bytes", parse_nbytes(remedy)).is_kept


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_every_limit_says_something_of_a_full_plan(name: str) -> None:
    found = Facts(plan=NEW, difference=Measured(value=0.0, where="logits"))
    assert LIMITS[name].name == name
    told = LIMITS[name].find(found)
    assert told is None or isinstance(told, str) or told.value >= 0


def test_the_worst_verdict_is_the_models_status() -> None:
    both = checked("m", outcome(NEW, 1.0), Rule(limits={"partition_bytes": 1, "difference": 1e-5}))
    assert both.exit_status == 4
    assert len(both.broken) == 2


def test_parts_of_a_divided_layer_count_together() -> None:
    one = plan(partition(0, layer("fc", 10_000)), partition(1, layer("fc", 30_000)))
    told = verdict(one, "partition_bytes", 5, plan(partition(0, layer("fc", 8_000))))
    assert "layer `fc` (Gemm) grew from 8.00 kB to 40.0 kB" in told.message


DIVIDED = plan(partition(0, layer("conv", 1_000_000, "Conv")), partition(1, layer("fc", 1_300), layer("new", 16)))
WHOLE = plan(partition(0, layer("conv", 1_000_000, "Conv"), layer("fc", 1_280)))


def test_copied_constants_are_no_growth() -> None:
    told = judge(outcome(DIVIDED), Rule(growth={"partitions": 0.0}), WHOLE, "budget.toml")[-1]
    assert told.message == (
        "the plan has 2 partitions, 100 % more than the 1 of the previous plan, where budget.toml allows 0 %:"
        ' no layer of it has grown much since the previous plan; `growth.partitions = "100%"` would do'
    )
    assert told.layer == ""


def test_other_options_are_told_and_no_layer_that_did_not_change() -> None:
    before = msgspec.structs.replace(WHOLE, options=CompileOptions())
    rule = Rule(
        options=CompileOptions(cut=("pooling",)),
        growth={"partitions": 0.0},
        limits={"border_bytes": 0, "partitions": 1},
    )
    _, count, grown = judge(outcome(DIVIDED), rule, before, "budget.toml")[-3:]
    for told in (count, grown):
        assert "the options are not those of the previous plan, `cut` was `mandatory` and is `pooling`" in told.message
        assert "grew" not in told.message
    assert grown.layer == ""
    wider = plan(partition(0, layer("conv", 9_000_000, "Conv")), partition(1, layer("fc", 1_300)))
    both = judge(outcome(wider), rule, before, "budget.toml")[-1]
    assert "`pooling`, layer `conv` (Conv) grew from 1.00 MB to 9.00 MB" in both.message


def test_a_share_of_many_times_is_readable() -> None:
    large, small = plan(partition(0, layer("a", 159_000))), plan(partition(0, layer("a", 10_000)))
    told = judge(outcome(large), Rule(growth={"partition_bytes": 0.0}), small, "budget.toml")[-1]
    assert "1,490 % more than the 10.0 kB" in told.message
