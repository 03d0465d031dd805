from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from hyps.errors import PlanError
from hyps.formats.plan import (
    Form,
    Partition,
    Plan,
    StreamedWeight,
    Variant,
    decode_plan,
    encode_plan,
    file_digests,
    is_inside,
    json_schema,
    partition_files,
    plan_problems,
)
from plan_fixtures import mlp, sharded

SCHEMA = Path(__file__).parents[3] / "docs" / "plan.schema.json"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return sharded().write(tmp_path / "plan")


def test_the_published_schema_is_the_one_that_decodes() -> None:
    assert json_schema() == SCHEMA.read_bytes(), "generate docs/plan.schema.json again, see CONTRIBUTING.md"


def test_a_plan_comes_back_as_it_was_written(plan: Plan) -> None:
    data = encode_plan(plan)

    assert decode_plan(data) == plan
    assert encode_plan(decode_plan(data)) == data


def test_unknown_fields_of_newer_writers_are_ignored(plan: Plan) -> None:
    value = msgspec.json.decode(encode_plan(plan))
    value["colour"] = "green"

    assert decode_plan(msgspec.json.encode(value)) == plan


def test_a_plan_from_the_future_is_refused_by_its_version(plan: Plan) -> None:
    with pytest.raises(PlanError, match="version 99") as caught:
        decode_plan(encode_plan(replace(plan, version=99)))

    assert caught.value.code == "E_VERSION"
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": "hyps-plan",}', b'{"format": NaN}', b"[" * 100_000, b"1" * 5000],
    ids=["empty", "list", "object", "not-utf8", "comma", "nan", "deep", "digits"],
)
def test_what_is_no_plan_is_refused_with_one_sentence(data: bytes) -> None:
    with pytest.raises(PlanError) as caught:
        decode_plan(data)

    assert "plan.json" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("path", ["../x.onnx", "/etc/passwd", "a/../../x", "C:\\x", "x\0y", "", ".", "a//b", "a/./b"])
def test_a_path_that_leaves_the_folder_is_named(plan: Plan, path: str) -> None:
    assert not is_inside(path)
    changed = _with_first(plan, file=path)

    assert any("leaves the plan folder" in problem for problem in plan_problems(changed))


def test_each_input_needs_one_earlier_producer(plan: Plan) -> None:
    swapped = replace(plan, partitions=plan.partitions[::-1])
    doubled = replace(plan, partitions=(*plan.partitions, replace(plan.partitions[0], id="again", file="again.onnx")))

    assert any("nothing makes before it" in problem for problem in plan_problems(swapped))
    assert any("made twice" in problem for problem in plan_problems(doubled))


def test_a_missing_output_and_a_missing_entry_are_named(plan: Plan) -> None:
    cut_off = replace(plan, partitions=plan.partitions[:-1])
    untold = replace(plan, tensors={name: info for name, info in plan.tensors.items() if name != "s"})

    assert any("made by no partition" in problem for problem in plan_problems(cut_off))
    assert any("no entry in `tensors`" in problem for problem in plan_problems(untold))


def test_every_variant_places_every_partition(plan: Plan) -> None:
    partly = replace(plan, variants=(Variant(name="local", placement={"first": "here"}),))

    assert plan_problems(plan) == []
    assert any("does not place exactly" in problem for problem in plan_problems(partly))
    assert any("at least one variant" in problem for problem in plan_problems(replace(plan, variants=())))


def test_several_problems_are_counted_in_one_sentence(tmp_path: Path) -> None:
    plan = mlp(4, 4, 4).write(tmp_path / "plan")
    wrong = replace(plan, partitions=tuple(replace(part, id="same") for part in plan.partitions))

    with pytest.raises(PlanError, match=r"and \d more"):
        decode_plan(encode_plan(wrong))


@pytest.fixture
def form(plan: Plan) -> Form:
    """The form of the plan's first partition, whose only weight has 12 x 12 floats."""
    first = plan.partitions[0]
    weight = StreamedWeight(path=first.weights[0].path, offset=0, nbytes=576, dtype="float32", shape=(12, 12))
    return Form(file="forms/f.onnx", sha256="0" * 64, inputs=first.inputs, outputs=first.outputs, weights=(weight,))


def test_a_form_is_one_of_the_files_of_its_partition(plan: Plan, form: Form) -> None:
    part = _with_first(plan, form=form).partitions[0]

    assert plan_problems(_with_first(plan, form=form)) == []
    assert partition_files(part) == (part.file, part.weights[0].path, "forms/f.onnx")
    assert file_digests(part)[-1] == ("forms/f.onnx", "0" * 64)


def test_a_partition_cannot_have_less_weight_than_its_form_reads(plan: Plan, form: Form) -> None:
    changed = _with_first(plan, form=form, weight_bytes=575)

    assert any("takes more weights than" in problem for problem in plan_problems(changed))


def test_a_form_outside_of_the_folder_is_named(plan: Plan, form: Form) -> None:
    changed = _with_first(plan, form=replace(form, file="../f.onnx"))

    assert any("`../f.onnx` leaves the plan folder" in problem for problem in plan_problems(changed))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"offset": 4}, "outside of"),
        ({"offset": -1}, "outside of"),
        ({"path": "partitions/fc0.onnx.data"}, "outside of"),
        ({"shape": (12, 13)}, "576 bytes that is no `float32`"),
        ({"shape": (-12, -12)}, "576 bytes that is no `float32`"),
        ({"dtype": "float16"}, "576 bytes that is no `float16`"),
        ({"offset": 1, "shape": (12, 11), "nbytes": 528}, "at 1 where no `float32` can lie"),
        ({"shape": (0,), "nbytes": 0}, "at 0 where no `float32` can lie"),
        ({"dtype": "object"}, "576 bytes that is no `object`"),
        ({"shape": (*[1] * 31, 12, 12)}, "33 axes"),
        ({"shape": (2**63 - 1,) * 300_000}, "300000 axes"),  # whose product takes half an hour
    ],
)
def test_a_form_reads_its_weights_inside_of_its_own_files(
    plan: Plan, form: Form, change: dict[str, object], problem: str
) -> None:
    weight = replace(form.weights[0], **change)

    assert any(problem in said for said in plan_problems(_with_first(plan, form=replace(form, weights=(weight,)))))


def test_a_form_takes_and_makes_what_its_partition_does(plan: Plan, form: Form) -> None:
    for change in ({"inputs": ("y",)}, {"outputs": ("s", "s")}):
        changed = _with_first(plan, form=replace(form, **change))

        assert any("takes or makes other tensors" in problem for problem in plan_problems(changed))


def _with_first(plan: Plan, **changes: str | int | Form) -> Plan:
    first: Partition = replace(plan.partitions[0], **changes)
    return replace(plan, partitions=(first, *plan.partitions[1:]))
