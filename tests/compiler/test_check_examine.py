"""One model examined in this process: what comes of it, and that a refusal is an outcome too."""

from pathlib import Path

import pytest

from check_fixtures import save_dense
from hyps_compiler.checking.examine import examine
from hyps_compiler.checking.facts import layers_of
from hyps_compiler.checking.figures import LIMITS, Found
from hyps_compiler.checking.job import ModelJob
from hyps_compiler.checking.limits import judge
from hyps_compiler.checking.reading import read_facts
from hyps_compiler.checking.rules import CompileOptions, Rule

CLUSTER = """
[[devices]]
name = "camera"
profile = "here.json"
memory = "100MB"
[[devices]]
name = "server"
profile = "here.json"
[[links]]
between = ["camera", "server"]
up = "57Mbit/s"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("examine") / "dense.onnx", (64, 256, 32))


def test_facts_are_those_of_the_plan_that_was_kept(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "plan"
    found = examine(ModelJob(model=str(model), options=CompileOptions(cut=("all",)), output=str(place)))
    assert found.facts is not None
    assert found.facts.plan == read_facts(place)
    assert len(found.facts.plan.partitions) == 2
    assert found.facts.difference is not None
    assert found.facts.difference.where == "r2"
    assert found.seconds > 0


def test_what_cannot_be_kept_is_told_with_all_layers(tmp_path: Path) -> None:
    found = examine(ModelJob(model=str(save_dense(tmp_path / "m.onnx")), options=CompileOptions(max_params=3)))
    assert found.problem is not None
    assert found.problem.exit_status == 3
    assert [layer.name for layer in found.problem.layers if layer.weight_bytes] == ["fc1", "fc2"]
    assert judge(found, Rule(), None, "b")[0].layer in ("fc1", "fc2")


@pytest.mark.parametrize(
    ("name", "options", "code", "status"),
    [
        ("gone.onnx", CompileOptions(), "E_NOT_FOUND", 1),
        ("zoo:nothing", CompileOptions(), "E_NOT_FOUND", 1),
        ("", CompileOptions(cut=("no such tensor",)), "E_UNKNOWN_TENSOR", 1),
        ("", CompileOptions(inputs="gone.npz"), "E_NOT_FOUND", 1),
    ],
)
def test_a_refusal_is_an_outcome(model: Path, name: str, options: CompileOptions, code: str, status: int) -> None:
    found = examine(ModelJob(model=name or str(model), options=options))
    assert found.facts is None
    assert found.problem is not None
    assert (found.problem.code, found.problem.exit_status) == (code, status)


@pytest.mark.slow
def test_what_quantization_loses_is_known(tmp_path: Path) -> None:
    path = save_dense(tmp_path / "m.onnx", (64, 256, 32))
    found = examine(ModelJob(model=str(path), options=CompileOptions(quantize="fp16")))
    assert found.facts is not None, found.problem
    loss = LIMITS["quantization_loss"].find(found.facts)
    assert isinstance(loss, Found)
    assert 0 < loss.value < 0.01


@pytest.mark.slow
def test_on_a_cluster_latency_is_predicted(model: Path, tmp_path: Path) -> None:
    from hyps.formats.profiles import encode_profile
    from hyps_compiler.profiling import ProfileOptions, profile_model

    (tmp_path / "here.json").write_bytes(encode_profile(profile_model(str(model), ProfileOptions(repeats=2))))
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    found = examine(ModelJob(model=str(model), options=CompileOptions(cluster=str(tmp_path / "cluster.toml"))))
    assert found.facts is not None, found.problem
    latency, memory = (LIMITS[name].find(found.facts) for name in ("latency", "peak_memory"))
    assert isinstance(latency, Found)
    assert 0 < latency.value < 1
    assert isinstance(memory, Found)
    assert "device `camera` needs" in memory.subject
    assert set(layers_of(found.facts.plan.partitions)) == {"fc1", "fc2"}
