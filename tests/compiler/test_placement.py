"""A model divided among the devices of a cluster: real profiles, real plans, each device's part run by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hyps_compiler
from hyps.adapters.plan_files import read_plan
from hyps.core.switching import best_variant, regime_s
from hyps.errors import ClusterError, HypsError, InfeasibleError, ProfileError, UsageError
from hyps.formats.plan import Plan, plan_problems
from hyps.formats.profiles import encode_profile
from hyps.local import LocalRunner
from hyps_compiler.cli import main
from hyps_compiler.clusters import SiteRequest, load_problem, load_site
from hyps_compiler.driver import Compiled, Options, compile_model
from hyps_compiler.placement import PlacementRequest
from hyps_compiler.placement_report import show_placement
from hyps_compiler.profiling import ProfileOptions, profile_model
from hyps_models import zoo

CLUSTER = """
entry = "camera"
[[devices]]
name = "camera"
speed = 0.01
active_w = 5.0
idle_w = 1.0
{camera}
[[devices]]
name = "server"
tier = "edge"
active_w = 50.0
idle_w = 20.0
{server}
[[links]]
between = ["camera", "server"]
up = "{up}"
latency = "0.1ms"
{more}
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a profile of the small trained network, measured here."""
    path = tmp_path_factory.mktemp("profile") / "here.json"
    path.write_bytes(encode_profile(profile_model("zoo:digits", ProfileOptions(repeats=3, batches=(1, 4)))))
    return path


@pytest.fixture(scope="module")
def names(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the layers of that network."""
    path = tmp_path_factory.mktemp("names") / "cluster.toml"
    path.write_text(cluster_text())
    return [layer.name for layer in load_problem("zoo:digits", SiteRequest(path, profile)).graph.layers]


def cluster_text(camera: str = "", server: str = "", up: str = "50Mbit/s", more: str = "") -> str:
    return CLUSTER.format(camera=camera, server=server, up=up, more=more)


def place(folder: Path, profile: Path, text: str, **wishes: Any) -> Compiled:
    """Compile the network for the cluster of `text` into `folder`/plan."""
    path = folder / "cluster.toml"
    path.write_text(text)
    batches = wishes.get("batches", (1,))
    site = load_site("zoo:digits", SiteRequest(path, profile, batches))
    return compile_model("zoo:digits", folder / "plan", Options(placement=PlacementRequest(site, **wishes)))


def split(names: list[str], **parts: str) -> str:
    """Return a cluster on which the first layer stays at the camera and the last goes to the server."""
    return cluster_text(**parts, more=f'[constraints]\npins = {{"{names[0]}" = "camera", "{names[-1]}" = "server"}}')


def test_each_device_has_its_part_and_together_they_answer_as_the_whole(
    tmp_path: Path, profile: Path, names: list[str]
) -> None:
    compiled = place(tmp_path, profile, split(names))
    assert compiled.report is not None
    plan = compiled.plan
    assert set(plan.variants[0].placement.values()) == {"camera", "server"}
    feeds = zoo.sample_inputs("digits", 3, 1)
    with LocalRunner(tmp_path / "plan") as whole:
        expected = whole.run(feeds)
    with LocalRunner(tmp_path / "plan/devices/camera") as camera:
        sent = camera.run({tensor.name: feeds[tensor.name] for tensor in camera.inputs})
    with LocalRunner(tmp_path / "plan/devices/server") as server:
        answer = server.run({tensor.name: sent[tensor.name] for tensor in server.inputs})
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name], value)


def test_a_device_gets_nothing_of_the_others(tmp_path: Path, profile: Path, names: list[str]) -> None:
    plan = place(tmp_path, profile, split(names)).plan
    for device in ("camera", "server"):
        folder = tmp_path / "plan/devices" / device
        own = read_plan(folder)
        assert plan_problems(own) == []
        ids = {part.id for part in plan.partitions if plan.variants[0].placement[part.id] == device}
        assert {part.id for part in own.partitions} == ids
        files = {path.name for path in (folder / "partitions").iterdir()}
        needed = {f for part in own.partitions for f in (part.file, *(ref.path for ref in part.weights))}
        assert {Path(f).name for f in needed} == files
    weights = [read_plan(tmp_path / "plan/devices" / d).model.weight_bytes for d in ("camera", "server")]
    assert sum(weights) == plan.model.weight_bytes


def test_the_plan_says_what_it_is_predicted_to_cost(tmp_path: Path, profile: Path, names: list[str]) -> None:
    compiled = place(tmp_path, profile, split(names))
    told = compiled.plan.variants[0].prediction
    assert told.latency_s is not None
    assert told.lower_bound_s is not None
    assert told.lower_bound_s <= told.latency_s
    assert set(told.partition_s) == {part.id for part in compiled.plan.partitions}
    assert sum(told.partition_s.values()) < told.latency_s
    assert set(told.memory_bytes) == {"camera", "server"}
    sent = sum(
        compiled.plan.tensors[t.name].nbytes or 0 for t in read_plan(tmp_path / "plan/devices/server").model.inputs
    )
    assert told.link_bytes["camera to server"] == sent
    assert (compiled.plan.entry, compiled.plan.strategy, compiled.plan.objective) == ("camera", "exact", "latency")


