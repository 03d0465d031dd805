"""Conversion without TensorFlow: what is recognised, what is refused before the child starts, how the child answers."""

import importlib.util
import os
import shlex
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import hyps_compiler.convert as package
import hyps_models
from hyps.errors import DependencyError, HypsError, ModelError, OutputError, TensorError, UsageError
from hyps_compiler.convert import can_convert, convert, kind_of, kinds, parent

EXTRAS = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
CONFIG = '{"module": "keras", "class_name": "Sequential"}'


def write_archive(
    path: Path, names: tuple[str, ...] = ("config.json", "metadata.json", "model.weights.h5"), config: str = CONFIG
) -> Path:
    """Write a zip archive with the members of a Keras file, of no sense in themselves."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, config if name == "config.json" else "{}" * 500)
    return path


def replace_packages(monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...]) -> None:
    """Have the parent look for other packages than the kinds name."""
    changed = tuple(replace(kind, packages=packages) for kind in kinds.KINDS)
    monkeypatch.setattr(parent, "kind_of", lambda path: next((kind for kind in changed if kind.accepts(path)), None))


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_all_is_what_is_there() -> None:
    assert set(package.__all__) == {"SAMPLES", "Conversion", "can_convert", "convert", "kind_of"}


def test_importing_loads_no_tensorflow() -> None:
    frameworks = "{'tensorflow', 'keras', 'tf2onnx', 'torch', 'sklearn', 'onnx'}"
    code = f"import sys, hyps_compiler.convert; print({frameworks} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.strip() == "set()"


class TestKinds:
    @pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
    def test_every_row_has_what_the_others_have(self, kind: kinds.Kind, tmp_path: Path) -> None:
        assert importlib.util.find_spec(f"hyps_compiler.convert.{kind.module}") is not None
        assert kind.default_opset in kind.opsets
        assert kind.packages
        assert kind.extra in EXTRAS
        assert not kind.accepts(tmp_path / "nothing")
        assert kinds.kind_named(kind.name) is kind

    def test_names_are_all_different(self) -> None:
        assert len({kind.name for kind in kinds.KINDS}) == len(kinds.KINDS)


class TestCanConvert:
    def test_keras_file_is_recognised_by_its_suffix(self, tmp_path: Path) -> None:
        assert can_convert(write_archive(tmp_path / "m.keras"))
        assert can_convert(write_archive(tmp_path / "m.KERAS"))

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("m.keras", "keras"),
            ("m.H5", "keras-h5"),
            ("m.hdf5", "keras-h5"),
            ("m.pb", "frozen-graph"),
            ("m.tflite", "tflite"),
            ("m.skops", "sklearn"),
        ],
    )
    def test_kinds_are_told_by_suffixes(self, tmp_path: Path, name: str, kind: str) -> None:
        (tmp_path / name).touch()
        found = kind_of(tmp_path / name)
        assert found is not None
        assert found.name == kind

    def test_an_onnx_model_named_pb_is_left_alone(self, tmp_path: Path) -> None:
        hyps_models.save("digits", tmp_path / "digits.pb")
        assert not can_convert(tmp_path / "digits.pb")

    def test_saved_model_is_recognised_by_its_file(self, tmp_path: Path) -> None:
        (tmp_path / "saved_model.pb").touch()
        assert can_convert(tmp_path)

    @pytest.mark.parametrize("name", ["m.onnx", "m.txt", "keras", "missing.keras"])
    def test_others_are_not(self, tmp_path: Path, name: str) -> None:
        if "missing" not in name:
            (tmp_path / name).touch()
        assert not can_convert(tmp_path / name)

    def test_a_folder_without_a_model_is_not(self, tmp_path: Path) -> None:
        assert not can_convert(tmp_path)


class TestRefusals:
    def refuse(self, source: Path, wanted: str) -> None:
        """Check that `source` is refused as a bad model with `wanted` in the sentence, and that nothing is left."""
        before = sorted(source.parent.iterdir())
        with pytest.raises(ModelError) as caught:
            convert(source, source.parent / "out.onnx")
        assert wanted in caught.value.message
        assert "\n" not in caught.value.message
        assert sorted(source.parent.iterdir()) == before

    def test_missing_file(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "gone.keras", "does not exist")

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.keras").touch()
        self.refuse(tmp_path / "m.keras", "is empty")

    def test_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "m.keras").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
        self.refuse(tmp_path / "m.keras", "is not a zip archive but an HDF5 file")

    def test_truncated_archive(self, tmp_path: Path) -> None:
        path = write_archive(tmp_path / "m.keras")
        path.write_bytes(path.read_bytes()[:-200])
        self.refuse(path, "cut short or damaged")

    def test_altered_archive(self, tmp_path: Path) -> None:
        path = write_archive(tmp_path / "m.keras")
        flip_byte(path, 500)
        self.refuse(path, "wrong checksum")

    def test_encrypted_archive(self, tmp_path: Path) -> None:
        path = write_archive(tmp_path / "m.keras", ("config.json",))
        flags_position = path.read_bytes().index(b"PK\x01\x02") + 8
        flip_byte(path, flags_position)  # sets the flag that says encrypted
        self.refuse(path, "cut short or damaged")

    def test_archive_without_configuration(self, tmp_path: Path) -> None:
        self.refuse(write_archive(tmp_path / "m.keras", ("model.weights.h5",)), "no `config.json`")

    @pytest.mark.parametrize("config", ["no json", "[]", "{}", "\x00"])
    def test_archive_with_another_configuration(self, tmp_path: Path, config: str) -> None:
        self.refuse(write_archive(tmp_path / "m.keras", config=config), "describes no model")

    def test_archive_without_weights(self, tmp_path: Path) -> None:
        self.refuse(write_archive(tmp_path / "m.keras", ("config.json",)), "no `model.weights.h5`")

    def test_archive_that_would_fill_the_disk(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", CONFIG)
            with archive.open("model.weights.h5", "w") as member:
                for _ in range(110):
                    member.write(bytes(10**6))
        self.refuse(tmp_path / "m.keras", "`model.weights.h5` in it would become 110 MB from")

    @pytest.mark.parametrize(
        ("name", "content", "wanted"),
        [
            ("m.h5", b"", "is empty"),
            ("m.h5", b"PK\x03\x04" + bytes(50), "is a zip archive, not an HDF5 file"),
            ("m.hdf5", b"nonsense", "it is not an HDF5 file"),
            ("m.pb", b"", "is empty"),
            ("m.pb", b"nonsense", "it does not begin like one"),
            ("saved_model.pb", b"\x08\x01", "is a part of a SavedModel"),
            ("m.tflite", b"nonsense", "lacks the mark `TFL3`"),
        ],
    )
    def test_damaged_files_of_other_kinds(self, tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
        (tmp_path / "in").mkdir()
        path = tmp_path / "in" / name
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            convert(path, tmp_path / "out.onnx")
        assert wanted in caught.value.message

    def test_pickles_are_not_read_without_trust(self, tmp_path: Path) -> None:
        (tmp_path / "m.pkl").write_bytes(b"\x80\x04K\x01.")
        self.refuse(tmp_path / "m.pkl", "is to run whatever code is in it")

    def test_outputs_of_a_keras_file_are_not_to_be_chosen(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not to be chosen"):
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "out.onnx", outputs=["y"])

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        self.refuse(tmp_path / "folder", "no `saved_model.pb`")

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "m.xyz").touch()
        self.refuse(tmp_path / "m.xyz", "is nothing that can be converted")

    @pytest.mark.parametrize("name", ["m.onnx", "a model.pb"])
    def test_an_onnx_model_is_sent_to_compile(self, tmp_path: Path, name: str) -> None:
        hyps_models.save("digits", tmp_path / name)
        with pytest.raises(ModelError, match="is an ONNX model already") as caught:
            convert(tmp_path / name, tmp_path / "out.onnx")
        assert shlex.split(caught.value.hint)[-4:] == ["compile", str(tmp_path / name), "-o", "plan"]

    @pytest.mark.parametrize(
        ("module", "wanted"),
        [
            ("no_such_module", "it is not installed, nor in the working directory"),
            ("no_such.module", "it is not installed"),
            ("own.py", "is no name of a module"),
            ("", "is no name of a module"),
            ("./own", "is no name of a module"),
        ],
    )
    def test_a_module_that_is_not_there_is_missed_before_the_framework(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, wanted: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("own.py").touch()
        replace_packages(monkeypatch, ("no_such_framework",))
        with pytest.raises(UsageError, match=wanted):
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "out.onnx", modules=[module])
        for name in ("own", "own.part", "json"):
            with pytest.raises(DependencyError, match="no_such_framework"):
                convert(tmp_path / "m.keras", tmp_path / "out.onnx", modules=[name])
        assert "own" not in sys.modules

    @pytest.mark.parametrize(("content", "wanted"), [(None, "does not exist"), (b"text", "is no .npz file")])
    def test_a_request_that_cannot_be_read_is_missed_before_the_framework(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, wanted: str
    ) -> None:
        replace_packages(monkeypatch, ("no_such_framework",))
        if content is not None:
            (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(TensorError, match=wanted):
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "out.onnx", feeds=tmp_path / "x.npz")

    def test_names_from_strangers_are_shown_harmless(self, tmp_path: Path) -> None:
        (tmp_path / "a\x1b[31m.keras").touch()
        self.refuse(tmp_path / "a\x1b[31m.keras", "a\\x1b[31m.keras")

    @pytest.mark.parametrize("opset", [0, 12, 19])
    def test_impossible_opset(self, tmp_path: Path, opset: int) -> None:
        with pytest.raises(UsageError, match=f"opset {opset} is not one of 13 to 18"):
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "out.onnx", opset=opset)

    def test_missing_packages_name_the_command_that_installs_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace_packages(monkeypatch, ("msgspec", "no_such_package"))
        with pytest.raises(DependencyError) as caught:
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "out.onnx")
        assert caught.value.message.endswith("a Keras file cannot be converted without `no_such_package`")
        assert caught.value.hint == 'pip install "hyps[tf]"'

    def test_destination_in_a_missing_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        replace_packages(monkeypatch, ())
        with pytest.raises(OutputError, match="No such file or directory"):
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "gone" / "out.onnx")

    def test_destination_that_is_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        replace_packages(monkeypatch, ())
        with pytest.raises(OutputError, match="is a folder"):
            convert(write_archive(tmp_path / "m.keras"), tmp_path)


class TestChild:
    @pytest.fixture
    def broken_installation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make a child find a TensorFlow that cannot be imported."""
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "tensorflow.py").write_text("print('chatter', flush=True)\nraise ImportError('no AVX')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        replace_packages(monkeypatch, ())

    @pytest.mark.usefixtures("broken_installation")
    def test_refusal_arrives_with_its_class(self, tmp_path: Path) -> None:
        source = write_archive(tmp_path / "m.keras")
        with pytest.raises(DependencyError) as caught:
            convert(source, tmp_path / "out.onnx")
        assert caught.value.message == "`tensorflow` is installed but cannot be imported: no AVX"
        assert caught.value.hint.startswith("install it anew: pip install --force-reinstall tensorflow")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.keras", "site"]

    @pytest.mark.usefixtures("broken_installation")
    def test_chatter_is_passed_on(self, tmp_path: Path) -> None:
        lines: list[str] = []
        with pytest.raises(DependencyError):
            convert(write_archive(tmp_path / "m.keras"), tmp_path / "out.onnx", on_line=lines.append)
        assert lines[0] == "chatter"
        assert any("Traceback" in line for line in lines)

    def test_a_killed_child_is_explained(self) -> None:
        error = parent._explain_end(-9, Path("m.keras"), "last words")
        assert error.message == (
            "the conversion of `m.keras` was killed (signal 9), most likely because memory ran out"
        )
        assert type(error) is HypsError

    def test_a_crashed_child_is_quoted(self) -> None:
        error = parent._explain_end(-6, Path("m.keras"), "terminate called")
        assert error.message == "the conversion of `m.keras` ended with signal 6: terminate called"


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"\xff.tflite")
    source.write_bytes(b"\0\0\0\0TFL3")
    with pytest.raises(ModelError, match="is no UTF-8") as caught:
        convert(source, tmp_path / "m.onnx")
    assert caught.value.code == "E_NAME"
