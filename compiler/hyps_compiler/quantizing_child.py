"""The process in which a model is quantized: its memory, its log and its temporary files are its own."""

import logging
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from hyps.adapters.guard import become_expendable, limit_seconds
from hyps.containment import die_with_writer
from hyps_compiler.arrays import read_npz
from hyps_compiler.half_weights import halve_weights
from hyps_compiler.ort import open_session
from hyps_compiler.quantizing_job import PREPARED, QUANTIZED, Job, Outcome
from hyps_compiler.source import read_proto
from hyps_compiler.walk import bodies, initializer_names

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_INITIALIZERS_ARE_NO_INPUTS = 4
"""The first IR version in which an initializer need not be an input as well."""
_OPSET = 13
"""The first in which a scale can be of one channel."""
_EXTERNAL_FROM_NBYTES = 1024
_STATIC = (
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Pad",
    "Relu",
    "Resize",
)
"""What surrounds convolutions and can hand 8 bits on."""
_STATIC_ALONE = ("Add", "Flatten", "Gemm", "Mul", "Reshape", "Sigmoid", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""The same where nothing else in the model is quantized by itself, whose sums these might be."""

_EXTRA = {"DefaultTensorType": TensorProto.FLOAT}
"""What operators make that onnx does not know is taken for float32: the other type they have is not quantized."""

logger = logging.getLogger(__name__)


def main() -> None:
    """Do the job in the JSON file `argv[1]` and print its outcome.

    Its last argument is the longest that one call may take, in seconds, 0 for no limit. The process ends when its
    standard input is closed.
    """
    die_with_writer(sys.stdin.fileno())
    become_expendable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit_seconds(float(sys.argv[2]) or None)
    warnings.simplefilter("ignore")  # of onnxruntime's own code, for its authors
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    tempfile.tempdir = job.folder
    try:
        outcome = quantize_file(job)
    except Exception as error:  # the top of the process: whatever the quantizer raises is the answer
        logger.debug("the quantizer failed", exc_info=True)
        outcome = Outcome(refusal=f"{type(error).__name__}: {error}".splitlines()[0])
    sys.stdout.write(msgspec.json.encode(outcome).decode())


def quantize_file(job: Job) -> Outcome:
    """Write the quantized model into the job's folder, and return what was done."""
    folder = Path(job.folder)
    _prepare(Path(job.source), folder / PREPARED)
    model = _prepared(folder / PREPARED)
    before = sum(_nbytes(tensor) for tensor in model.graph.initializer)
    if job.kind == "fp16":
        methods: tuple[str, ...] = ("weights",) if halve_weights(model) else ()
        _save(model, folder / QUANTIZED)
    else:
        convolutions, others = _weights_of(model, _CONVOLUTIONS), _dynamic_weights(model)
        if not job.requests and convolutions > others:
            return Outcome(needs_calibration=True)
        methods = _quantize_int8(model, folder, job.requests if convolutions else ())
    after = onnx.load(folder / QUANTIZED).graph.initializer
    left = sum(_nbytes(tensor) for tensor in after if tensor.data_type == TensorProto.FLOAT)
    return Outcome(methods=methods, weight_bytes=(before, sum(map(_nbytes, after))), left_bytes=left)


def _prepare(source: Path, path: Path) -> None:
    """Let onnxruntime fold constants, and batch norms into their convolutions; inputs with a default keep that."""
    proto = read_proto(source)
    given = initializer_names(proto.graph)
    inputs = [value for value in proto.graph.input if value.name not in given]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, _INITIALIZERS_ARE_NO_INPUTS)
    open_session(proto.SerializeToString(), "basic", folder=source.parent, save_as=path)


def _prepared(path: Path) -> ModelProto:
    """Return the prepared model without the shapes that torch's exporter declares of weights, which have their own.

    The quantizer transposes weights, and then finds that they are not as declared.
    """
    model = onnx.load(path)
    given = initializer_names(model.graph)
    for body, _ in bodies(model):
        own = given | (initializer_names(body) if isinstance(body, GraphProto) else set())
        declared = [value for value in body.value_info if value.name not in own]
        del body.value_info[:]
        body.value_info.extend(declared)
    return model