def test_the_table_finds_the_variant_of_every_bandwidth(tmp_path: Path, profile: Path) -> None:
    plan = place(tmp_path, profile, cluster_text(), batches=(1, 4), is_adaptive=True).plan
    assert {regime.batch for regime in plan.regimes} == {1, 4}
    known = {variant.name: variant for variant in plan.variants}
    found = set()
    for rate in np.geomspace(1e4, 1e9, 60):
        name = best_variant(plan.regimes, float(rate))
        assert name is not None
        found.add(name)
        interval = known[name].bytes_per_s
        assert interval is not None
        low, high = interval
        assert low * 0.999 <= rate <= (float("inf") if high is None else high * 1.001)
    assert len(found) >= 2, "a slow camera sends its work away when the link is fast"


def test_the_table_costs_what_the_variants_are_predicted_to(tmp_path: Path, profile: Path) -> None:
    plan = place(tmp_path, profile, cluster_text(), is_adaptive=True).plan
    predicted = {variant.name: variant.prediction.latency_s for variant in plan.variants}
    for regime in plan.regimes:
        assert regime_s(regime, 50e6 / 8) == pytest.approx(predicted[regime.variant], rel=1e-6)


def test_without_other_variants_the_best_is_what_was_proven(tmp_path: Path, profile: Path, names: list[str]) -> None:
    compiled = place(tmp_path, profile, split(names))
    (best,) = compiled.plan.variants
    assert compiled.placed is not None
    assert best.prediction.latency_s == pytest.approx(compiled.placed.found.score)
    assert len(compiled.plan.partitions) == len([s for s in compiled.placed.found.assignment.stages if s.tasks])


def test_every_variant_answers_as_the_model(tmp_path: Path, profile: Path) -> None:
    plan = place(tmp_path, profile, cluster_text(), is_adaptive=True).plan
    assert len(plan.variants) > 1
    feeds = zoo.sample_inputs("digits", 5, 2)
    answers = []
    for variant in plan.variants:
        with LocalRunner(tmp_path / "plan", variant=variant.name) as runner:
            answers.append(runner.run(feeds))
    for answer in answers[1:]:
        for name, value in answers[0].items():
            np.testing.assert_array_equal(answer[name], value)


@pytest.mark.parametrize("objective", ["latency", "throughput", "memory", "energy", "bytes"])
def test_every_objective_places_every_layer(tmp_path: Path, profile: Path, objective: str) -> None:
    compiled = place(tmp_path, profile, cluster_text(), objective=objective)
    assert compiled.placed is not None
    assert compiled.placed.found.is_proven
    layers = [name for part in compiled.plan.partitions for name in part.layers]
    assert len(layers) == len(set(layers)) == len(compiled.placed.problem.tasks)
    assert compiled.report is not None


def test_private_requests_stay_where_they_are_trusted(tmp_path: Path, profile: Path, names: list[str]) -> None:
    text = cluster_text(server="trusted = false", up="10Gbit/s", more=f'[constraints]\nprivate_until = "{names[2]}"')
    plan = place(tmp_path, profile, text).plan
    away = [name for p in plan.partitions if plan.variants[0].placement[p.id] == "server" for name in p.layers]
    for variant in plan.variants:
        kept = [name for p in plan.partitions if variant.placement[p.id] == "camera" for name in p.layers]
        assert set(names[:4]) <= set(kept)  # what reads a private tensor is kept as well
    assert not set(away) & set(names[:4])


def test_private_requests_do_not_pass_over_others(tmp_path: Path, profile: Path, names: list[str]) -> None:
    text = cluster_text(more="[constraints]\nprivate = true").replace(
        'between = ["camera", "server"]', 'between = ["camera", "hub"]'
    )
    hub = '[[devices]]\nname = "hub"\ntrusted = false\n[[links]]\nbetween = ["hub", "server"]\nup = "10Gbit/s"\n'
    plan = place(tmp_path, profile, text.replace("[[links]]", hub + "[[links]]", 1)).plan
    image = next(tensor.name for tensor in plan.model.inputs)
    readers = {plan.variants[0].placement[part.id] for part in plan.partitions if image in part.inputs}
    assert readers == {"camera"}, "the server can only be reached over the hub, which must not see the request"


