"""The model in the form in which it is cut: optimized as asked, normalised, its weights in one mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_from_external, convert_tensors_to_external

from hyps.errors import ModelError, printable
from hyps.formats.plan import Optimization
from hyps_compiler.canonical import make_canonical
from hyps_compiler.irfile import load_model, save_model
from hyps_compiler.ort import open_session
from hyps_compiler.source import Source, read_proto
from hyps_passes.layers import CUT
from hyps_passes.rewrites.normalize import normalize

_INLINE_BELOW = 1024
_ALIGN = 4096
_INITIALIZERS_ARE_NO_INPUTS = 4
"""The first IR version in which an initializer need not be an input as well; before, onnxruntime leaves the input when
it folds the initializer away."""
_NOT_FUSIONS = (
    "CastElimination",
    "CommonSubexpressionElimination",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateSlice",
    "ExpandElimination",
    "NoopElimination",
    "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
)
"""Optimizers that rename, move or drop values without fusing anything."""
_FOLDING = ("ConstantFolding",)


@dataclass(frozen=True, slots=True)
class Staged:
    """A model ready to be cut, and its file in the staging folder."""

    model: ir.Model
    path: Path
    fused: frozenset[str]
    """Values that onnxruntime's fusions would do away with; empty where it has already fused."""


def stage_model(source: Source, folder: Path, optimization: Optimization, keep: Sequence[str] = ()) -> Staged:
    """Write the model to cut into `folder` and return it; weights above 1 KiB stay on disk, mapped.

    Args:
        source: the checked model file.
        folder: an empty folder to work in.
        optimization: `none` leaves the nodes as they are and finds out which of them onnxruntime would fuse; the other
            levels let onnxruntime fuse first, so that the parts compute exactly what the fused whole computes.
        keep: names of tensors that must outlive the fusion because the user wants to cut there.

    Raises:
        ModelError: onnxruntime refuses the model, or a name of `keep` is no tensor of it.
    """
    path = folder / "model.onnx"
    if optimization == "none":
        model = normalize(load_model(source.path))
        _require({str(value.name) for node in model.graph for value in node.outputs}, keep)
        _save(model, path)
        staged = load_model(path)
        _mark_cuts(staged, keep)
        return Staged(staged, path, _fused_values(path, folder, staged) - set(keep))
    fused = folder / "optimized.onnx"
    model_or_bytes, data_folder = _fusible(source, keep)
    # onnxruntime leaves weights alone that a request may override; where we fuse them, it must not cost accuracy
    lossless = bool(source.initializer_inputs)
    disabled = _FOLDING if source.is_packed else ()
    open_session(model_or_bytes, optimization, folder=data_folder, save_as=fused, disabled=disabled, lossless=lossless)
    optimized = read_proto(fused)
    make_canonical(optimized, source.made)
    fused.write_bytes(optimized.SerializeToString(deterministic=True))
    model = normalize(load_model(fused))
    if keep:
        _mark_cuts(model, keep)
        _drop_extra_outputs(model, len(source.outputs))
    save_model(model, path)
    return Staged(model, path, frozenset())


def _save(model: ir.Model, path: Path) -> None:
    """Write the model with its large weights in a file beside it; strings have no bytes to map and stay inside."""
    large = []
    for value in model.graph.initializers.values():
        if value.dtype != ir.DataType.STRING and _nbytes(value) >= _INLINE_BELOW:
            large.append(value)
        elif isinstance(value.const_value, ir.ExternalTensor):
            (value.const_value,) = convert_tensors_from_external([value.const_value])
    placed = convert_tensors_to_external(
        _tensors(large), path.parent, f"{path.stem}.data", alignment=_ALIGN, align_threshold=_ALIGN
    )
    for value, tensor in zip(large, placed, strict=True):
        value.const_value = tensor
    save_model(model, path)


def _tensors(values: Sequence[ir.Value]) -> list[ir.TensorProtocol]:
    return [value.const_value for value in values if value.const_value is not None]


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _fusible(source: Source, keep: Sequence[str]) -> tuple[Path | bytes, Path | None]:
    """Return the model such that onnxruntime may fuse all of it: defaults of inputs made constants, `keep` outputs."""
    weights_are_inputs = bool(source.initializer_inputs) or source.ir_version < _INITIALIZERS_ARE_NO_INPUTS
    if not weights_are_inputs and not keep:
        return source.path, None
    proto = read_proto(source.path)
    proto.ir_version = max(proto.ir_version, _INITIALIZERS_ARE_NO_INPUTS)
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    _require({name for node in proto.graph.node for name in node.output}, keep)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in keep if name not in present)
    return proto.SerializeToString(), source.path.parent


def _drop_extra_outputs(model: ir.Model, count: int) -> None:
    del model.graph.outputs[count:]


def _mark_cuts(model: ir.Model, names: Sequence[str]) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.name in names:
                value.meta[CUT] = True


def _require(made: set[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in made:
            raise ModelError(
                f"`--cut` names `{printable(name)}`, which is no tensor inside the model",
                "`hypsc inspect` lists the layers, whose names --cut takes too",
                code="E_UNKNOWN_TENSOR",
            )


def _fused_values(path: Path, folder: Path, model: ir.Model) -> frozenset[str]:
    """Return the values that are gone once onnxruntime has fused the model: the insides of layers."""
    plain = {name for node in read_proto(path).graph.node for name in node.output}
    if _has_half_floats(model):  # onnxruntime computes these as float32, between values of other names
        plain &= _values_after(path, folder, "none")
    return frozenset(plain - _values_after(path, folder, "portable"))


def _values_after(path: Path, folder: Path, optimization: Optimization) -> set[str]:
    probe = folder / "fused.onnx"
    open_session(path, optimization, save_as=probe, disabled=_NOT_FUSIONS)
    kept = {name for node in read_proto(probe).graph.node for name in node.output}
    probe.unlink()
    probe.with_suffix(".data").unlink(missing_ok=True)
    return kept


def _has_half_floats(model: ir.Model) -> bool:
    values = (*model.graph.inputs, *model.graph.initializers.values())
    return any(value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for value in values)
