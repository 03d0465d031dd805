"""The conformance runner on its smaller suites, and that it finds what is wrong; `bench/conformance` runs the rest."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance import answers, trial
from conformance.pool import run_all
from conformance.suites import Model, Request, load_suite
from conformance.trial import STATUSES, THEIRS, Effort, Trial, as_record, try_model
from hyps_compiler.emit import emit_partitions

EFFORT = Effort(two_part=6, random_cuts=1, slices=2, pieces=3, product=False)
EVERY = 20
"""One in so many of the node suite's models; onnx's own tests run all of them with a cut between all layers."""
RUNNER = Path(trial.__file__).parent


def cases() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the onnx package computes its cases when it is asked for them
        for word in ("simple", "pytorch-operator", "pytorch-converted", "onnxruntime", "node"):
            for index, name in enumerate(load_suite(word).names()):
                marks = [pytest.mark.slow] if word == "node" and index % EVERY else []
                yield pytest.param(word, name, marks=marks, id=f"{word}-{name}")


@pytest.mark.parametrize(("word", "name"), list(cases()))
def test_no_cut_is_wrong_and_only_onnxruntime_refuses(word: str, name: str, tmp_path: Path) -> None:
    found = try_model(load_suite(word).load(name, tmp_path), EFFORT)
    assert [finding for finding in found.findings if finding.status == "wrong"] == []
    refused = [finding.reason for finding in found.findings if finding.status == "refused"]
    assert all(reason.startswith(THEIRS) for reason in refused), refused
    assert len(found.findings) >= (1 if refused else 3)


def two_layers(folder: Path) -> Model:
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), name) for name in "vw"]
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    return Model(folder / "m.onnx", (Request({"x": rng.standard_normal((2, 8)).astype(np.float32)}),))


def test_a_sound_model_is_identical_however_it_is_cut(tmp_path: Path) -> None:
    found = try_model(two_layers(tmp_path), Effort(pieces=0))
    tried = {(finding.level, finding.cut) for finding in found.findings}
    assert {("none", "all nodes"), ("none", "layer 0 in 2 slices"), ("native", "all layers")} <= tried
    assert ("portable", "product") in tried
    assert {finding.status for finding in found.findings} == {"identical"}


def test_a_sound_model_is_close_in_any_pieces(tmp_path: Path) -> None:
    found = try_model(two_layers(tmp_path), Effort(levels=("none",), slices=0, pieces=20, product=False))
    pieces = [finding for finding in found.findings if finding.cut.startswith("layers ")]
    assert any("along the sum in" in finding.cut for finding in pieces)
    assert any("along axis -1 in" in finding.cut for finding in pieces)
    assert {finding.status for finding in pieces} <= {"identical", "tolerance"}
    assert any("differs between requests" in reason for reason in as_record(found)["undivided"])


@pytest.mark.parametrize("factor", [1.001, 1.0001])
def test_a_wrong_weight_is_found(factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: Any, division: Any, folder: Path) -> Any:
        partitions = emit_partitions(model, division, folder)
        path = folder / partitions[-1].file
        proto = onnx.load(path)
        weight = numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(factor)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, proto.graph.initializer[0].name))
        onnx.save(proto, path)
        return partitions

    monkeypatch.setattr(trial, "emit_partitions", damaged)
    record = as_record(try_model(two_layers(tmp_path), EFFORT))
    assert record["status"] == "wrong"
    assert record["counts"]["wrong"] == sum(record["counts"].values())
    gap = float(record["findings"][0]["reason"].removeprefix("output y differs by "))
    assert gap == pytest.approx(factor - 1, rel=0.1)


def test_an_output_that_no_part_makes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: Any, division: Any, folder: Path) -> Any:
        return emit_partitions(model, division, folder)[:-1]

    monkeypatch.setattr(trial, "emit_partitions", damaged)
    found = try_model(two_layers(tmp_path), EFFORT)
    assert {(finding.status, finding.reason) for finding in found.findings} == {("wrong", "output y is missing")}


def test_a_model_is_as_good_as_its_worst_cut() -> None:
    found = Trial()
    for status in STATUSES:  # from best to worst
        found.add("none", "a cut", status)
        found.add("none", "another", "identical")
        assert as_record(found)["status"] == status


def test_a_part_that_does_not_load_is_wrong_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: Any, division: Any, folder: Path) -> Any:
        partitions = emit_partitions(model, division, folder)
        (folder / partitions[0].file).write_bytes(b"no model")
        return partitions

    monkeypatch.setattr(trial, "emit_partitions", damaged)
    assert as_record(try_model(two_layers(tmp_path), EFFORT))["status"] == "wrong"


def test_what_onnxruntime_cannot_run_is_its_refusal(tmp_path: Path) -> None:
    model = two_layers(tmp_path)
    proto = onnx.load(model.path)
    proto.graph.node[0].op_type = "Bernoulli"
    onnx.save(proto, model.path)
    (finding,) = try_model(model, EFFORT).findings
    assert finding.status == "refused"
    assert finding.reason.startswith(THEIRS)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (np.array([np.nan, -0.0]), np.array([np.nan, -0.0]), True),
        (np.array([0.0]), np.array([-0.0]), False),
        (np.zeros(2), np.zeros((1, 2)), False),
        (np.zeros(2), np.zeros(2, np.float32), False),
        ([np.zeros(2), np.ones(1)], [np.zeros(2), np.ones(1)], True),
        ([np.zeros(2)], [np.zeros(2), np.zeros(2)], False),
        ([{1: 0.5}], [{1: 0.5}], True),
        (None, None, True),
        (None, np.zeros(0), False),
        (np.array(["a"], object), np.array(["b"], object), False),
    ],
)
def test_equal_means_equal_bits(left: Any, right: Any, same: bool) -> None:
    assert answers.is_same(left, right) is same
    assert (answers.distance(left, right) == 0) is same or (left == 0).all()


class _Crash:
    """An effort that ends the process that is given it; the pool must say so, and go on."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_dies_is_a_record(tmp_path: Path) -> None:
    tasks = [("simple", "test_sign_model"), ("simple", "test_shrink")]
    records = dict(run_all(tasks, _Crash(), jobs=1, timeout_s=60))
    assert set(records) == set(tasks)
    assert all("exit status 3" in record["findings"][0]["reason"] for record in records.values())