def test_memory_decides_what_a_device_holds(tmp_path: Path, profile: Path) -> None:
    whole = place(tmp_path, profile, cluster_text(up="1kbit/s")).plan
    (peak,) = whole.variants[0].prediction.memory_bytes.values()
    again = tmp_path / "again"
    again.mkdir()
    plan = place(again, profile, cluster_text(camera=f"memory = {peak - 1}", up="1kbit/s")).plan
    assert plan.variants[0].prediction.memory_bytes.get("camera", 0) < peak
    assert "server" in plan.variants[0].placement.values()


@pytest.mark.parametrize(
    ("constraint", "said"),
    [('deadline = "1us"', "deadline"), ("energy = 1e-9", "energy"), ("throughput = 1e9", "throughput")],
)
def test_what_cannot_be_met_is_named_and_the_relaxation_is_enough(
    tmp_path: Path, profile: Path, constraint: str, said: str
) -> None:
    with pytest.raises(InfeasibleError) as refused:
        place(tmp_path, profile, cluster_text(more=f"[constraints]\n{constraint}"))
    assert said in refused.value.message
    assert refused.value.exit_status == 3
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (cluster_text(more='[constraints]\npins = {nothing = "camera"}'), UsageError),
        (cluster_text(camera='profile = "gone.json"').replace("speed = 0.01", ""), ProfileError),
        ("[[devices]]", ClusterError),
    ],
)
def test_bad_clusters_leave_nothing(tmp_path: Path, profile: Path, text: str, kind: type[HypsError]) -> None:
    with pytest.raises(kind):
        place(tmp_path, profile, text)
    assert not (tmp_path / "plan").exists()


def test_the_report_fits_a_terminal(tmp_path: Path, profile: Path) -> None:
    compiled = place(tmp_path, profile, cluster_text())
    assert compiled.placed is not None
    lines = "\n".join(show_placement(compiled.plan, compiled.placed)).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("proof:     proven optimal for latency") for line in lines)


@pytest.mark.parametrize(
    "words",
    [["--profile", "x.json"], ["--strategy", "local"], ["--cluster", "c.toml", "--cut", "all"], ["--batch", "2"]],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, words: list[str]) -> None:
    told = CliRunner().invoke(main, ["compile", "zoo:digits", "-o", str(tmp_path / "plan"), *words])
    assert told.exit_code == 2
    assert "cluster" in told.output


def test_python_places_models_as_the_command_does(tmp_path: Path, profile: Path, names: list[str]) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(split(names))
    plan = hyps_compiler.compile("zoo:digits", tmp_path / "plan", cluster=path, profile=profile, objective="energy")
    assert set(plan.variants[0].placement.values()) == {"camera", "server"}
    assert plan.objective == "energy"
    with pytest.raises(UsageError):
        hyps_compiler.compile("zoo:digits", tmp_path / "other", cluster=path, cut="all")


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "lstm.json"
    other.write_bytes(encode_profile(profile_model("zoo:lstm", ProfileOptions(repeats=1, borders=2))))
    with pytest.raises(ProfileError, match="none of this model's layers"):
        place(tmp_path, other, cluster_text())
    assert not (tmp_path / "plan").exists()


def test_a_plan_reads_back_as_it_was_written(tmp_path: Path, profile: Path) -> None:
    compiled = place(tmp_path, profile, cluster_text())
    back: Plan = read_plan(tmp_path / "plan")
    assert back == compiled.plan


def test_devices_share_the_requests_of_a_stage_where_replicas_are_allowed(
    tmp_path: Path, profile: Path, names: list[str]
) -> None:
    text = """
entry = "camera"
[defaults]
up = "10Gbit/s"
[[devices]]
name = "camera"
[[devices]]
name = "left"
speed = 0.001
[[devices]]
name = "right"
speed = 0.001
[constraints]
""" + 'pins = {{"{}" = "camera"}}\nbans = {{{}}}\n'.format(
        names[0], ", ".join(f'"{n}" = ["camera"]' for n in names[1:])
    )
    wish = {"objective": "throughput"}
    (tmp_path / "one").mkdir()
    one = place(tmp_path / "one", profile, text, **wish).plan.variants[0]
    shared = place(tmp_path, profile, text, **wish, has_replicas=True).plan.variants[0]
    assert not one.replicas
    assert shared.replicas
    assert shared.prediction.throughput_rps is not None
    assert one.prediction.throughput_rps is not None
    assert shared.prediction.throughput_rps >= one.prediction.throughput_rps
    for partition, others in shared.replicas.items():
        for device in (shared.placement[partition], *others):
            assert partition in {part.id for part in read_plan(tmp_path / "plan" / "devices" / device).partitions}


def test_replicas_are_refused_for_anything_but_the_throughput_of_pipelines(tmp_path: Path, profile: Path) -> None:
    with pytest.raises(UsageError, match="--replicas is about the throughput"):
        place(tmp_path, profile, cluster_text(), has_replicas=True)
