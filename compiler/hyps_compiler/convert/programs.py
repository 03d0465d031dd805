"""PyTorch's exported programs made into ONNX models by PyTorch's own exporter.

Imports torch: for the child process only.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch
from torch.utils import _pytree as pytree

from hyps.errors import ModelError, UsageError, printable
from hyps.formats.signature import shape_text
from hyps_compiler.convert import archives, screening
from hyps_compiler.convert.request import DATA_NAME, MODEL_NAME, TRUST_HINT, Made, Request, first_line
from hyps_compiler.convert.samples import Array, Input, leave_references
from hyps_compiler.convert.tidying import tidy
from hyps_compiler.convert.versions import refuse_unsafe

logger = logging.getLogger(__name__)

_BATCH = 2
_OPEN_SIZE = 11
"""Sizes to try a program with where they are open: the batch, and other dimensions."""

_EVAL_HINT = "call `model.eval()` before `torch.export.export`"
_FOREIGN = re.compile(r"OpOverload\(op='([\w.]+)'")
_SAFE_TORCH = "2.6"
"""The first that knows the next name, and whose unpickling of tensors only cannot be tricked into more."""
_SAFE_LOAD = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Has every `torch.load` inside PyTorch's reader unpickle tensors only."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into a program and what comes out, flat and by name."""

    inputs: dict[str, Any]
    """Name -> fake tensor, or symbolic size, in the order in which the program takes them."""
    constants: dict[int, Any]
    """Position among all arguments -> value, of those that are no tensors and were fixed in the export."""
    outputs: tuple[str, ...]
    output_positions: tuple[int, ...]
    """Which of the leaves of what the program returns these are; the others are None."""
    symbols: dict[str, str] = field(default_factory=dict)
    """The program's name of an open size -> the name in the ONNX model."""


def run(request: Request) -> Made:
    """Convert an exported program as asked and leave model and references in the request's folder.

    Raises:
        ModelError: the source cannot be loaded or expressed in ONNX, was exported in training mode, or holds code.
        UsageError: an input to fix does not exist or has another rank.
    """
    return convert_program(request, load_program(Path(request.source), trust=request.trust))


def load_program(source: Path, *, trust: bool) -> Any:
    """Return the exported program in a file; without `trust` only if there is nothing in it that could run.

    Raises:
        DependencyError: PyTorch is so old that it would run code from the file.
        ModelError: PyTorch cannot read it, or what it would run is not trusted.
    """
    if not trust:
        refuse_unsafe("torch", torch.__version__, _SAFE_TORCH)
        found = screening.find_member(archives.members(source)) or screening.find_code(archives.documents(source))
        if found:
            raise ModelError(
                f"`{source.name}` holds {found}, which PyTorch might run as code",
                TRUST_HINT,
                code="E_UNTRUSTED",
            )
        os.environ[_SAFE_LOAD] = "1"  # of this process, which reads nothing else
    logger.info("loading %s", source.name)
    try:
        with source.open("rb") as file:  # of a path PyTorch wants the suffix .pt2
            return torch.export.load(file)
    except Exception as error:  # PyTorch's reader raises whatever its parsers do
        raise ModelError(
            f"torch {torch.__version__} cannot load the exported program `{source.name}`: {_cause(error)}",
            "load it with the PyTorch that wrote it and export it again; operators of a package of their own are known"
            " after --module PACKAGE",
        ) from error


def convert_program(request: Request, program: Any) -> Made:
    """Convert an exported program, and leave model and references in the request's folder.

    Raises:
        ModelError: it cannot be expressed in ONNX, or was exported in training mode.
        UsageError: an input to fix does not exist or has another rank.
    """
    name = printable(Path(request.source).name)
    _refuse_training(program, name)
    _refuse_types(program, name)
    signature = _signature(program, name)
    dims = _dims(program, signature, request.inputs)
    answers = _Answers(program, signature)
    unverified = ""
    if request.samples:
        logger.info("asking the source for references")
        sizes = _sizes(program, signature, dims)
        described = [_described(key, value, sizes) for key, value in signature.inputs.items()]
        unverified = leave_references(request, described, answers)
    logger.info("converting %d operators", len(program.graph.nodes))
    try:
        exported = torch.onnx.export(program, opset_version=request.opset, optimize=True, verbose=False)
    except Exception as error:  # the exporter's own errors, and what its translations raise
        raise _inexpressible(name, error) from error
    assert exported is not None
    save(exported.model, request, signature.inputs, signature.outputs, dims)
    return made(unverified, _notes(answers.changed))


def save(
    model: Any,
    request: Request,
    inputs: Mapping[str, Any],
    outputs: tuple[str, ...],
    dims: Mapping[str, str | int],
) -> None:
    """Write an exporter's model, tidied, its weights beside it: they stream from PyTorch's tensors one by one."""
    tidy(model, inputs=list(inputs), outputs=outputs, dims=dims)
    logger.info("writing %d nodes", len(list(model.graph.all_nodes())))
    ir.save(model, Path(request.folder, MODEL_NAME), external_data=DATA_NAME)


