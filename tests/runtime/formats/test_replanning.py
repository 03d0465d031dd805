"""Questions and replies survive their journey, and a plan is told as it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hyps.errors import HypsError, PlanError, UsageError
from hyps.formats.plan import FileRef, Prediction, Variant
from hyps.formats.replanning import (
    Aim,
    Answer,
    LinkFacts,
    Question,
    Refusal,
    Reply,
    Timing,
    aim_of,
    decode_question,
    decode_reply,
    encode_line,
    partition_facts,
    question_problems,
    tensor_bytes_of,
    timings_of,
    unsized,
    variant_of,
)
from plan_fixtures import mlp
from replanning_fixtures import chain

QUESTION = chain((0.1, 0.2), {"a": 1, "b": 2}, memory_bytes=10**8)
ANSWER = Answer(number=3, placement={"p0": "a"}, replicas={"p0": ("b",)}, prediction=Prediction(latency_s=0.5))


def test_a_question_arrives_in_one_line() -> None:
    line = encode_line(QUESTION)

    assert decode_question(line) == QUESTION
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@pytest.mark.parametrize("reply", [ANSWER, Refusal(number=3, code="E_INFEASIBLE", message="no", hint="more")])
def test_a_reply_arrives_in_one_line(reply: Reply) -> None:
    assert decode_reply(encode_line(reply)) == reply


@given(st.binary(max_size=80))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="not a question"):
        decode_question(data)
    with pytest.raises(PlanError, match="not a placement"):
        decode_reply(data)


@given(st.data())
def test_a_damaged_question_is_refused_in_a_sentence_or_read(data: st.DataObject) -> None:
    line = bytearray(encode_line(QUESTION))
    for _ in range(data.draw(st.integers(1, 3))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    told = _told_of(bytes(line))

    if isinstance(told, HypsError):
        assert told.code == "E_QUESTION"
        assert "\n" not in told.message
    else:
        assert question_problems(told) == []


def _told_of(line: bytes) -> Question | HypsError:
    try:
        return decode_question(line)
    except HypsError as error:
        return error


def _broken(change: str) -> Question:
    first, second = QUESTION.partitions
    device = QUESTION.devices[0]
    return {
        "twice": replace(QUESTION, partitions=(first, replace(second, id="p0"))),
        "devices": replace(QUESTION, devices=(device, device)),
        "nameless": replace(QUESTION, devices=(replace(device, name=""),)),
        "order": replace(QUESTION, partitions=(second, first)),
        "made": replace(QUESTION, partitions=(first, replace(second, outputs=("t1",)))),
        "output": replace(QUESTION, model_outputs=("t9",)),
        "size": replace(QUESTION, tensor_bytes={"t0": 1, "t1": 1}),
    }[change]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("twice", "partition `p0` stands twice"),
        ("devices", "device `a` stands twice"),
        ("nameless", "a device has no name"),
        ("order", "partition `p1` needs `t1`, which nothing makes before it"),
        ("made", "partition `p1` makes `t1`, which is there already"),
        ("output", "output `t9` is made by no partition"),
        ("size", "tensor `t2` has no size"),
    ],
)
def test_a_question_that_is_wrong_says_what_is(change: str, told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        decode_question(encode_line(_broken(change)))

    assert told in refusal.value.message


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_link_without_a_rate_is_refused(rate: float) -> None:
    link = LinkFacts(source="a", target="b", bytes_per_s=rate)

    with pytest.raises(UsageError, match="bytes_per_s"):
        decode_question(encode_line(replace(QUESTION, links=(link,))))


def test_a_plan_is_told_with_its_weights_sizes_and_scratch(tmp_path: Path) -> None:
    plan = mlp(6, 8, 4, assumed=2).write(tmp_path / "plan")
    shared = FileRef(path="partitions/shared.weights", sha256="0" * 64, nbytes=64)
    first, *others = plan.partitions
    first = replace(first, weights=(shared,), weight_bytes=100, peak_memory_bytes=1000)
    plan = replace(plan, partitions=(first, *others))

    told = partition_facts(plan)

    assert [part.id for part in told] == [part.id for part in plan.partitions]
    assert {weight.key: weight.nbytes for weight in told[0].weights} == {"0" * 64: 64, first.id: 36}
    passing = sum(tensor_bytes_of(plan)[name] for name in (*first.inputs, *first.outputs))
    assert told[0].work_bytes == 1000 - 100 - passing
    assert unsized(plan) == ()


def test_what_a_plan_predicts_is_told_by_its_first_variant_that_says_it(tmp_path: Path) -> None:
    plan = mlp(6, 8, 4).write(tmp_path / "plan")
    part = plan.partitions[0].id
    best, other, batched = (
        Variant(
            name=name,
            placement=dict.fromkeys((p.id for p in plan.partitions), device),
            prediction=Prediction(partition_s={part: seconds}, batch=batch),
        )
        for name, device, seconds, batch in (("best", "a", 0.1, 1), ("other", "a", 0.2, 1), ("batched", "b", 0.3, 4))
    )

    told = timings_of(replace(plan, variants=(best, other, batched)))

    assert told == (Timing(partition=part, device="a", seconds=0.1, is_measured=False),)


@pytest.mark.parametrize(
    ("of_plan", "chosen", "aim"),
    [
        ("throughput", None, "throughput"),
        ("throughput", "memory", "memory"),
        (None, None, "latency"),
        ("bytes", None, "latency"),
    ],
)
def test_what_is_wanted_is_chosen_or_the_plans_or_latency(
    tmp_path: Path, of_plan: str | None, chosen: Aim | None, aim: Aim
) -> None:
    plan = replace(mlp(6, 4).write(tmp_path / "plan"), objective=of_plan)

    assert aim_of(plan, chosen) == aim


def test_an_answer_is_one_more_variant() -> None:
    variant = variant_of(ANSWER, "again1")

    assert (variant.name, variant.placement, variant.replicas) == ("again1", {"p0": "a"}, {"p0": ("b",)})
    assert variant.prediction.latency_s == 0.5