def run_runner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [sys.executable, str(RUNNER), "--jobs", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_prints_a_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    two_layers(tmp_path / "models")
    log = tmp_path / "log.jsonl"
    done = run_runner(str(tmp_path / "models"), "--log", str(log))
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout.splitlines()[0]
    (record,) = map(json.loads, log.read_text().splitlines())
    assert record["model"] == "m.onnx"
    assert record["counts"]["wrong"] == 0 < record["counts"]["identical"]
    assert run_runner(str(tmp_path / "models"), "--log", str(log)).returncode == 0
    assert len(log.read_text().splitlines()) == 1
    assert run_runner(str(tmp_path / "models"), "--log", str(log), "--fresh").returncode == 0
    assert len(log.read_text().splitlines()) == 1


def test_records_of_another_effort_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    two_layers(tmp_path / "models")
    log = tmp_path / "log.jsonl"
    for two_part in ("2", "3"):
        run_runner(str(tmp_path / "models"), "--log", str(log), "--two-part", two_part, "--level", "none")
    assert len({json.loads(line)["made_by"] for line in log.read_text().splitlines()}) == 2


def test_a_refusal_of_hyps_is_not_called_onnxruntimes(tmp_path: Path) -> None:
    model = replace(two_layers(tmp_path), requests=())
    proto = onnx.load(model.path)
    tensor = proto.graph.initializer[0]
    (tmp_path / "data").write_bytes(tensor.raw_data)
    os.link(tmp_path / "data", tmp_path / "data.too")  # onnxruntime reads such a file, HyPS does not
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    onnx.save(proto, model.path)
    (finding,) = try_model(model, EFFORT).findings
    assert finding.status == "refused"
    assert not finding.reason.startswith(THEIRS)


def test_a_wrong_answer_in_the_log_ends_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    two_layers(tmp_path / "models")
    log = tmp_path / "log.jsonl"
    finding = {"level": "none", "cut": "all layers", "status": "wrong", "reason": "output y differs by 1"}
    counts = {"identical": 0, "tolerance": 0, "refused": 0, "wrong": 1}
    run_runner(str(tmp_path / "models"), "--log", str(log))
    record = {**json.loads(log.read_text()), "status": "wrong", "counts": counts, "findings": [finding]}
    log.write_text(json.dumps(record) + "\n")
    done = run_runner(str(tmp_path / "models"), "--log", str(log))
    assert done.returncode == 1
    assert "output y differs by 1" in done.stdout
