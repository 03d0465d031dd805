"""Where a converted model goes: what was there before, and what is there if it is ended on the way."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info

from hyps.errors import OutputError
from hyps_compiler.convert.placing import move_into_place


def write(path: Path, number: float, *, beside: bool, extra: str = "") -> Path:
    """Write a model with one weight, perhaps beside it."""
    path.parent.mkdir(exist_ok=True)
    weight = onnx.numpy_helper.from_array(np.full(1000, number, np.float32), "w")
    value = make_tensor_value_info("y", TensorProto.FLOAT, [1000])
    model = make_model(make_graph([make_node("Identity", ["w"], ["y"])], "g", [], [value], [weight]))
    location = extra or f"{path.name}.data"
    onnx.save(model, path, save_as_external_data=beside, location=location if beside else None, size_threshold=0)
    return path


def number_in(path: Path) -> float:
    return float(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])[0])


@pytest.mark.parametrize("is_new_beside", [True, False])
@pytest.mark.parametrize("is_old_beside", [True, False])
def test_a_model_is_replaced_with_its_weights(tmp_path: Path, is_old_beside: bool, is_new_beside: bool) -> None:
    there = write(tmp_path / "m.onnx", 1.0, beside=is_old_beside)
    move_into_place(write(tmp_path / "new" / "m.onnx", 2.0, beside=is_new_beside), there)
    assert number_in(there) == 2.0
    assert there.with_name("m.onnx.data").exists() == is_new_beside


def test_a_file_that_no_model_refers_to_stays(tmp_path: Path) -> None:
    there = write(tmp_path / "m.onnx", 1.0, beside=True, extra="other.data")
    (tmp_path / "m.onnx.data").write_text("notes")
    move_into_place(write(tmp_path / "new" / "m.onnx", 2.0, beside=False), there)
    assert (tmp_path / "m.onnx.data").read_text() == "notes"
    assert (tmp_path / "other.data").exists()


@pytest.mark.parametrize("is_new_beside", [True, False])
def test_no_model_is_ever_beside_the_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new_beside: bool
) -> None:
    there = write(tmp_path / "m.onnx", 1.0, beside=True)
    seen = []

    def watched(change: Any) -> Any:
        def run(*paths: Any, **options: Any) -> None:
            change(*paths, **options)
            seen.append(number_in(there) if there.exists() else None)

        return run

    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
    move_into_place(write(tmp_path / "new" / "m.onnx", 2.0, beside=is_new_beside), there)
    assert seen == ([None, None, 2.0] if is_new_beside else [2.0, 2.0])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = write(tmp_path / "new" / "m.onnx", 2.0, beside=False)
    with pytest.raises(OutputError, match="cannot be written"):
        move_into_place(model, tmp_path / "absent" / "m.onnx")
