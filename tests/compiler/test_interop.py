"""Models that say themselves how they are to be divided: read, followed, written, and read again."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

import hyps_compiler
from cut_fixtures import is_same, plain_session
from hyps.adapters.plan_files import read_plan
from hyps.errors import ClusterError, ModelError, OutputError, UsageError
from hyps.formats.plan import Plan
from hyps.formats.profiles import encode_profile
from hyps_compiler.cli import main
from hyps_compiler.cli_annotate import FORMATS
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.inspection import inspect_model, show_model
from hyps_compiler.interop.annotating import WRITERS, Annotated, annotate_model, show_annotated
from hyps_compiler.interop.annotations import read_configurations
from hyps_compiler.interop.dag import read_dag, spread
from hyps_compiler.interop.olive import split_of
from hyps_compiler.interop.reading import read_wanted
from hyps_compiler.interop.wanted import Wanted
from hyps_compiler.measure import measure
from hyps_compiler.partition import Request, divide
from hyps_compiler.profiling import ProfileOptions, profile_model
from hyps_compiler.source import open_source
from hyps_compiler.stage import stage_model
from interop_fixtures import WIDTH, dense_chain, in_configuration, random_dag, transformer_like, with_sharding
from model_fixtures import floats, model_of, save

CUT = Request(cuts=("annotations",))
DAGS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=14)


def compiled(folder: Path, model: ModelProto, request: Request = CUT, name: str = "model", **options: Any) -> Plan:
    path = save(model, folder / f"{name}.onnx")
    return compile_model(path, folder / f"{name}.plan", Options(request=request, **options)).plan


def borders(plan: Plan) -> list[tuple[str, ...]]:
    """Return what leaves each partition for another one."""
    read = {name for part in plan.partitions for name in part.inputs}
    return [tuple(sorted(set(part.outputs) & read)) for part in plan.partitions]


def annotated(folder: Path, plan: str = "model.plan", name: str = "annotated", **options: Any) -> Annotated:
    return annotate_model(str(folder / "model.onnx"), folder / plan, folder / f"{name}.onnx", **options)


def test_pipeline_stages_are_the_partitions_even_inside_what_onnxruntime_fuses(tmp_path: Path) -> None:
    model = in_configuration(dense_chain(), {index: int(index >= 4) for index in range(12)})
    plan = compiled(tmp_path, model)
    assert borders(plan) == [("m1",), ()]
    (point,) = [point for point in plan.split_points if point.chosen]
    assert point.reason == "end of stage 0 of configuration `two`"


def test_nodes_without_a_stage_follow_what_they_need_and_else_what_needs_them(tmp_path: Path) -> None:
    plan = compiled(tmp_path, in_configuration(dense_chain(), {5: 0, 8: 3}))
    assert borders(plan) == [("a2",), ()]
    wanted = read_wanted(tmp_path / "model.onnx", None)
    assert [wanted.stage_of[name] for name in ("m0", "r1", "m2", "a2", "r2", "r3")] == [0, 0, 0, 0, 3, 3]


def test_tensors_that_quantizing_does_away_with_are_not_kept() -> None:
    request = Request(tensors=("named",), wanted=Wanted("a test", {}, crossing=("gone", "there", "named")))
    assert request.kept_in({"there"}) == ("named", "there")


def test_stages_that_the_file_does_not_have_in_order_still_are_partitions(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["late"], name="late"),
        helper.make_node("Sigmoid", ["x"], ["early"], name="early"),
        helper.make_node("Add", ["late", "early"], ["y"], name="sum"),
    ]
    model = dense_chain(1)
    weight = model.graph.initializer[0]
    del model.graph.node[:], model.graph.initializer[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    weight.name = "w"
    model.graph.initializer.append(weight)
    model.graph.output.append(helper.make_tensor_value_info("y", 1, ["N", WIDTH]))
    plan = compiled(tmp_path, in_configuration(model, {0: 1, 1: 0, 2: 1}))
    assert borders(plan) == [("early",), ()]


def test_a_node_that_stands_before_what_it_needs_runs_behind_it_and_the_split_point_says_so(tmp_path: Path) -> None:
    stages = {index: [0, 1, 0][index // 4] for index in range(12)}
    plan = compiled(tmp_path, in_configuration(dense_chain(), stages))
    assert borders(plan) == [("m1",), ()]
    (reason,) = [point.reason for point in plan.split_points if point.chosen]
    assert reason.endswith("; `relu2` and 3 more of stage 0 moved behind it, needing what comes there")


def test_stages_in_the_wrong_order_throughout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leaves nothing to cut: node `relu1` is in stage 0 and needs what stage 1"):
        compiled(tmp_path, in_configuration(dense_chain(), {index: int(index < 5) for index in range(12)}))


def test_the_edge_of_a_tensor_that_cannot_travel_moves_and_says_so(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], name="sigmoid"),
        helper.make_node("SplitToSequence", ["s"], ["q"], name="split", axis=1, keepdims=1),
        helper.make_node("ConcatFromSequence", ["q"], ["c"], name="concat", axis=1),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, WIDTH])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=11)
    plan = compiled(tmp_path, in_configuration(model, {0: 0, 1: 0, 2: 1, 3: 1}))
    assert borders(plan) == [("s",), ()]
    assert any("nothing may separate layer" in point.reason for point in plan.split_points)


@pytest.mark.parametrize(("axis", "merge"), [(1, "concat"), (-1, "concat"), (0, "sum")])
def test_a_divided_weight_is_h_partitions(tmp_path: Path, axis: int, merge: str) -> None:
    model = with_sharding(in_configuration(dense_chain(), {0: 0}), 3, "w1", axis, 3)
    plan = compiled(tmp_path, model)
    shards = [part.shard for part in plan.partitions if part.shard is not None]
    assert [(shard.index, shard.count, shard.merge) for shard in shards] == [(index, 3, merge) for index in range(3)]


def test_a_divided_convolution_is_h_partitions(tmp_path: Path) -> None:
    weights = {"k": np.random.default_rng(0).standard_normal((WIDTH, 3, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    model = model_of(nodes, [floats("x", 1, 3, 8, 8)], [floats("y", 1, WIDTH, 8, 8)], weights, ir_version=11)
    plan = compiled(tmp_path, with_sharding(in_configuration(model, {0: 0}), 0, "k", 0, 2))
    assert [part.shard.axis for part in plan.partitions if part.shard is not None] == [-3, -3]
    told = annotated(tmp_path)
    assert told.divided == ("conv",)
    again = compile_model(told.path, tmp_path / "again", Options(request=CUT)).plan
    assert borders(again) == borders(plan)


def test_a_layer_that_cannot_be_divided_so_is_refused(tmp_path: Path) -> None:
    model = with_sharding(in_configuration(dense_chain(), {0: 0}), 3, "w1", 1, 8)
    model.graph.node[3].device_configurations[0].sharding_spec[0].sharded_dim[0].simple_sharding[0].ClearField("dim")
    model.graph.node[3].device_configurations[0].sharding_spec[0].sharded_dim[0].simple_sharding[0].num_shards = 9
    with pytest.raises(ModelError, match="node `mm1` cannot be divided in 9 parts along axis -1 of what it makes: it"):
        compiled(tmp_path, model)


def test_the_assignments_of_olive_are_followed_as_its_own_split_does(tmp_path: Path) -> None:
    plan = compiled(tmp_path, transformer_like())
    assert borders(plan) == [("h2", "mask"), ()]
    wanted = read_wanted(tmp_path / "model.onnx", None)
    assert wanted.stage_of["h0"] == 0  # before the first module: with the first that needs it
    assert wanted.stage_of["logits"] == 1  # behind the last: with what it needs


def test_the_longest_module_counts_and_quantizing_stays_with_what_it_quantizes() -> None:
    modules = {"model.layers.1": 1, "model.layers.1.mlp": 2, "model": 0}
    names = ("/model/layers.1/mlp/MatMul", "/model/layers.1/Add", "/model/layers.10/Add", "model.norm", "/lm_head")
    assert [split_of(name, modules) for name in names] == [2, 1, 0, 0, None]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty"),
        ("model.layers.0", "is no `name=index`"),
        ("model.layers.0=-1", "is no `name=index`"),
        ("model.layers.0=one", "is no `name=index`"),
        ("=1", "is no `name=index`"),
        ("a=1;a=2", "is in splits 1 and 2"),
        ("a=99999999", "is in split 99999999"),
        ("a=" + "9" * 5000, "is no `name=index`"),
        ("elsewhere=1", "no node's name begins with a module"),
    ],
)
def test_metadata_of_a_wrong_form_is_refused_in_a_sentence(tmp_path: Path, value: str, message: str) -> None:
    model = transformer_like()
    model.metadata_props[0].value = value
    with pytest.raises(ModelError, match=message) as caught:
        compiled(tmp_path, model)
    assert caught.value.code == "E_ANNOTATION"
    assert len(caught.value.message) < 400


def damaged(what: str) -> ModelProto:
    """Return a model with annotations that are wrong in one way."""
    model = in_configuration(dense_chain(), {0: 0, 6: 1})
    said = model.graph.node[0].device_configurations
    if what == "unknown":
        said[0].configuration_id = "three"
    elif what == "negative":
        said[0].pipeline_stage = -1
    elif what == "twice":
        said.add(configuration_id="two", pipeline_stage=1)
    elif what == "no device":
        model.configuration[0].num_devices = 0
    elif what == "many devices":
        model.configuration[0].num_devices = 2**31 - 1
    elif what == "same name":
        model.configuration.add(name="two", num_devices=1)
    elif what == "no name":
        model.configuration.add(num_devices=1)
    else:
        spec = said[0].sharding_spec.add(tensor_name="w0", device=[0, 1])
        divided = spec.sharded_dim.add(axis=1)
        divided.simple_sharding.add(dim_value=WIDTH, num_shards=2)
        if what == "two specs":
            said[0].sharding_spec.add(tensor_name="w0")
        elif what == "foreign tensor":
            spec.tensor_name = "w1"
        elif what == "device":
            spec.device[1] = 7
        elif what == "group":
            spec.device[1] = -1
            spec.index_to_device_group_map.add(key=-1, value=[0, 9])
        elif what == "axis":
            divided.axis = 2
        elif what == "axis twice":
            spec.sharded_dim.add(axis=-1).simple_sharding.add(num_shards=2)
        elif what == "parts":
            divided.simple_sharding[0].num_shards = 2**62
        elif what == "no parts":
            divided.simple_sharding[0].num_shards = 0
        else:
            divided.simple_sharding.add(dim_value=2, num_shards=2)
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("unknown", "node `mm0` refers to the device configuration `three`, which the model does not have"),
        ("negative", "node `mm0` is in pipeline stage -1"),
        ("twice", "node `mm0` refers to the device configuration `two` twice"),
        ("no device", "says 0 devices and names 2"),
        ("many devices", "says 2147483647 devices"),
        ("same name", "two device configurations are called `two`"),
        ("no name", "a device configuration has no name"),
        ("two specs", "node `mm0` says twice how the tensor `w0` is divided"),
        ("foreign tensor", "divides the tensor `w1`, which it neither reads nor makes"),
        ("device", "puts the tensor `w0` on device 7, and there are 2"),
        ("group", "puts the tensor `w0` on device 9"),
        ("axis", "along axis 2, and it has 2 axes"),
        ("axis twice", "along axis -1 twice"),
        ("parts", "of length 8, in 4611686018427387904 parts"),
        ("no parts", "in 0 parts"),
        ("joined", "axes that a reshape has joined"),
    ],
)
def test_wrong_annotations_are_refused_in_a_sentence(tmp_path: Path, what: str, message: str) -> None:
    path = save(damaged(what), tmp_path / "model.onnx")
    with pytest.raises(ModelError) as caught:
        read_wanted(path, None)
    assert message in caught.value.message
    assert caught.value.code == "E_ANNOTATION"


@pytest.mark.parametrize(("what", "message"), [("unknown", "the device configuration `three`"), ("parts", "in 4611")])
def test_wrong_annotations_are_told_by_inspect(tmp_path: Path, what: str, message: str) -> None:
    path = save(damaged(what), tmp_path / "model.onnx")
    told = [line for line in show_model(inspect_model(str(path), Request(), {})).splitlines() if "annotations" in line]
    assert len(told) == 1
    assert told[0].startswith("annotations: those of several devices cannot be used: node `mm0` ")
    assert message in told[0]


def test_what_is_not_there_or_not_unique_is_refused(tmp_path: Path) -> None:
    path = save(dense_chain(), tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match="no annotations that say where to cut"):
        read_wanted(path, None)
    with pytest.raises(ModelError, match="no device configuration `other`"):
        read_wanted(path, "other")
    with pytest.raises(ModelError, match="no metadata `split_assignments`"):
        read_wanted(path, "split_assignments")
    two = in_configuration(in_configuration(dense_chain(), {0: 0, 3: 1}), {0: 0, 6: 1}, "other")
    path = save(two, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match="has 2 device configurations: `two`, `other`"):
        read_wanted(path, None)
    assert read_wanted(path, "other").stage_of["r1"] == 0
    with pytest.raises(UsageError, match="--configuration is about --cut annotations"):
        compiled(tmp_path, two, Request(configuration="two"))
    empty = save(in_configuration(dense_chain(), {}), tmp_path / "empty.onnx")
    with pytest.raises(ModelError, match="gives no node a pipeline stage"):
        read_wanted(empty, None)


def test_annotations_do_not_hinder_who_does_not_ask_for_them(tmp_path: Path) -> None:
    model = with_sharding(in_configuration(dense_chain(), {0: 0, 6: 1}), 3, "w1", 1, 2)
    plan = compiled(tmp_path, model, Request(max_params=50))  # layers are divided, so that nodes are made anew
    assert any(part.shard for part in plan.partitions)
    for part in plan.partitions:
        file = onnx.load(tmp_path / "model.plan" / part.file, load_external_data=False)
        assert not any(node.device_configurations for node in file.graph.node)


@settings(max_examples=200, deadline=None)
@given(DAGS, st.dictionaries(st.integers(0, 13), st.integers(0, 3)))
def test_spread_stages_never_fall_along_an_edge_and_move_only_what_must(
    choices: list[tuple[int, int, int]], told: dict[int, int]
) -> None:
    dag = read_dag(random_dag(choices).graph)
    told = {index: stage for index, stage in told.items() if index < len(choices)}
    stages, moved = spread(dag, told)
    assert sorted(stages) == list(range(len(choices)))
    for index, needs in enumerate(dag.needs):
        assert all(stages[maker] <= stages[index] for maker in needs)
    assert {dag.name(i) for i, stage in told.items() if stages[i] != stage} == {one.node for one in moved}
    assert spread(dag, stages) == (stages, ())


@settings(max_examples=8, derandomize=True, deadline=None, phases=[Phase.generate])
@given(choices=DAGS, told=st.lists(st.integers(0, 2), min_size=14, max_size=14))
def test_partitions_are_the_stages_of_random_models(
    tmp_path_factory: pytest.TempPathFactory, choices: list[tuple[int, int, int]], told: list[int]
) -> None:
    model = random_dag(choices)
    dag = read_dag(model.graph)
    stages, _ = spread(dag, dict(enumerate(told[: len(choices)])))
    folder = tmp_path_factory.mktemp("random")
    source = open_source(save(in_configuration(model, stages), folder / "model.onnx"))
    wanted = read_wanted(source.path, "two")
    for level in ("none", "portable"):
        (folder / level).mkdir()
        staged = stage_model(source, folder / level, level, wanted.crossing)
        sizes = measure(staged.model, staged.path, shapes={}, feeds=None).sizes
        division = divide(staged.model, sizes, staged.fused, Request(wanted=wanted))
        found = []
        for first, last in division.windows:
            nodes = [node for layer in division.graph.layers[first : last + 1] for node in layer.nodes]
            made = [str(value.name) for node in nodes for value in node.outputs]
            found.append({wanted.stage_of[name] for name in made if name in wanted.stage_of})
        assert all(len(group) == 1 for group in found)
        assert [group.pop() for group in found] == sorted(set(stages.values()))


@settings(max_examples=4, derandomize=True, deadline=None, phases=[Phase.generate])
@given(choices=DAGS, told=st.lists(st.integers(0, 2), min_size=14, max_size=14), form=st.sampled_from(FORMATS))
def test_a_plan_of_a_random_model_comes_back_from_its_annotations(
    tmp_path_factory: pytest.TempPathFactory, choices: list[tuple[int, int, int]], told: list[int], form: Any
) -> None:
    folder = tmp_path_factory.mktemp("random")
    model = random_dag(choices)
    stages, _ = spread(read_dag(model.graph), dict(enumerate(told[: len(choices)])))
    plan = compiled(folder, in_configuration(model, stages), verify=False)
    told_of = annotated(folder, format=form)
    assert told_of.untold == ()
    again = compile_model(told_of.path, folder / "again", Options(request=CUT)).plan
    assert borders(again) == borders(plan)


@pytest.mark.parametrize("form", FORMATS)
def test_an_annotated_model_is_right_and_computes_the_same(tmp_path: Path, form: Any) -> None:
    plan = compiled(tmp_path, dense_chain(), Request(cuts=("all",)))
    told = annotated(tmp_path, format=form)
    onnx.checker.check_model(str(told.path), full_check=True)
    request = {"x": np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)}
    for optimized in (False, True):
        before, after = (
            plain_session(path, optimized=optimized).run(None, request) for path in (tmp_path / "model.onnx", told.path)
        )
        assert is_same(before[0], after[0])
    again = compile_model(told.path, tmp_path / "again", Options(request=CUT)).plan
    assert borders(again) == borders(plan)
    assert told.stages == len(plan.partitions)


def test_h_partitions_come_back_from_the_annotations(tmp_path: Path) -> None:
    plan = compiled(tmp_path, dense_chain(), Request(max_params=50))
    told = annotated(tmp_path)
    assert told.divided == ("mm0", "mm1", "mm2", "mm3")
    again = compile_model(told.path, tmp_path / "again", Options(request=CUT)).plan
    assert [part.shard for part in again.partitions] == [part.shard for part in plan.partitions]
    assert borders(again) == borders(plan)
    olive = annotated(tmp_path, name="olive", format="olive")
    assert "Olive's format divides no layer" in olive.untold


def test_what_the_annotations_cannot_say_is_told(tmp_path: Path) -> None:
    choices = [(2, 0, 0), (2, 0, 0), (1, 2, 2), (1, 1, 1), (0, 1, 0), (1, 2, 5)]
    twice = random_dag(choices)  # two equal sigmoids, of which onnxruntime leaves one
    plan = compiled(tmp_path, twice, Request(max_params=40))
    told = annotated(tmp_path)
    assert told.divided == ("n4",)
    assert len(told.untold) == 1
    assert told.untold[0].startswith("1 tensor more between stages, which the plan has under another name: `v")
    again = compile_model(told.path, tmp_path / "again", Options(request=CUT)).plan
    assert [part.shard for part in again.partitions] == [part.shard for part in plan.partitions]


def test_earlier_annotations_are_replaced(tmp_path: Path) -> None:
    model = in_configuration(transformer_like(), {0: 0, 5: 1})
    model.ir_version = 11
    plan = compiled(tmp_path, model, Request(cuts=("mandatory",), tensors=("h3",)))
    onnx_path = annotated(tmp_path).path
    made = onnx.load(onnx_path)
    assert [one.name for one in made.configuration] == ["local"]
    assert not made.metadata_props
    olive_path = annotated(tmp_path, name="olive", format="olive").path
    assert not onnx.load(olive_path).configuration
    for path in (onnx_path, olive_path):
        again = compile_model(path, tmp_path / f"{path.stem}.plan", Options(request=CUT)).plan
        assert borders(again) == borders(plan)


def test_weights_in_files_stay_there_and_are_copied_only_elsewhere(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    onnx.save(dense_chain(), home / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    compile_model(home / "model.onnx", home / "plan", Options(request=Request(cuts=("all",))))
    beside = annotate_model(str(home / "model.onnx"), home / "plan", home / "annotated.onnx")
    assert beside.copied == ()
    told = annotate_model(str(home / "model.onnx"), home / "plan", away / "annotated.onnx")
    assert told.copied == (str(away / "model.data"),)
    assert (away / "model.data").read_bytes() == (home / "model.data").read_bytes()
    request = {"x": np.ones((1, WIDTH), np.float32)}
    answers = [ort.InferenceSession(path).run(None, request)[0] for path in (home / "model.onnx", told.path)]
    assert is_same(*answers)
    with pytest.raises(OutputError, match="exists"):
        annotate_model(str(home / "model.onnx"), home / "plan", away / "other.onnx")
    assert not (away / "other.onnx").exists()
    with pytest.raises(OutputError, match="also the name of the model's file of weights"):
        annotate_model(str(home / "model.onnx"), home / "plan", away / "model.data", force=True)


def test_a_model_of_old_has_no_weights_among_its_inputs_afterwards(tmp_path: Path) -> None:
    model = dense_chain()
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in model.graph.initializer
    )
    compiled(tmp_path, model, Request(cuts=("all",)))
    session = ort.InferenceSession(annotated(tmp_path).path)
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert not session.get_overridable_initializers()


def test_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    compiled(tmp_path, dense_chain(), Request(), name="other")
    save(dense_chain(3), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="made from another model"):
        annotated(tmp_path, "other.plan")


CLUSTER = """
entry = "right"
[[devices]]
name = "spare"
[[devices]]
name = "right"
[[devices]]
name = "{other}"
[[links]]
between = ["right", "{other}"]
up = "100Mbit/s"
[[links]]
between = ["right", "spare"]
up = "100Mbit/s"
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a profile of the chain, measured here."""
    folder = tmp_path_factory.mktemp("profile")
    model = save(dense_chain(), folder / "model.onnx")
    path = folder / "here.json"
    path.write_bytes(encode_profile(profile_model(str(model), ProfileOptions(repeats=1))))
    return path


def placed(folder: Path, profile: Path, name: str = "model", other: str = "left", **asked: Any) -> Plan:
    path = folder / "cluster.toml"
    path.write_text(CLUSTER.format(other=other))
    return hyps_compiler.compile(
        folder / f"{name}.onnx", folder / f"{name}.plan", cut="annotations", cluster=path, profile=profile, **asked
    )


def test_on_a_cluster_stages_and_parts_run_where_the_annotations_say(tmp_path: Path, profile: Path) -> None:
    model = with_sharding(in_configuration(dense_chain(), {0: 0, 6: 1}), 3, "w1", 1, 2)
    save(model, tmp_path / "model.onnx")
    plan = placed(tmp_path, profile)
    (variant,) = plan.variants
    where = [variant.placement[part.id] for part in plan.partitions]
    kinds = [part.kind for part in plan.partitions]
    assert list(zip(kinds, where, strict=True)) == [
        ("vertical", "left"),
        ("horizontal", "left"),
        ("horizontal", "right"),
        ("vertical", "left"),
        ("vertical", "right"),
    ]
    told = annotated(tmp_path)
    assert told.devices == (("left", "right"),)
    again = placed(tmp_path, profile, "annotated")
    assert [again.variants[0].placement[part.id] for part in again.partitions] == where
    assert borders(again) == borders(plan)


def test_devices_that_the_cluster_does_not_have_are_refused(tmp_path: Path, profile: Path) -> None:
    save(in_configuration(dense_chain(), {0: 0, 6: 1}), tmp_path / "model.onnx")
    with pytest.raises(ClusterError, match="stage 0 of configuration `two` is for device `left` and the cluster has"):
        placed(tmp_path, profile, other="middle")
    save(in_configuration(dense_chain(), {0: 0, 6: 5}), tmp_path / "far.onnx")
    with pytest.raises(ClusterError, match="for device number 5, of 2, and the cluster has none of that name"):
        placed(tmp_path, profile, "far")


def test_devices_without_names_are_those_of_the_cluster_in_order(tmp_path: Path, profile: Path) -> None:
    model = in_configuration(dense_chain(), {0: 0, 6: 1})
    del model.configuration[0].device[:]
    save(model, tmp_path / "model.onnx")
    plan = placed(tmp_path, profile)
    assert [plan.variants[0].placement[part.id] for part in plan.partitions] == ["spare", "right"]
    model = dense_chain()
    model.metadata_props.add(key="split_assignments", value="mm0=3;mm1=5;mm2=7;mm3=9")
    save(model, tmp_path / "olive.onnx")
    with pytest.raises(ClusterError, match="stage 9 of `split_assignments` is for device 3, counted from 0"):
        placed(tmp_path, profile, "olive")


def test_a_search_is_not_asked_where_annotations_decide(tmp_path: Path) -> None:
    arguments = ["compile", "m.onnx", "-o", "p", "--cut", "annotations", "--cluster", "c.toml", "--strategy", "exact"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--strategy is about a search, and the model's annotations decide" in result.output


def test_inspect_shows_what_a_model_has(tmp_path: Path) -> None:
    model = with_sharding(in_configuration(dense_chain(), {0: 0, 3: 0, 6: 2}), 3, "w1", 1, 2)
    model.metadata_props.add(key="split_assignments", value="mm0=0;mm2=1")
    view = inspect_model(str(save(model, tmp_path / "model.onnx")), Request(), {})
    text = show_model(view)
    assert (
        "annotations: configuration `two`, 2 devices (left, right), 2 stages (0 to 2) of 3 nodes, 1 node divided"
        in text
    )
    assert "annotations: Olive's `split_assignments`, 2 stages (0 to 1) of 2 nodes" in text
    assert [row.format for row in view.annotations] == ["onnx", "olive"]


def test_what_is_said_at_the_end_names_configurations_and_what_is_left_out(tmp_path: Path) -> None:
    compiled(tmp_path, dense_chain(), Request(max_params=50))
    text = show_annotated(annotated(tmp_path))
    assert text.startswith("annotated: configuration `local`, ")
    assert "divided:   `mm0`, `mm1`, `mm2` and 1 more" in text
    assert set(WRITERS) == set(FORMATS)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    compiled(tmp_path, dense_chain(), Request(max_params=50))
    made = onnx.load(annotated(tmp_path).path)
    (found,) = read_configurations(made, read_dag(made.graph))
    assert found.devices == ("local",)
    plan = read_plan(tmp_path / "model.plan")
    assert len(set(found.stages.values())) == sum(part.shard is None for part in plan.partitions)
    assert sorted(found.stages) == list(range(12))
