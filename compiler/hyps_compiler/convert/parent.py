"""Conversion as its caller sees it: checks that need no TensorFlow, the child process, the result put in place."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from hyps.errors import DependencyError, HypsError, ModelError, OutputError, UsageError, printable
from hyps_compiler.convert.request import DATA_NAME, DEFAULT_OPSET, KINDS, MODEL_NAME, REFUSAL_NAME, Refusal, Request

_INSTALL_HINT = 'pip install "hyps[tf]"'
_COPY_HINT = "copy it again from where it was made"
_PACKAGES = ("tensorflow", "keras", "tf2onnx")
_OPSETS = range(13, 19)
_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "-1",  # constants are folded on the CPU; a GPU's memory would be taken for nothing
    "MALLOC_MMAP_THRESHOLD_": "1048576",  # glibc then hands large blocks back at once: 0.9 GB less for VGG16
    "PYTHONUNBUFFERED": "1",
}


def can_convert(source: Path) -> bool:
    """Return whether `convert` is the one to read `source`: a `.keras` file or a folder with a `saved_model.pb`.

    Looks at names only; `convert` says what is wrong with the content.
    """
    return (source.suffix.lower() == ".keras" and source.is_file()) or (source / "saved_model.pb").is_file()


def convert(
    source: Path,
    destination: Path,
    *,
    opset: int | None = None,
    inputs: dict[str, tuple[int | None, ...]] | None = None,
    modules: Sequence[str] = (),
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Write the ONNX model of a `.keras` file or a SavedModel folder to `destination`.

    The work is done in a child process, which ends with the caller's, however that ends. `destination` appears whole
    or not at all, and replaces a file of that name. Weights over 2 GB go to a file beside it, of its name with
    `.data` added. The batch dimension stays dynamic, inputs and outputs keep the model's names and order.

    No code from a `.keras` file is run. A SavedModel is a program, though: TensorFlow runs the parts of it that restore
    its state, so convert only those whose source is trusted.

    Args:
        source: the Keras file or SavedModel folder.
        destination: the ONNX file to write.
        opset: the version of ONNX's operators, 13 to 18; 17 if None.
        inputs: shapes to fix, by input name; None in a shape keeps that dimension dynamic.
        modules: Python modules to import in the child first; they register the model's own classes with Keras.
            They are also looked for in the working directory.
        on_line: called with every line that TensorFlow and tf2onnx print, as it comes.

    Raises:
        ModelError: the source is missing, damaged, needs classes that Keras does not know, or uses an operation that
            ONNX does not have.
        UsageError: the opset, an input's name or its shape is impossible.
        DependencyError: TensorFlow, Keras or tf2onnx is missing.
        OutputError: the destination cannot be written.
        HypsError: the child process was killed or crashed.
    """
    _check_source(source)
    chosen_opset = DEFAULT_OPSET if opset is None else opset
    if chosen_opset not in _OPSETS:
        raise UsageError(f"opset {chosen_opset} is not one of {_OPSETS[0]} to {_OPSETS[-1]}, which tf2onnx writes")
    _check_packages()
    with _folder_beside(destination) as folder:
        request = Request(
            source=str(source.resolve()),
            folder=str(folder.resolve()),
            data_name=f"{destination.name}.data",
            opset=chosen_opset,
            inputs=inputs or {},
            modules=tuple(modules),
        )
        _run_child(request, source, on_line or (lambda line: None))
        _move_into_place(folder, destination)


def _check_source(source: Path) -> None:
    """Refuse what can be seen to be no Keras file or SavedModel folder without TensorFlow."""
    shown = printable(str(source))
    if not source.exists():
        raise ModelError(f"`{shown}` does not exist")
    if source.is_dir():
        if not (source / "saved_model.pb").is_file():
            raise ModelError(
                f"the folder `{shown}` is no SavedModel: it holds no `saved_model.pb`",
                "name the folder that `model.export(FOLDER)` wrote",
            )
        return
    if source.suffix.lower() != ".keras":
        raise ModelError(f"`{shown}` is neither a `.keras` file nor a SavedModel folder")
    _check_archive(source, shown)