def _quantize_int8(model: ModelProto, folder: Path, requests: Sequence[str]) -> tuple[str, ...]:
    """Quantize each operator in the way that suits it, and return the ways.

    The static way comes first: it sees the ranges of the model as it is. Both call the scale of a tensor alike, and
    only the dynamic one looks whether there is one; the other way round, what a `Concat` joins for a `MatMul` has two.
    """
    model = _with_opset(model)
    operators = _dynamic_operators(model, products=not requests)
    if requests:
        model = _quantize_static(model, folder, requests, (*_STATIC, *(() if operators else _STATIC_ALONE)))
    if operators:
        model = _quantize_dynamic(model, folder, operators)
    _save(model, folder / QUANTIZED)
    return (*(("dynamic",) if operators else ()), *(("static",) if requests else ()))


def _quantize_static(model: ModelProto, folder: Path, requests: Sequence[str], operators: Sequence[str]) -> ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path, done = folder / "static-in.onnx", folder / "static-out.onnx"
    _save(model, path)
    quantize_static(
        path,
        done,
        _reader(requests),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(operators),
        activation_type=QuantType.QUInt8,
        **_common(),
    )
    return onnx.load(done)


def _quantize_dynamic(model: ModelProto, folder: Path, operators: Sequence[str]) -> ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    path, done = folder / "dynamic-in.onnx", folder / "dynamic-out.onnx"
    _save(model, path)
    common = _common()
    common["extra_options"]["MatMulConstBOnly"] = True
    quantize_dynamic(path, done, op_types_to_quantize=list(operators), **common)
    return onnx.load(done)


def _common() -> dict[str, Any]:
    """Return what both ways are told.

    Weights get seven bits of the eight: processors without VNNI add pairs of products in 16 bits, which could otherwise
    overflow, and a plan may be for other devices than this one.
    """
    from onnxruntime.quantization import QuantType

    return {
        "per_channel": True,
        "reduce_range": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": True,
        "extra_options": dict(_EXTRA),
    }


def _with_opset(model: ModelProto) -> ModelProto:
    version = max(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    return model if version >= _OPSET else onnx.version_converter.convert_version(model, _OPSET)


def _reader(paths: Sequence[str]) -> Any:
    """Return the requests as onnxruntime's calibration takes them, read one at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._left: Iterator[str] = iter(paths)

        def get_next(self) -> Mapping[str, Any] | None:
            path = next(self._left, None)
            return None if path is None else read_npz(Path(path))

    return Reader()


def _dynamic_operators(model: ModelProto, *, products: bool) -> list[str]:
    """Return the operators with weights of their own whose inputs are best quantized by the range of each request."""
    kinds = ("Attention", "Gather", "LSTM", "MatMul")
    found = {node.op_type for node in _quantizable(model.graph, (*kinds, *(("Gemm",) if products else ())))}
    return sorted({"MatMul" if kind == "Gemm" else kind for kind in found})  # the quantizer makes one of the other


def _dynamic_weights(model: ModelProto) -> int:
    return _weights_of(model, ("Attention", "Gather", "Gemm", "LSTM", "MatMul"))


def _weights_of(model: ModelProto, kinds: Sequence[str]) -> int:
    """Return the bytes of the float32 weights of the named operators."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    names = {name for node in _quantizable(model.graph, kinds) for name in node.input if name in weights}
    return sum(_nbytes(weights[name]) for name in names)


def _quantizable(graph: GraphProto, kinds: Sequence[str]) -> Iterator[NodeProto]:
    """Yield the nodes of the named operators that have float32 weights."""
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type in kinds:
            own = node.input[:1] if node.op_type == "Gather" else node.input[1:2]
            if any(name in weights for name in own):
                yield node


def _nbytes(tensor: TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _save(model: ModelProto, path: Path) -> None:
    """Write the model with its weights beside it, however large they are."""
    Path(f"{path}.data").unlink(missing_ok=True)  # onnx would write behind what is there
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=_EXTERNAL_FROM_NBYTES,
    )


if __name__ == "__main__":
    main()