def made(unverified: str, notes: tuple[str, ...] = ()) -> Made:
    """Return by what a model was made."""
    return Made(
        converter=f"torch.onnx with onnxscript {onnxscript.__version__}",
        framework=f"torch {torch.__version__}",
        unverified=unverified,
        notes=notes,
    )


def _inexpressible(name: str, error: Exception) -> ModelError:
    """Return the refusal for a program that the exporter does not translate."""
    operator = next((found[1] for cause in _causes(error) if (found := _FOREIGN.search(str(cause)))), None)
    if operator is not None:
        return ModelError(
            f"`{name}` uses the operator `{operator}`, which torch.onnx cannot express in ONNX",
            "build the model without that operator, or try a newer PyTorch and onnxscript",
        )
    return ModelError(
        f"torch.onnx cannot convert `{name}`: {_cause(error)}", "run it again with -v to see what the exporter prints"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _cause(error: BaseException) -> str:
    """Return in one line what the first error in a chain of errors says."""
    *_, first = _causes(error)
    return f"{type(first).__name__}: {first_line(first)}"


def _graphs(program: Any) -> Iterator[Any]:
    """Yield the graph of a program and those of its branches and loops."""
    for module in program.graph_module.modules():
        if hasattr(module, "graph"):
            yield module.graph


def _refuse_training(program: Any, name: str) -> None:
    """Raise if an operator works as it does in training: by chance, or by what else is in the batch."""
    for graph in _graphs(program):
        for node in graph.nodes:
            schema = getattr(node.target, "_schema", None)
            if node.op != "call_function" or schema is None:
                continue
            given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
            chance = [given[key] for key in ("p", "dropout", "dropout_p") if key in given]
            trains = given.get("train") is True or given.get("training") is True or bool(given.get("dropout_p"))
            if trains and any(chance or [True]):
                raise ModelError(
                    f"`{name}` was exported in training mode: its `{printable(node.name)}` gives other answers then",
                    _EVAL_HINT,
                )


def _refuse_types(program: Any, name: str) -> None:
    """Raise if a tensor of the program has a type that onnxruntime does not compute with on a CPU."""
    tensors = {key: value for key, value in program.state_dict.items() if isinstance(value, torch.Tensor)}
    tensors |= {node.name: node.meta["val"] for node in program.graph.nodes if hasattr(node.meta.get("val"), "dtype")}
    for key, value in tensors.items():
        if value.dtype == torch.bfloat16 or value.dtype.is_complex or value.is_quantized:
            raise ModelError(
                f"`{name}` computes in {str(value.dtype).removeprefix('torch.')} (`{printable(key)}`), which"
                " onnxruntime does not do on a CPU",
                "export it in another type, such as with `model.float()`",
            )


def _signature(program: Any, name: str) -> Signature:
    """Return the names of a program's inputs and outputs.

    Raises:
        ModelError: it returns something other than tensors.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    kinds = torch.export.graph_signature
    given = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == kinds.InputKind.USER_INPUT]
    is_constant = [isinstance(argument, kinds.ConstantArgument) for argument in given]
    inputs = {a.name: values[a.name] for a, fixed in zip(given, is_constant, strict=True) if not fixed}
    constants = {i: a.value for i, (a, fixed) in enumerate(zip(given, is_constant, strict=True)) if fixed}
    returned = [spec.arg for spec in program.graph_signature.output_specs if spec.kind == kinds.OutputKind.USER_OUTPUT]
    for argument in returned:
        if isinstance(argument, kinds.ConstantArgument) and argument.value is not None:
            raise ModelError(
                f"`{name}` returns {printable(repr(argument.value))}, which is no tensor",
                "export a module that returns tensors only",
            )
    positions = [i for i, argument in enumerate(returned) if not isinstance(argument, kinds.ConstantArgument)]
    if not positions:
        raise ModelError(f"`{name}` returns no tensor", "export a module that returns one")
    outputs = output_names(program.call_spec.out_spec, positions, taken=inputs)
    return Signature(inputs, constants, outputs, tuple(positions), _symbols(inputs))


def output_names(spec: Any, positions: list[int], *, taken: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a name per leaf of what a module returns: its keys in dicts, else its number."""
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    names: list[str] = []
    for position in positions:
        path, _ = leaves[position]
        parts = [str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", "")))) for step in path]
        has_key = any(not isinstance(step, pytree.SequenceKey) for step in path)
        name = base = "_".join(parts) if has_key else "output" if len(positions) == 1 else f"output_{position}"
        number = 0
        while name in taken or name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return tuple(names)


def _symbols(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return readable names of the open sizes: `batch` for the first dimension, else the input and the dimension."""
    names: dict[str, str] = {}
    for key, value in inputs.items():
        for axis, size in enumerate(getattr(value, "shape", ())):
            symbol = _symbol(size)
            if symbol and symbol not in names:
                name = "batch" if axis == 0 and "batch" not in names.values() else f"{key}_dim{axis}"
                names[symbol] = name
    return names


def _symbol(size: Any) -> str:
    """Return the name of an open size; empty for a number, and for a size computed from others."""
    expression = getattr(getattr(size, "node", None), "expr", None)
    return str(expression) if expression is not None and expression.is_Symbol else ""


def _dims(program: Any, signature: Signature, wanted: Mapping[str, tuple[int | None, ...]]) -> dict[str, str | int]:
    """Return the open sizes' names in the ONNX model, or the sizes that they shall have.

    Raises:
        UsageError: there is no such input, or it cannot have that shape.
    """
    dims: dict[str, str | int] = dict(signature.symbols)
    for key, shape in wanted.items():
        if key not in signature.inputs:
            listed = ", ".join(f"`{printable(name)}`" for name in signature.inputs)
            raise UsageError(f"the model has no input `{printable(key)}`; its inputs are {listed}")
        declared = tuple(signature.inputs[key].shape)
        takes = tuple(size if isinstance(size, int) else None for size in declared)
        if len(takes) != len(shape) or any(size not in (None, given) for size, given in zip(takes, shape, strict=True)):
            raise _impossible(key, shape, takes)
        for size, given in zip(declared, shape, strict=True):
            symbol = _symbol(size)
            if symbol and given is not None:
                if dims[symbol] not in (signature.symbols[symbol], given) or not _allows(program, size, given):
                    raise _impossible(key, shape, takes)
                dims[symbol] = given
    return dims


def _impossible(name: str, shape: tuple[int | None, ...], declared: tuple[int | None, ...]) -> UsageError:
    return UsageError(
        f"the input `{printable(name)}` cannot have the shape {shape_text(shape)}: the model takes"
        f" {shape_text(declared)}"
    )


def _allows(program: Any, size: Any, given: int) -> bool:
    """Return whether an open size may have a value, by the limits it was exported with."""
    limits = program.range_constraints.get(size.node.expr)
    return limits is None or bool(limits.lower <= given <= limits.upper)


def _sizes(program: Any, signature: Signature, dims: Mapping[str, str | int]) -> dict[Any, int]:
    """Return a size to try the program with for each open one, within the limits that it was exported with."""
    sizes: dict[Any, int] = {}
    for symbol, limits in program.range_constraints.items():
        fixed = dims.get(str(symbol))
        usual = _BATCH if signature.symbols.get(str(symbol)) == "batch" else _OPEN_SIZE
        sizes[symbol] = fixed if isinstance(fixed, int) else int(min(max(usual, limits.lower), limits.upper))
    return sizes


def _described(name: str, value: Any, sizes: Mapping[Any, int]) -> Input:
    """Return an input as requests are drawn for it."""
    if not isinstance(value, torch.Tensor):
        return Input(name, "int64", ())
    shape = [size if isinstance(size, int) else int(size.node.expr.xreplace(sizes)) for size in value.shape]
    return Input(name, str(value.dtype).removeprefix("torch."), tuple(shape))


class _Answers:
    """A program as a function of its inputs by name; every call is like the first one."""

    def __init__(self, program: Any, signature: Signature) -> None:
        self._module = program.module()
        self._signature = signature
        self._spec = program.call_spec.in_spec
        self._buffers = {name: value.clone() for name, value in self._module.named_buffers()}
        self.changed: set[str] = set()
        """Buffers that a call leaves other than they were."""

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs, by name."""
        signature = self._signature
        given = iter([_to_torch(feeds[key], value) for key, value in signature.inputs.items()])
        total = len(signature.inputs) + len(signature.constants)
        flat = [signature.constants[i] if i in signature.constants else next(given) for i in range(total)]
        args, kwargs = pytree.tree_unflatten(flat, self._spec)
        with torch.no_grad():
            leaves = pytree.tree_leaves(self._module(*args, **kwargs))
            answers = [to_numpy(leaves[i]) for i in signature.output_positions]
            for name, value in self._module.named_buffers():
                if not torch.equal(value, self._buffers[name]):
                    self.changed.add(name)
                    value.copy_(self._buffers[name])
        return dict(zip(signature.outputs, answers, strict=True))


def _to_torch(array: Array, like: Any) -> Any:
    return torch.from_numpy(np.array(array)) if isinstance(like, torch.Tensor) else int(array)


def to_numpy(value: Any) -> Array:
    """Return a tensor or number that a module returned as an array of its own."""
    return np.array(value.detach()) if isinstance(value, torch.Tensor) else np.array(value)


def _notes(changed: set[str]) -> tuple[str, ...]:
    if not changed:
        return ()
    listed = ", ".join(f"`{printable(name)}`" for name in sorted(changed)[:5])
    return (f"the program changes {listed} in every call; the ONNX model computes every request like the first one",)
