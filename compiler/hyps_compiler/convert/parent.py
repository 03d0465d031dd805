"""Conversion as its caller sees it: checks that need no framework, the child process, the result put in place."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hyps.adapters.guard import forget_scratch, note_scratch
from hyps.errors import DependencyError, HypsError, ModelError, OutputError, UsageError, printable
from hyps.formats.plan import NamedTensor
from hyps_compiler.convert.asked import check_feeds, check_modules
from hyps_compiler.convert.checks import is_onnx, shown
from hyps_compiler.convert.conversion import Conversion
from hyps_compiler.convert.kinds import KINDS, Kind, kind_of
from hyps_compiler.convert.placing import data_name, move_into_place
from hyps_compiler.convert.request import (
    MADE_NAME,
    MODEL_NAME,
    REFUSAL_NAME,
    REFUSALS,
    TRUST_HINT,
    Made,
    Refusal,
    Request,
)
from hyps_compiler.output import check_apart, quoted

if TYPE_CHECKING:
    from onnx import ValueInfoProto

SAMPLES = 2
"""Random requests on which a conversion is compared: with one, where the batch is fixed, nobody knows whether the
outputs depend on the inputs."""

_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "-1",  # constants are folded on the CPU; a GPU's memory would be taken for nothing
    "MALLOC_MMAP_THRESHOLD_": "1048576",  # glibc then hands large blocks back at once: 0.9 GB less for VGG16
    "PYTHONUNBUFFERED": "1",
}


def can_convert(source: Path) -> bool:
    """Return whether `convert` is the one to read `source`, by its name and first bytes.

    `convert` says what is wrong with the content.
    """
    return kind_of(source) is not None


def convert(
    source: Path,
    destination: Path,
    *,
    opset: int | None = None,
    inputs: Mapping[str, tuple[int | None, ...]] | None = None,
    outputs: Sequence[str] = (),
    modules: Sequence[str] = (),
    samples: int = SAMPLES,
    feeds: Path | None = None,
    trust: bool = False,
    on_line: Callable[[str], None] | None = None,
) -> Conversion:
    """Write the ONNX model of a source of any kind in `kinds.KINDS` to `destination`, and return what came of it.

    The work is done in a child process, which ends with the caller's, however that ends. `destination` appears whole
    or not at all, and replaces a file of that name. Weights over 2 GB go to a file beside it, of its name with
    `.data` added. The batch dimension stays dynamic, inputs and outputs keep the model's names and order.

    No code from a source is run without `trust`, nor an operation of TensorFlow's that may do more than compute.

    Args:
        source: the file or folder.
        destination: the ONNX file to write.
        opset: the version of ONNX's operators; the kind's own if None.
        inputs: shapes to fix, by input name; None in a shape keeps that dimension dynamic.
        outputs: what a frozen graph is to compute; empty: what nothing else in it uses.
        modules: Python modules to import in the child first; they register the model's own classes with its framework.
            They are also looked for in the working directory.
        samples: random requests on which the result is compared with the source framework; 0: none.
        feeds: an .npz file with the one request to compare on instead.
        trust: whether code in the source may be run.
        on_line: called with every line that the framework and the converter print, as it comes.

    Raises:
        ModelError: the source is missing, damaged, needs classes that its framework does not know, holds code, or uses
            an operation that ONNX does not have.
        UsageError: the opset, an output's name, an input's name or its shape is impossible.
        TensorError: `feeds` is no request that the source takes.
        DependencyError: the source's framework or the converter is missing.
        DifferenceError: the ONNX model does not compute what the source computes.
        OutputError: the destination cannot be written, or is the source or in it.
        HypsError: the child process was killed or crashed.
    """
    started_s = time.monotonic()
    for path in (destination, destination.with_name(f"{destination.name}.data")):
        if not path.is_dir():  # which is refused anyway
            check_apart(path, source, feeds)
    kind = _checked_kind(source, trust=trust)
    chosen_opset = kind.default_opset if opset is None else opset
    if chosen_opset not in kind.opsets:
        raise UsageError(
            f"opset {chosen_opset} is not one of {kind.opsets[0]} to {kind.opsets[-1]}, which {kind.what} is written in"
        )
    if outputs and kind.name != "frozen-graph":
        raise UsageError(f"the outputs of {kind.what} are known, and not to be chosen", "leave --outputs out")
    check_modules(modules)
    check_feeds(feeds)
    _check_packages(kind)
    with _folder_beside(destination) as folder:
        request = Request(
            source=str(source.resolve()),
            folder=str(folder.resolve()),
            kind=kind.name,
            opset=chosen_opset,
            inputs=dict(inputs or {}),
            outputs=tuple(outputs),
            modules=tuple(modules),
            samples=1 if feeds else samples,
            feeds=str(feeds.resolve()) if feeds else "",
            trust=trust,
        )
        made, peak_nbytes = _run_child(request, source, on_line or (lambda line: None))
        conversion = _finished(folder, destination, kind, request, made)
        return msgspec.structs.replace(
            conversion, seconds=round(time.monotonic() - started_s, 3), peak_nbytes=peak_nbytes
        )


def _finished(folder: Path, destination: Path, kind: Kind, request: Request, made: Made) -> Conversion:
    """Bring the child's model into its final form, prove it, move it to its place, and return what it is."""
    import onnx  # with what follows some 0.5 s, which nobody who only asks for a kind should wait

    from hyps_compiler.convert.agreement import compare_with_references
    from hyps_compiler.convert.clean import clean
    from hyps_compiler.convert.packing import pack
    from hyps_compiler.walk import bodies

    packed = folder / "packed"
    packed.mkdir()
    model = packed / destination.name
    clean(folder / MODEL_NAME)
    proto = onnx.load(os.fspath(folder / MODEL_NAME), load_external_data=False)
    pack(folder / MODEL_NAME, model, data_name(destination))
    samples = 0 if made.unverified else request.samples
    agreement = compare_with_references(folder, model, made, samples) if samples else ()
    blank = [found.output for found in agreement if found.is_blank]
    unverified = made.unverified or ("" if samples else "it was not asked for")
    if agreement and len(blank) == len(agreement):
        agreement, samples, unverified = (), 0, "all outputs are NaN, in its source too"
    nbytes = sum(path.stat().st_size for path in packed.iterdir())
    move_into_place(model, destination)
    return Conversion(
        kind=kind.name,
        what=kind.what,
        framework=made.framework,
        converter=made.converter,
        opset=next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")),
        nodes=sum(len(body.node) for body, _ in bodies(proto)),
        nbytes=nbytes,
        inputs=tuple(map(_named, proto.graph.input)),
        outputs=tuple(map(_named, proto.graph.output)),
        seconds=0.0,
        peak_nbytes=0,
        samples=samples,
        agreement=agreement,
        unverified=unverified,
        notes=made.notes + tuple(f"output `{printable(name, 40)}` is NaN everywhere" for name in blank if agreement),
    )