def _check_archive(source: Path, shown: str) -> None:
    """Refuse a file that is not the zip archive Keras 3 writes."""
    hint = "save it again with `model.save(FILE)` of Keras 3"
    try:
        with source.open("rb") as file:
            start = file.read(4)
        if not start:
            raise ModelError(f"`{shown}` is empty", hint)
        if start != b"PK\x03\x04":
            raise ModelError(f"`{shown}` is no Keras file: it is not a zip archive", hint)
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
            damaged = archive.testzip()  # Keras itself may read past a wrong checksum
            config = archive.read("config.json") if damaged is None and "config.json" in names else b""
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        raise ModelError(f"`{shown}` is cut short or damaged: {error}", _COPY_HINT) from error
    except OSError as error:
        raise ModelError(f"`{shown}` cannot be read: {error.strerror}") from error
    if damaged is not None:
        raise ModelError(f"`{shown}` is damaged: `{printable(damaged)}` in it has a wrong checksum", _COPY_HINT)
    if "config.json" not in names:
        raise ModelError(f"`{shown}` is no Keras file: the archive holds no `config.json`", hint)
    if not _is_model_config(config):
        raise ModelError(f"`{shown}` is no Keras file: its `config.json` describes no model", hint)
    if not any(name.startswith("model.weights.") for name in names):
        raise ModelError(f"`{shown}` holds no weights: there is no `model.weights.h5` in the archive", hint)


def _is_model_config(content: bytes) -> bool:
    """Return whether the content of a `config.json` is a serialized Keras object."""
    try:
        config = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return False
    return isinstance(config, dict) and {"module", "class_name"} <= config.keys()


def _check_packages() -> None:
    """Refuse if a package that the child imports is not installed; nothing is imported here."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise DependencyError(f"Keras and TensorFlow models cannot be converted without {listed}", _INSTALL_HINT)


@contextmanager
def _folder_beside(destination: Path) -> Iterator[Path]:
    """Make a folder for the child's files on the destination's file system; it is gone afterwards."""
    try:
        if destination.is_dir():
            raise OutputError(f"`{printable(str(destination))}` is a folder", "name a file to write")
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"`{printable(str(destination))}` cannot be written: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_child(request: Request, source: Path, on_line: Callable[[str], None]) -> None:
    """Run the child to its end and raise what it refuses."""
    last_lines: deque[str] = deque(maxlen=1)
    with _child_process(request) as process:
        assert process.stdout is not None
        for line in process.stdout:
            shown = printable(line.rstrip(), limit=1000)
            if shown:
                last_lines.append(shown)
                on_line(shown)
    refusal = Path(request.folder, REFUSAL_NAME)
    if refusal.exists():
        _raise_refusal(msgspec.json.decode(refusal.read_bytes(), type=Refusal))
    if process.returncode != 0:
        raise _explain_end(process.returncode, source, "".join(last_lines))


@contextmanager
def _child_process(request: Request) -> Iterator["subprocess.Popen[str]"]:
    """Start the child, in a session of its own so that Ctrl-C reaches it through this process only.

    Its standard input stays open: the child ends when that closes, so it never outlives a killed parent.
    """
    process = subprocess.Popen(
        # -P: the folder the user happens to be in is no place to import from
        [sys.executable, "-P", "-m", "hyps_compiler.convert.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | _ENVIRONMENT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError):  # of a child that ended at once; its exit status tells
            process.stdin.write(msgspec.json.encode(request).decode() + "\n")
            process.stdin.flush()
        yield process
        process.wait()
    finally:
        process.kill()  # does nothing to a child that has ended
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        assert process.stdout is not None
        process.stdout.close()


def _raise_refusal(refusal: Refusal) -> None:
    """Raise what the child says; its words hold names from the source and from other people's errors."""
    hint = _INSTALL_HINT if refusal.kind == "dependency" else refusal.hint
    raise KINDS[refusal.kind](printable(refusal.message, limit=1000), hint, refusal.code)


def _explain_end(status: int, source: Path, last_line: str) -> HypsError:
    """Return the error for a child that ended without a word of its own."""
    name = printable(source.name)
    if status == -signal.SIGKILL:
        return HypsError(
            f"the conversion of `{name}` was killed (signal 9), most likely because memory ran out",
            "convert it on a machine with more memory and copy the ONNX file",
            code="E_KILLED",
        )
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    said = f": {last_line}" if last_line else ""
    return HypsError(f"the conversion of `{name}` ended with {how}{said}", code="E_CRASHED")


def _move_into_place(folder: Path, destination: Path) -> None:
    """Move the child's files to where they were asked for, the model last."""
    try:
        if (folder / DATA_NAME).exists():
            os.replace(folder / DATA_NAME, destination.with_name(f"{destination.name}.data"))
        os.replace(folder / MODEL_NAME, destination)
    except OSError as error:
        raise OutputError(f"`{printable(str(destination))}` cannot be written: {error.strerror}") from error
