"""Pieces of every cut: right ones are never called wrong, and damage in one is laid at its own door."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from damage_fixtures import change_weight, damaged, node_of, set_attribute
from division_plans import Rewrite, write_plan
from hyps.formats.plan import Plan
from hyps_compiler.findings import show_verified
from hyps_compiler.forms import emit_forms
from hyps_compiler.inspection import show_plan
from hyps_compiler.verification import Verification, verify_folder
from hyps_passes.division.engine import Divide
from hyps_passes.division.region import Region
from hyps_passes.rewrites.divide_recurrent import DivideRecurrent
from hyps_passes.rewrites.divide_table import DivideTable
from hyps_passes.rewrites.open_pieces import Group, OpenPieces
from model_fixtures import floats, model_of, save
from recurrent_fixtures import Recurrent


def network() -> ModelProto:
    """Return three convolutions with a pooling and two dense layers behind them."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    weights = {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8),
        "w2": normal(8, 8, 3, 3),
        "b2": normal(8),
        "w3": normal(4, 8, 5, 5),
        "fc1": normal(36, 24) * np.float32(0.0005),
        "fc2": normal(24, 6),
        "b4": normal(6),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c1"], ["r1"], "act1", alpha=0.1),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "act2"),
        helper.make_node("MaxPool", ["r2"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w3"], ["c3"], "conv3", pads=[2, 2, 2, 2], strides=[3, 3]),
        helper.make_node("Flatten", ["c3"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fc1"], ["g"], "dense1"),
        helper.make_node("Tanh", ["g"], ["h"], "act3"),
        helper.make_node("Gemm", ["h", "fc2", "b4"], ["y"], "dense2"),
    ]
    return model_of(nodes, [floats("x", 1, 3, 16, 16)], [floats("y", 1, 6)], weights)


@dataclass(frozen=True)
class Opened:
    """A region divided, and its pieces opened into groups of nodes."""

    divide: Divide
    groups: tuple[Group, ...]

    def apply(self, model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> None:
        self.divide.apply(model, sizes)
        OpenPieces(self.divide.region.name, self.groups).apply(model)


FRONT = ("conv1", "act1", "conv2", "act2", "pool")
TILES = Divide(Region("front", FRONT, -2), 3)
CARRIED = Divide(Region("front", FRONT, -2, carry=True), 4)
CHANNELS = Divide(Region("conv2..pool", FRONT[2:], -3), 3)
SUM = Divide(Region("conv2", ("conv2",), None), 3)
TWO_DENSE = Divide(Region("dense", ("dense1", "act3", "dense2"), None), 3)
OPENED = Opened(TILES, (Group("one", FRONT[:2]), Group("two", FRONT[2:])))
CUTS: dict[str, tuple[Rewrite, ...]] = {
    "tiles": (TILES,),
    "tiles layer by layer": (OPENED,),
    "tiles that carry": (CARRIED,),
    "channels": (CHANNELS,),
    "a sum": (SUM,),
    "two dense layers and tiles": (CARRIED, TWO_DENSE),
}


@dataclass(frozen=True)
class Made:
    """A model and its plan."""

    model: Path
    folder: Path
    plan: Plan

    def shard(self, index: int, layer: str) -> str:
        """Return the partition that is that shard of a layer."""
        found = [p.id for p in self.plan.partitions if p.shard and (p.shard.layer, p.shard.index) == (layer, index)]
        assert len(found) == 1, (layer, index, self.plan.passes)
        return found[0]

    def verified(self, samples: int = 2, **options: Any) -> Verification:
        return verify_folder(self.folder, str(self.model), None, samples, **options)


def make(rewrites: tuple[Rewrite, ...], folder: Path, model: ModelProto | None = None) -> Made:
    path = save(model or network(), folder / "m.onnx")
    return Made(path, folder / "plan", write_plan(path, folder / "plan", rewrites))


@pytest.mark.parametrize("cut", CUTS)
def test_right_pieces_are_not_called_wrong(cut: str, tmp_path: Path) -> None:
    made = make(CUTS[cut], tmp_path)
    found = made.verified(samples=3)
    assert found.report.problems() == []
    assert found.report.faults == ()
    told = {border.tensor for border in found.report.borders} | set(found.report.not_compared)
    assert told == {name for part in made.plan.partitions for name in part.outputs}
    sums = {n for p in made.plan.partitions if p.shard and p.shard.merge == "sum" for n in p.outputs}
    assert sums <= set(found.report.not_compared)
    assert all("merged" in name for name in set(found.report.not_compared) - sums)


@dataclass(frozen=True)
class Damage:
    """A bug of ours in one shard, and what must be said of it."""

    cut: str
    shard: tuple[int, str]
    do: Callable[[ModelProto], None]
    begins_at: str
    says: str
    op: str = "Conv"


def _one_number(name: str, size: float = 1e-2) -> Callable[[ModelProto], None]:
    return lambda model: change_weight(model, name, lambda v: v + size * (np.arange(v.size).reshape(v.shape) == 7))


def _shorter_halo(model: ModelProto) -> None:
    """Read one row less of the image, and pad it instead."""
    node = node_of(model, "c1.1of3")
    set_attribute(node, "pads", [1, 1, 0, 1])
    _move(model, node.input[0], (1,), 1)


def _other_channels(model: ModelProto) -> None:
    change_weight(model, "w2.1of3", lambda value: np.roll(value, 1, axis=0))


def _no_relu(model: ModelProto) -> None:
    node_of(model, "r2.1of3").op_type = "Identity"


def _late_carry(model: ModelProto) -> None:
    """Hand on the row before the one that the next piece needs."""
    name = next(n.output[0] for n in model.graph.node if "carry" in n.output[0] and n.output[0].startswith("r1"))
    _move(model, name, (1, 2), -1)


def _move(model: ModelProto, name: str, bounds: tuple[int, ...], by: int) -> None:
    """Move the first and, or, last position that the slice of that name takes."""
    slicing, held = node_of(model, name), {tensor.name: tensor for tensor in model.graph.initializer}
    for index in bounds:
        value = numpy_helper.to_array(held[slicing.input[index]]) + by
        slicing.input[index] = f"other{index}"
        model.graph.initializer.append(numpy_helper.from_array(value, f"other{index}"))


DAMAGE = {
    "a weight of a tile": Damage("tiles", (1, "front"), _one_number("w2"), "c2.1of3", "its weight `w2` differs by"),
    "a weight of a tile of one layer": Damage(
        "tiles layer by layer", (1, "two"), _one_number("w2"), "c2.1of3", "its weight `w2` differs by"
    ),
    "a halo": Damage("tiles", (1, "front"), _shorter_halo, "x.in.1of3", "", "Slice"),
    "an activation of a tile": Damage(
        "tiles", (1, "front"), _no_relu, "r2.1of3", "Identity instead of Relu", "Identity"
    ),
    "channels of another slice": Damage(
        "channels", (1, "conv2..pool"), _other_channels, "c2.1of3", "not the part of `w2`"
    ),
    "a term of a sum": Damage("a sum", (1, "conv2"), _one_number("w2"), "c2.1of3", "no part of `w2`"),
    "columns of two dense layers": Damage(
        "two dense layers and tiles", (2, "dense"), _one_number("fc1"), "g.2of3", "not the part of `fc1`", "Gemm"
    ),
    "rows of two dense layers": Damage(
        "two dense layers and tiles", (0, "dense"), _one_number("fc2"), "y.0of3", "no part of `fc2`", "Gemm"
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_in_a_piece_is_laid_at_its_door(name: str, tmp_path: Path) -> None:
    damage = DAMAGE[name]
    made = make(CUTS[damage.cut], tmp_path)
    partition = made.shard(*damage.shard)
    with damaged(made.folder, partition) as model:
        damage.do(model)
    found = made.verified(reduce_to=tmp_path / "red")
    assert [fault.partition for fault in found.report.faults] == [partition]
    (place,) = found.places
    assert (place.tensor, place.op) == (damage.begins_at, damage.op)
    assert any(damage.says in change for change in (*place.changes, "")), place.changes
    if damage.cut == "a sum":
        assert "H+ 2/3" in show_plan(made.plan)
    text = show_verified(found)
    assert max(len(line) for line in text.splitlines() if not line.startswith(("wrote:", "run:"))) <= 80
    assert found.reproduction is not None
    assert found.reproduction.still_differs


def test_a_carry_of_other_rows_is_the_fault_of_who_hands_it_on(tmp_path: Path) -> None:
    made = make((CARRIED,), tmp_path)
    partition = made.shard(1, "front")
    with damaged(made.folder, partition) as model:
        _late_carry(model)
    found = made.verified()
    assert [fault.partition for fault in found.report.faults] == [partition]
    assert found.places[0].tensor.startswith("r1.carry.")


def test_a_wrong_piece_does_not_drag_the_sum_behind_it_along(tmp_path: Path) -> None:
    """What adds up gets terms that were made of wrong activations in the plan's own run, and is right by itself."""
    made = make((SUM,), tmp_path)
    (first,) = (part.id for part in made.plan.partitions if "r1" in part.outputs)
    with damaged(made.folder, first) as model:
        _one_number("w1", 1.0)(model)
    found = made.verified()
    assert [fault.partition for fault in found.report.faults] == [first]


def test_small_differences_in_a_piece_of_small_values_are_no_fault(tmp_path: Path) -> None:
    """A tile where the model has values near zero alone is measured by the largest of the whole map."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    model = model_of([node], [floats("x", 1, 3, 16, 16)], [floats("y", 1, 4, 14, 14)], {"w": weight})
    made = make((Divide(Region("conv", ("conv",), -2), 2),), tmp_path, model)
    image = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
    image[:, :, 6:] *= 1e-6
    with damaged(made.folder, made.shard(1, "conv")) as tile:
        change_weight(tile, "w", lambda value: value * np.float32(1.001))
    assert verify_folder(made.folder, str(made.model), {"x": image}, 1).report.problems() == []
    image[:, :, 6:] *= 1e6
    assert verify_folder(made.folder, str(made.model), {"x": image}, 1).report.problems() != []


def test_forms_of_pieces_hold_no_claims(tmp_path: Path) -> None:
    """Otherwise no two pieces would share one."""
    made = make((Divide(Region("conv3", ("conv3",), -3), 2),), tmp_path)
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    parts = emit_forms(made.folder, made.plan.partitions, ["y"], {"x": image})
    forms = {part.form.file for part in parts if part.form is not None and part.shard is not None}
    assert forms
    shards = [onnx.load(made.folder / part.file) for part in parts if part.shard is not None]
    assert all(any(node.metadata_props for node in model.graph.node) for model in shards)
    assert not any(node.metadata_props for file in forms for node in onnx.load(made.folder / file).graph.node)


@pytest.mark.parametrize("carry", [False, True])
def test_rows_of_a_table_are_verified_and_damage_found(carry: bool, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    indices = helper.make_tensor_value_info("x", TensorProto.INT64, [30])
    nodes = [helper.make_node("Gather", ["table", "x"], ["g"], "look"), helper.make_node("Abs", ["g"], ["y"], "abs")]
    model = model_of(nodes, [indices], [floats("y", 30, 4)], {"table": table})
    made = make((DivideTable("look", "look", 3, carry),), tmp_path, model)
    feeds = {"x": np.arange(30) % 9}
    assert verify_folder(made.folder, str(made.model), feeds, 1).report.problems() == []
    with damaged(made.folder, made.shard(1, "look")) as part:
        _one_number("table.")(part)
    found = verify_folder(made.folder, str(made.model), feeds, 1)
    assert [fault.partition for fault in found.report.faults] == [made.shard(1, "look")]
    assert found.places[0].changes == ("its weight is no part of `table`",)


@pytest.mark.parametrize("way", ["direction", "gates"])
def test_recurrent_pieces_are_verified_and_damage_found(way: Any, tmp_path: Path) -> None:
    recurrent = Recurrent(direction="bidirectional", hidden=8, inputs=6, outputs=(0, 1), states=True)
    made = make((DivideRecurrent("cell", "cell", way, 2),), tmp_path, recurrent.model())
    assert made.verified().report.problems() == []
    partition = made.shard(1, "cell" if way == "direction" else "cell.input")
    with damaged(made.folder, partition) as model:
        _one_number("w.")(model)
    found = made.verified()
    assert {fault.partition for fault in found.report.faults} == {partition}
    assert "`w`" in " ".join(change for place in found.places for change in place.changes)