def _named(value: "ValueInfoProto") -> NamedTensor:
    """Return an input or output as plans describe them."""
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type:
        return NamedTensor(name=value.name, dtype=value.type.WhichOneof("value") or "unknown", shape=None)
    is_text = tensor.elem_type == TensorProto.STRING
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    return NamedTensor(
        name=value.name,
        dtype="string" if is_text else str(tensor_dtype_to_np_dtype(tensor.elem_type)),
        shape=tuple(dims) if tensor.HasField("shape") else None,
    )


def _checked_kind(source: Path, *, trust: bool) -> Kind:
    """Return the kind of a source that can be converted, as far as that can be told without its framework.

    Raises:
        ModelError: it is missing, of no known kind, damaged, or holds code that may not be run.
    """
    if not source.exists():
        raise ModelError(f"{shown(source)} does not exist", code="E_NOT_FOUND")
    kind = kind_of(source)
    if kind is None and source.is_dir():
        raise ModelError(
            f"the folder {shown(source)} is no SavedModel: it holds no `saved_model.pb`",
            "name the folder that `model.export(FOLDER)` wrote",
            code="E_NOT_CONVERTIBLE",
        )
    if kind is None and is_onnx(source):
        hint = f"compile it as it is: hypsc compile {quoted(str(source))} -o plan"
        raise ModelError(f"{shown(source)} is an ONNX model already", hint, "E_NOT_CONVERTIBLE")
    if kind is None:
        known = ", ".join(dict.fromkeys(known.what for known in KINDS))
        raise ModelError(f"{shown(source)} is nothing that can be converted", f"known are {known}", "E_NOT_CONVERTIBLE")
    try:
        str(source.resolve()).encode()
    except UnicodeEncodeError as error:  # on Linux, names of files are bytes of any kind
        raise ModelError(f"the path {shown(source)} is no UTF-8", "rename it", "E_NAME") from error
    kind.check(source)
    if not trust and kind.runs_code(source):
        raise ModelError(
            f"to read {shown(source)}, {kind.what}, is to run whatever code is in it",
            TRUST_HINT,
            code="E_UNTRUSTED",
        )
    return kind


def _check_packages(kind: Kind) -> None:
    """Refuse if a package that the child imports is not installed; nothing is imported here."""
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise DependencyError(f"{kind.what} cannot be converted without {listed}", _install_hint(kind))


def _install_hint(kind: Kind) -> str:
    return f'pip install "hyps[{kind.extra}]"'


@contextmanager
def _folder_beside(destination: Path) -> Iterator[Path]:
    """Make a folder for the child's files on the destination's file system; it is gone afterwards."""
    try:
        if destination.is_dir():
            raise OutputError(f"`{printable(str(destination))}` is a folder", "name a file to write")
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"`{printable(str(destination))}` cannot be written: {error.strerror}") from error
    note_scratch(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        forget_scratch(folder)


def _run_child(request: Request, source: Path, on_line: Callable[[str], None]) -> tuple[Made, int]:
    """Run the child to its end; return by what it made the model, and the most bytes it had resident.

    Raises:
        HypsError: what it refuses, or how it ended.
    """
    last_lines: deque[str] = deque(maxlen=1)
    with _child_process(request) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = printable(line.rstrip(), limit=1000)
            if said:
                last_lines.append(said)
                on_line(said)
        peak_nbytes = _wait(process)
    refusal = Path(request.folder, REFUSAL_NAME)
    if refusal.exists():
        _raise_refusal(msgspec.json.decode(refusal.read_bytes(), type=Refusal), request)
    if process.returncode != 0:
        raise _explain_end(process.returncode, source, "".join(last_lines))
    return msgspec.json.decode(Path(request.folder, MADE_NAME).read_bytes(), type=Made), peak_nbytes


def _wait(process: "subprocess.Popen[str]") -> int:
    """Wait for the child's end and return the most bytes it had resident."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen would otherwise wait for it again
    return usage.ru_maxrss * 1024


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
    finally:
        process.kill()  # does nothing to a child that has ended
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        assert process.stdout is not None
        process.stdout.close()


def _raise_refusal(refusal: Refusal, request: Request) -> None:
    """Raise what the child says; its words hold names from the source and from other people's errors."""
    kind = next(kind for kind in KINDS if kind.name == request.kind)
    hint = _install_hint(kind) if refusal.kind == "dependency" and not refusal.hint else refusal.hint
    raise REFUSALS[refusal.kind](printable(refusal.message, limit=1000), hint, refusal.code)


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
