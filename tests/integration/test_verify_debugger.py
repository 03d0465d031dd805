"""Plans that a bug has damaged: `hypsc verify` names the place, and its reproduction differs in plain onnxruntime."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from command_fixtures import run_command, snapshot
from cut_fixtures import plain_session
from damage_fixtures import change_weight, damaged, node_of, set_attribute, swap_weights
from hyps.adapters.plan_files import check_files, read_plan
from hyps.errors import OutputError
from hyps.formats.plan import Plan
from hyps_compiler import compile as compile_plan
from hyps_compiler.findings import show_verified, verified_json
from hyps_compiler.verification import Verification, verify_folder
from model_fixtures import floats, model_of, save


def network() -> ModelProto:
    """Return two convolutions beside each other, a slice, and a dense layer that is large enough to be sliced."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    weights = {
        "w1": normal(4, 4, 3, 3),
        "w2": normal(4, 4, 3, 3),
        "scale": normal(4),
        "shift": normal(4),
        "mean": np.abs(normal(4)) + 1,
        "var": np.abs(normal(4)) + 2,
        "fc1": normal(32, 20),
        "fc1b": normal(20),
        "fc2": normal(20, 3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], name="norm1"),
        helper.make_node("LeakyRelu", ["n1"], ["r1"], name="act1", alpha=0.1),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="act2"),
        helper.make_node("Sub", ["r1", "r2"], ["d"], name="minus"),
        helper.make_node("MaxPool", ["d"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Slice", ["p", "starts", "ends", "axes"], ["s"], name="half"),
        helper.make_node("Flatten", ["s"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc1", "fc1b"], ["g"], name="dense1"),
        helper.make_node("Relu", ["g"], ["h"], name="act3"),
        helper.make_node("Gemm", ["h", "fc2"], ["y"], name="dense2"),
    ]
    bounds = {"starts": np.array([1]), "ends": np.array([3]), "axes": np.array([1])}
    return model_of(nodes, [floats("x", 1, 4, 8, 8)], [floats("y", 1, 3)], {**weights, **bounds})


@dataclass(frozen=True)
class Setting:
    """A model, its plan, and what the plan holds."""

    model: Path
    folder: Path
    plan: Plan

    def maker(self, tensor: str) -> str:
        """Return the partition in which a tensor is made."""
        found = [p.id for p in self.plan.partitions if tensor in _made(onnx.load(self.folder / p.file))]
        assert len(found) == 1, (tensor, found)
        return found[0]

    def copy(self, folder: Path) -> "Setting":
        """Return a copy of the plan that may be damaged."""
        shutil.copytree(self.folder, folder)
        return Setting(self.model, folder, self.plan)


def _made(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("debugger")
    model = Path(save(network(), folder / "m.onnx"))
    compile_plan(model, folder / "plan", cut="all", max_params=300, optimize="none")
    plan = read_plan(folder / "plan")
    assert sum(part.kind == "horizontal" for part in plan.partitions) >= 3
    return Setting(model, folder / "plan", plan)


@dataclass(frozen=True)
class Damage:
    """A bug of ours, and what must be said of it."""

    inside: str
    """A tensor that the damaged partition makes."""
    do: Callable[[ModelProto], None]
    begins_at: str
    says: str
    op: str


def _other_bounds(model: ModelProto) -> None:
    change_weight(model, "starts", lambda value: value - 1)
    change_weight(model, "ends", lambda value: value - 1)


def _read_other(model: ModelProto) -> None:
    node_of(model, "d").input[1] = "r1"


def _drop_relu(model: ModelProto) -> None:
    node_of(model, "r2").op_type = "Identity"


def _swap_operands(model: ModelProto) -> None:
    node = node_of(model, "d")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _swap_shards(model: ModelProto) -> None:
    node = node_of(model, "h")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _reverse_rows(model: ModelProto) -> None:
    change_weight(model, "fc1.", lambda value: value[::-1])


def _one_row_late(model: ModelProto) -> None:
    change_weight(model, "fc1.", lambda value: np.roll(value, 1, axis=0))


def _one_number(model: ModelProto) -> None:
    change_weight(model, "w2", lambda value: value + 1e-4 * (np.arange(value.size).reshape(value.shape) == 7))


def _no_numbers(model: ModelProto) -> None:
    change_weight(model, "w2", lambda value: value * np.nan)


def _truncate(model: ModelProto) -> None:
    set_attribute(node_of(model, "c2"), "pads", [0, 0, 0, 0])


DAMAGE = {
    "a number of a weight": Damage("r2", _one_number, "c2", "its weight `w2` differs by", "Conv"),
    "a weight that is no number": Damage("r2", _no_numbers, "c2", "its weight `w2` has NaN in 144 elements", "Conv"),
    "two weights swapped": Damage("n1", lambda m: swap_weights(m, "mean", "var"), "n1", "its weight `mean`", ""),
    "an attribute": Damage(
        "r1", lambda m: set_attribute(node_of(m, "r1"), "alpha", 0.2), "r1", "attribute `alpha`", ""
    ),
    "a shape": Damage("r2", _truncate, "c2", "its attribute `pads` is [0, 0, 0, 0] instead of [1, 1, 1, 1]", "Conv"),
    "the bounds of a slice": Damage("s", _other_bounds, "s", "its weight `starts` differs by", "Slice"),
    "another tensor read": Damage("d", _read_other, "d", "it reads `r1` instead of `r2`", "Sub"),
    "operands swapped": Damage("d", _swap_operands, "d", "it reads `r2` instead of `r1`", "Sub"),
    "a node dropped": Damage("r2", _drop_relu, "r2", "it is Identity instead of Relu", ""),
    "rows of one shard": Damage("h.1of3", _reverse_rows, "g.1of3", "is not the part of `fc1` that belongs to rows", ""),
    "one shard a row late": Damage("h.2of3", _one_row_late, "g.2of3", "is not the part of `fc1` that belongs", ""),
    "shards joined in another order": Damage("h", _swap_shards, "h", "it joins the shards in the order 2, 1, 3", ""),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_reproduced(name: str, setting: Setting, tmp_path: Path) -> None:
    damage, bad = DAMAGE[name], setting.copy(tmp_path / "bad")
    partition = setting.maker(damage.inside)
    with damaged(bad.folder, partition) as model:
        damage.do(model)
    check_files(bad.folder, read_plan(bad.folder))  # nothing but its answers gives it away
    found = verify_folder(bad.folder, str(bad.model), None, 2, reduce_to=tmp_path / "red")
    assert [fault.partition for fault in found.report.faults] == [partition]
    (place,) = found.places
    assert place.tensor == damage.begins_at
    assert any(damage.says in change for change in place.changes), place.changes
    first = found.report.first()
    assert first is not None
    assert found.report.made_by[first.tensor] == partition
    text = show_verified(found)
    assert max(map(len, without_paths(text))) <= 80
    told = verified_json(found)
    assert told["wrong_partitions"][0]["changes"] == list(place.changes)
    json.dumps(told, allow_nan=False)
    assert found.reproduction is not None
    assert found.reproduction.still_differs
    assert (found.reproduction.reduced.nodes, found.reproduction.reduced.is_minimal) == (1, True)
    assert_reproduces(tmp_path / "red", damage.begins_at)


def without_paths(text: str) -> list[str]:
    """Return the lines but those that hold a path, which is never broken."""
    return [line for line in text.splitlines() if not line.startswith(("wrote:", "run:"))]


def assert_reproduces(folder: Path, tensor: str) -> None:
    """Run the reproduction as a user does, and once more without any code of ours."""
    done = run_script(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "differ" in done.stdout
    assert done.stderr == ""
    with np.load(folder / "inputs.npz") as arrays:
        given = dict(arrays)
    expected, actual = ({**np.load(folder / f"{name}.npz")}[tensor] for name in ("expected", "actual"))
    answers = []
    for name in ("model.onnx", "partition.onnx"):
        onnx.checker.check_model(onnx.load(folder / name))
        session = plain_session(folder / name)
        answers.append(session.run([tensor], {i.name: given[i.name] for i in session.get_inputs()})[0])
    for answer, stored in zip(answers, (expected, actual), strict=True):  # the last bits depend on weights' layouts
        np.testing.assert_allclose(answer, stored, rtol=1e-5, atol=1e-5 * float(np.abs(stored).max(initial=0.0)))
    assert expected.shape != actual.shape or expected.tobytes() != actual.tobytes()


def run_script(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `reproduce.py` where nothing of HyPS can be imported from the working folder."""
    command = [sys.executable, "-I", str(folder / "reproduce.py")]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False, timeout=60)


def test_the_script_imports_nothing_of_ours(setting: Setting, tmp_path: Path) -> None:
    found, _ = damaged_in_two_places(setting, tmp_path)
    assert found.reproduction is not None
    script = (tmp_path / "red" / "reproduce.py").read_text()
    assert "hyps" not in script.replace("hyps-reproduction", "")
    assert "pickle=True" not in script


def test_a_mended_partition_no_longer_differs(setting: Setting, tmp_path: Path) -> None:
    """The script is a test of the mend: it ends with 0 once both sides agree."""
    damaged_in_two_places(setting, tmp_path)
    shutil.copy(tmp_path / "red" / "model.onnx", tmp_path / "red" / "partition.onnx")
    done = run_script(tmp_path / "red")
    assert (done.returncode, "they agree bit for bit" in done.stdout) == (0, True)


def damaged_in_two_places(setting: Setting, tmp_path: Path) -> tuple[Verification, tuple[str, str]]:
    bad = setting.copy(tmp_path / "bad")
    places = setting.maker("r2"), setting.maker("h.0of3")
    with damaged(bad.folder, places[0]) as model:
        _one_number(model)
    with damaged(bad.folder, places[1]) as model:
        _reverse_rows(model)
    return verify_folder(bad.folder, str(bad.model), None, 1, reduce_to=tmp_path / "red"), places


def test_two_independent_faults_are_both_named(setting: Setting, tmp_path: Path) -> None:
    found, places = damaged_in_two_places(setting, tmp_path)
    assert tuple(fault.partition for fault in found.report.faults) == places
    text = show_verified(found)
    assert "2 partitions are, independently of each other, wrong" in text
    assert f"{places[1]} (shard 1 of 3 of dense1, outputs 0 to" in text
    assert text.index(f"  {places[0]}: ") < text.index(f"  {places[1]} (shard")


def test_a_partition_that_fails_is_named_with_its_node_and_reproduced(setting: Setting, tmp_path: Path) -> None:
    bad = setting.copy(tmp_path / "bad")
    partition = setting.maker("r2")
    with damaged(bad.folder, partition) as model:
        change_weight(model, "w2", lambda value: value[:, :3])
    found = verify_folder(bad.folder, str(bad.model), None, 1, reduce_to=tmp_path / "red")
    (fault,), (place,) = found.report.faults, found.places
    assert fault.partition == partition
    assert fault.failure
    assert (place.tensor, place.node, place.op) == ("c2", "conv2", "Conv")
    assert "has the shape 4 x 3 x 3 x 3 instead of 4 x 4 x 3 x 3" in place.changes[0]
    assert [border.problem[:12] for border in found.report.borders if not border.is_identical][:1] == ["was not made"]
    done = run_script(tmp_path / "red")
    assert (done.returncode, "fails in onnxruntime" in done.stdout) == (1, True)
    assert len(onnx.load(tmp_path / "red" / "partition.onnx").graph.node) == 1
    assert plain_session(tmp_path / "red" / "model.onnx").get_outputs()[0].name == "c2"


def test_shards_within_their_tolerance_are_no_fault(setting: Setting, tmp_path: Path) -> None:
    bad = setting.copy(tmp_path / "bad")
    with damaged(bad.folder, setting.maker("h.1of3")) as model:
        change_weight(model, "fc1.", lambda value: value * np.float32(1 + 3e-7))
    found = verify_folder(bad.folder, str(bad.model), None, 3)
    assert found.report.problems() == []
    assert not all(border.is_identical for border in found.report.borders)
    with damaged(bad.folder, setting.maker("h.1of3")) as model:
        change_weight(model, "fc1.", lambda value: value * np.float32(1 + 1e-3))
    assert [fault.partition for fault in verify_folder(bad.folder, str(bad.model), None, 1).report.faults] == [
        setting.maker("h.1of3")
    ]


def test_the_command_says_it_in_a_terminal_and_in_json(setting: Setting, tmp_path: Path) -> None:
    bad = setting.copy(tmp_path / "bad")
    with damaged(bad.folder, setting.maker("r2")) as model:
        _drop_relu(model)
    words = ["hypsc", "verify", "bad", "--model", str(bad.model), "--samples", "2"]
    finished = run_command([*words, "--reduce", "red"], tmp_path, timeout_s=60)
    assert finished.status == 4
    assert "border tensor `d` differs by" in finished.error
    partition = setting.maker("r2")
    for line in (
        f"first difference: border `d`, float32 1 x 4 x 8 x 8, made by {partition}",
        "  last good before it: r1",
        "  layers between:      conv2 (Conv+Relu+Sub)",
        "    begins at `r2`, made by node `act2` (Identity), layer ",
        "    it is Identity instead of Relu",
        "wrote:   red",
        "run:     python red/reproduce.py",
    ):
        assert line in finished.stdout
    assert "(request " in finished.stdout
    assert max(map(len, without_paths(finished.stdout))) <= 80
    before = snapshot(tmp_path / "red")
    again = run_command([*words, "--reduce", "red"], tmp_path, timeout_s=60)
    assert (again.status, "[E_EXISTS]" in again.stderr, "--force" in again.hint) == (1, True, True)
    assert snapshot(tmp_path / "red") == before
    forced = run_command([*words, "--reduce", "red", "--force", "--json"], tmp_path, timeout_s=60)
    assert forced.status == 4
    told = json.loads(forced.stdout)
    assert told["first_difference"]["border"] == "d"
    assert told["first_difference"]["layers"] == [{"name": "conv2", "kind": "Conv+Relu+Sub"}]
    assert told["reproduction"]["nodes"] == 1
    assert {border["made_by"] for border in told["borders"]} == {part.id for part in setting.plan.partitions}
    about = json.loads((tmp_path / "red" / "reproduction.json").read_text())
    assert {"hyps", "onnx", "onnxruntime", "numpy", "python", "machine"} == set(about["versions"])
    assert (about["partition"], about["tensor"], about["still_differs"]) == (partition, "r2", True)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".prints")) == ["bad", "red"]


def test_nothing_is_written_where_nothing_differs(setting: Setting, tmp_path: Path) -> None:
    found = verify_folder(setting.folder, str(setting.model), None, 1, reduce_to=tmp_path / "red")
    found.check()
    assert found.reproduction is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("occupied", ["file", "plan", "other"])
def test_a_reproduction_replaces_nothing_else(occupied: str, setting: Setting, tmp_path: Path) -> None:
    target = tmp_path / "red"
    if occupied == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / ("plan.json" if occupied == "plan" else "notes")).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=r"`.*red` exists") as caught:
        verify_folder(setting.folder, str(setting.model), None, 1, reduce_to=target, force=True)
    assert "`-o`" not in caught.value.hint
    assert snapshot(tmp_path) == before


def test_a_difference_that_builds_up_over_partitions_is_reduced_to_those(tmp_path: Path) -> None:
    """Each shard is off by what is allowed; what subtracts two large values makes it too much."""
    rng = np.random.default_rng(1)
    weights = {
        "w": np.abs(rng.standard_normal((8, 40))).astype(np.float32),
        "v": np.concatenate([np.eye(20), -np.eye(20)]).astype(np.float32)[:, :4] * np.float32(100),
    }
    weights["w"][:, 20:] = weights["w"][:, :20] * np.float32(1.0001)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="wide"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="cancel"),
    ]
    path = Path(save(model_of(nodes, [floats("x", 1, 8)], [floats("y", 1, 4)], weights), tmp_path / "m.onnx"))
    folder = tmp_path / "plan"
    compile_plan(path, folder, max_params=170, optimize="none")
    plan = read_plan(folder)
    shards = [part.id for part in plan.partitions if part.kind == "horizontal"]
    assert len(shards) == 2
    with damaged(folder, shards[0]) as model:
        change_weight(model, "w", lambda value: value * np.float32(1 + 4e-6))
    found = verify_folder(folder, str(path), None, 1, reduce_to=tmp_path / "red")
    assert found.report.faults == ()
    first = found.report.first()
    assert first is not None
    assert first.tensor == "y"
    assert "no partition is wrong by itself: it builds up over" in show_verified(found)
    assert found.reproduction is not None
    assert found.reproduction.still_differs
    given = set(found.reproduction.reduced.trial.given)
    assert "x" in given
    assert f"a.1of{len(shards)}" in given  # the shard that is right is not needed
    assert run_script(tmp_path / "red").returncode == 1


def test_strings_and_odd_names_survive_a_reproduction(tmp_path: Path) -> None:
    text = helper.make_tensor_value_info("../words\n", onnx.TensorProto.STRING, [3])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.STRING, [3])
    nodes = [
        helper.make_node("Identity", ["../words\n"], ["a"]),
        helper.make_node("Gather", ["a", "order"], ["y"]),
    ]
    model = model_of(nodes, [text], [out], {"order": np.array([2, 0, 1])})
    path = Path(save(model, tmp_path / "m.onnx"))
    compile_plan(path, tmp_path / "plan", cut="all", optimize="none", verify=False)
    plan = read_plan(tmp_path / "plan")
    holder = next(p.id for p in plan.partitions if "y" in _made(onnx.load(tmp_path / "plan" / p.file)))
    with damaged(tmp_path / "plan", holder) as broken:
        change_weight(broken, "order", lambda value: np.array([2, 1, 0]))
    found = verify_folder(
        tmp_path / "plan",
        str(path),
        {"../words\n": np.array(["Aa", "Bé", ""], dtype=object)},
        1,
        reduce_to=tmp_path / "red",
    )
    assert [fault.partition for fault in found.report.faults] == [holder]
    assert found.report.faults[0].outputs[0].problem == "has another text in 2 of 3 elements"
    done = run_script(tmp_path / "red")
    assert (done.returncode, "they differ in 2 of 3 elements" in done.stdout) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "plan", "red"]
