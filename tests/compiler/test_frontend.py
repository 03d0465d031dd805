"""What a user may call a model."""

from pathlib import Path

import pytest

import hyps_models
from hyps.errors import ModelError
from hyps_compiler.frontend import open_model
from hyps_compiler.source import open_source


def test_a_file_is_opened_where_it_lies(tmp_path: Path) -> None:
    hyps_models.save("digits", tmp_path / "d.onnx")
    assert open_model(tmp_path / "d.onnx", tmp_path) == open_source(tmp_path / "d.onnx")


def test_a_model_of_the_zoo_is_made_in_the_folder_of_work(tmp_path: Path) -> None:
    source = open_model("zoo:digits", tmp_path)
    assert (source.name, source.path.parent) == ("digits", tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    assert open_model("zoo:digits", again).sha256 == source.sha256


@pytest.mark.parametrize("name", ["nothing", "", "../digits", "x\x1b[31m"])
def test_what_the_zoo_does_not_have_is_said_with_what_it_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="in the zoo") as caught:
        open_model(f"zoo:{name}", tmp_path)
    assert "\x1b" not in caught.value.message
    assert all(known in caught.value.hint for known in hyps_models.names())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gone.onnx", "gone.keras", "x" * 300, "a\0b"])
def test_a_missing_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError):
        open_model(str(tmp_path / name), tmp_path)


def test_a_keras_file_is_told_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="no Keras file"):
        open_model(tmp_path / "m.keras", tmp_path)
