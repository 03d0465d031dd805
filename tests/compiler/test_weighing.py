"""What partitions take, measured in processes of their own, and what a real run then has resident."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from hyps.adapters.plan_files import read_plan
from hyps.errors import InfeasibleError
from hyps_compiler.arrays import read_npz, write_npz
from hyps_compiler.driver import Options, compile_model
from hyps_compiler.partition import Request
from hyps_compiler.weighing import Weighing, Weight, needed_nbytes, weigh_plan, with_measured_peaks
from model_fixtures import floats, model_of, save

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is measured is read from Linux' /proc")
RNG = np.random.default_rng(0)

_RUN = """
import sys
from pathlib import Path
import numpy as np
from hyps.adapters.resident import resident
from hyps.errors import HypsError
from hyps.local import LocalRunner
feeds = dict(np.load(sys.argv[2]))
with LocalRunner(sys.argv[1], memory_bytes=int(sys.argv[3]), threads=2) as runner:
    for _ in range(3):
        answer = runner.run(feeds)
np.savez(sys.argv[4], **answer)
print(resident().peak_nbytes)
"""


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))


def dense(rows: int = 64, width: int = 1024, layers: int = 4) -> ModelProto:
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    weights = {f"w{i}": weight(width, width) for i in range(layers)}
    return model_of(nodes, [floats("x", rows, width)], [floats("y", rows, width)], weights)


def convolutions(side: int = 96, channels: int = 32, layers: int = 4) -> ModelProto:
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1, 1, 1, 1], name=f"conv{i}")
        for i in range(layers)
    ]
    weights = {f"w{i}": weight(channels, channels, 3, 3) for i in range(layers)}
    shape = (1, channels, side, side)
    return model_of(nodes, [floats("x", *shape)], [floats("y", *shape)], weights)


def branches(side: int = 128) -> ModelProto:
    """Return a model whose first map is needed at its end."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1, 1, 1, 1], name="middle"),
        helper.make_node("ConvTranspose", ["c", "w2"], ["d"], strides=[2, 2], name="up"),
        helper.make_node("Concat", ["a", "d"], ["e"], axis=1, name="join"),
        helper.make_node("Conv", ["e", "w3"], ["y"], name="last"),
    ]
    weights = {"w0": weight(16, 3, 3, 3), "w1": weight(32, 16, 3, 3), "w2": weight(32, 16, 2, 2)}
    weights["w3"] = weight(4, 32, 1, 1)
    return model_of(nodes, [floats("x", 1, 3, side, side)], [floats("y", 1, 4, side, side)], weights)


def plan_of(model: ModelProto, folder: Path, **wishes: Any) -> Path:
    made = compile_model(save(model, folder / "model.onnx"), folder / "plan", Options(request=Request(**wishes)))
    return made.folder


def request_of(model: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def weighed(*rises: int) -> Weight:
    return Weight(id="p0", rises_nbytes=rises, anonymous_nbytes=0, file_nbytes=0, seconds=0.0)


def test_the_first_time_counts_only_where_there_is_no_other() -> None:
    assert weighed(90).most_nbytes == 90
    assert (weighed(90, 50, 60).most_nbytes, weighed(90, 50, 60).spread_nbytes) == (60, 10)


def test_a_peak_is_never_below_what_was_measured() -> None:
    one = Weighing(base_nbytes=0, end_nbytes=0, error_nbytes=1000, partitions=(weighed(9 * 10**6, 5 * 10**6),))
    assert 5_001_000 <= one.peaks()["p0"] < 5_100_000


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("way", ["streamed", "mapped", "kept"])
def test_what_is_reckoned_is_what_is_measured(way: Any, tmp_path: Path) -> None:
    model = dense()
    folder = plan_of(model, tmp_path, cuts=("all",))
    weighing = weigh_plan(folder, tmp_path, request_of(model), way=way, threads=1)
    assert weighing is not None
    assert 20_000_000 < weighing.base_nbytes < weighing.end_nbytes
    for partition, told in zip(read_plan(folder).partitions, weighing.partitions, strict=True):
        assert partition.peak_memory_bytes is not None
        assert told.most_nbytes >= partition.weight_bytes
        if way != "kept":
            assert partition.peak_memory_bytes == pytest.approx(told.most_nbytes, rel=0.05, abs=weighing.error_nbytes)


@LINUX
@pytest.mark.slow
def test_a_plan_for_a_budget_says_that_it_was_measured(tmp_path: Path) -> None:
    budget = 70_000_000
    plan = read_plan(plan_of(dense(), tmp_path, cuts=("all",), memory_bytes=budget))
    assert all(part.memory_measured for part in plan.partitions)
    assert needed_nbytes(plan) < budget
    assert needed_nbytes(plan) >= max(part.weight_bytes for part in plan.partitions)


def test_measured_peaks_replace_what_was_reckoned(tmp_path: Path) -> None:
    plan = read_plan(plan_of(dense(rows=4, width=8, layers=1), tmp_path))
    (partition,) = plan.partitions
    one = weighed(5 * 10**6)
    told = Weighing(base_nbytes=0, end_nbytes=0, error_nbytes=0, partitions=(replace_id(one, partition.id),))
    (measured,) = with_measured_peaks(plan.partitions, told)
    assert measured.memory_measured
    assert measured.peak_memory_bytes is not None
    assert measured.peak_memory_bytes >= 5 * 10**6


def replace_id(told: Weight, name: str) -> Weight:
    return Weight(id=name, rises_nbytes=told.rises_nbytes, anonymous_nbytes=0, file_nbytes=0, seconds=0.0)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("make", [dense, convolutions, branches])
def test_the_smallest_budget_that_is_promised_is_kept(make: Any, tmp_path: Path) -> None:
    """The compiler names the smallest budget; a plan made for it runs in it, as the system counts."""
    model = make()
    with pytest.raises(InfeasibleError) as caught:
        plan_of(model, tmp_path, memory_bytes=30_000_000)
    budget = int(caught.value.hint.split("--memory ")[1].removesuffix("MB")) * 10**6 + 1_000_000
    folder = plan_of(model, tmp_path, memory_bytes=budget)
    feeds, answer = tmp_path / "feeds.npz", tmp_path / "answer.npz"
    write_npz(feeds, request_of(model))
    child = [sys.executable, "-c", _RUN, str(folder), str(feeds), str(budget), str(answer)]
    told = subprocess.run(child, check=True, capture_output=True, text=True, timeout=60)
    assert int(told.stdout) <= budget
    assert read_npz(answer)["y"].shape == tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)
