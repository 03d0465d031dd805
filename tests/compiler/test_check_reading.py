"""What is read of a plan folder: layers whose weights add up to the partition's, without the files of the weights."""

import shutil
from pathlib import Path

import pytest

from check_fixtures import save_dense
from hyps.adapters.plan_files import read_plan
from hyps.errors import HypsError, PlanError
from hyps.formats.plan import Plan
from hyps_compiler import compile as compile_plan
from hyps_compiler.checking.facts import PlanFacts, layers_of
from hyps_compiler.checking.reading import read_facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return plans of dense layers: whole, cut at every layer, and with layers that are divided."""
    made = tmp_path_factory.mktemp("reading")
    model = save_dense(made / "dense.onnx", (64, 256, 32))
    compile_plan(model, made / "whole", verify=False)
    compile_plan(model, made / "cut", cut="all", verify=False)
    compile_plan(model, made / "divided", max_params=6_000, verify=False)
    return made


def read(folder: Path) -> tuple[Plan, PlanFacts]:
    return read_plan(folder), read_facts(folder)


@pytest.mark.parametrize("name", ["whole", "cut", "divided"])
def test_the_weights_of_layers_add_up_to_the_partitions(folder: Path, name: str) -> None:
    plan, facts = read(folder / name)
    assert [part.id for part in facts.partitions] == [part.id for part in plan.partitions]
    for part, found in zip(plan.partitions, facts.partitions, strict=True):
        assert sum(layer.weight_bytes for layer in found.layers) == part.weight_bytes
        assert sum(layer.parameters for layer in found.layers) == part.parameters


@pytest.mark.parametrize("name", ["whole", "cut", "divided"])
def test_layers_are_the_models_however_it_is_cut(folder: Path, name: str) -> None:
    layers = layers_of(read(folder / name)[1].partitions)
    named = {layer: (found.kind, found.weight_bytes) for layer, found in layers.items() if found.weight_bytes}
    assert named == {"fc1": ("Gemm", 4 * (64 * 256 + 256)), "fc2": ("Gemm", 4 * (256 * 32 + 32))}


def test_a_divided_layer_is_in_several_partitions(folder: Path) -> None:
    facts = read(folder / "divided")[1]
    assert sum(any(layer.name == "fc1" for layer in part.layers) for part in facts.partitions) > 1


def test_the_weights_files_are_not_needed(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "light"
    shutil.copytree(folder / "whole", copy)
    weights = list(copy.rglob("*.weights"))
    assert weights
    for path in weights:
        path.unlink()
    assert read_facts(copy) == read_facts(folder / "whole")


def test_memory_and_borders_are_the_plans(folder: Path) -> None:
    plan, facts = read(folder / "cut")
    assert facts.peak_memory_bytes is not None
    assert facts.peak_memory_bytes.value == plan.variants[0].prediction.memory_bytes["local"]
    assert {part.id: part.memory_bytes for part in facts.partitions}[facts.peak_memory_bytes.where] == (
        facts.peak_memory_bytes.value
    )
    assert facts.border_bytes == 4 * 256
    assert facts.largest_border in facts.partitions[0].outputs
    assert read(folder / "whole")[1].border_bytes == 0


def test_a_plan_that_is_damaged_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(folder / "whole", copy)
    (copy / "partitions" / "p000.onnx").write_bytes(b"no model")
    with pytest.raises(PlanError, match="partition `p000`"):
        read_facts(copy)
    (copy / "partitions" / "p000.onnx").unlink()
    with pytest.raises(PlanError, match="is missing"):
        read_facts(copy)
    with pytest.raises(HypsError):
        read_facts(tmp_path)
