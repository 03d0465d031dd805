"""PyTorch's scripted and traced modules, and pickled ones, made into ONNX models.

They do not say what they take beyond the names of their inputs; a traced one remembers what it was traced with. A
pickled module is a program of Python: it is exported first, and then is what `programs` converts.

Imports torch: for the child process only.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from hyps.errors import ModelError, UsageError, printable
from hyps.formats.signature import shape_text
from hyps_compiler.arrays import read_npz
from hyps_compiler.convert import archives, programs
from hyps_compiler.convert.request import TRUST_HINT, Made, Request, first_line
from hyps_compiler.convert.samples import BATCH, OPEN_SIZE, Array, Input, leave_references

logger = logging.getLogger(__name__)

_SCRIPT_NAME = "script.onnx"
_BATCH_NAME = "batch"
_PROGRAM_HINT = "where the model was made, use `torch.export.save(torch.export.export(model, example_inputs), FILE)`"


@dataclass(frozen=True, slots=True)
class Example:
    """An input of a module, with a tensor that it takes."""

    name: str
    tensor: Any
    open_axes: tuple[int, ...]

    def described(self) -> Input:
        """Return the input as requests are drawn for it."""
        shape = [None if axis in self.open_axes else size for axis, size in enumerate(self.tensor.shape)]
        return Input(self.name, _dtype(self.tensor), tuple(shape))

    def dims(self) -> dict[int, str]:
        """Return the names of the open dimensions, by axis."""
        return {axis: _BATCH_NAME if axis == 0 else f"{self.name}_dim{axis}" for axis in self.open_axes}


def run(request: Request) -> Made:
    """Convert a module as asked and leave model and references in the request's folder.

    Raises:
        ModelError: it is not trusted, cannot be loaded or expressed in ONNX.
        UsageError: the shape of an input is needed and not given, or an input to fix does not exist.
    """
    source = Path(request.source)
    if not request.trust:
        raise ModelError(f"`{source.name}` is a program, which is not run", TRUST_HINT)
    logger.info("loading %s", source.name)
    if archives.content_of(source) == "scripted":
        return _convert_script(request, _load_script(source))
    module = _load_pickled(source)
    parameters = [name for name, value in inspect.signature(module.forward).parameters.items() if _is_needed(value)]
    examples = _examples(request, parameters, {})
    return programs.convert_program(request, _exported(module, examples, source.name))


def _load_script(source: Path) -> Any:
    """Return a scripted module, in evaluation mode.

    Raises:
        ModelError: PyTorch cannot read it.
    """
    try:
        restores = {"_restore_shapes": True} if archives.is_traced(source) else {}
        return torch.jit.load(str(source), map_location="cpu", **restores).eval()
    except Exception as error:  # PyTorch's reader raises whatever its parsers do
        raise _unreadable(source, error) from error


def _load_pickled(source: Path) -> Any:
    """Return a pickled module, in evaluation mode; code in the file is run.

    Raises:
        ModelError: it cannot be unpickled, or is something else.
    """
    try:
        found = torch.load(source, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"`{source.name}` needs a class that is not there: {first_line(error)}",
            "name the module that defines it with --module",
        ) from error
    except Exception as error:  # whatever the code in it raises
        raise _unreadable(source, error) from error
    if not isinstance(found, torch.nn.Module):
        what = type(found).__name__
        raise ModelError(f"`{source.name}` holds a {printable(what)}, not a module of PyTorch", _PROGRAM_HINT)
    return found.eval()


def _unreadable(source: Path, error: Exception) -> ModelError:
    return ModelError(
        f"torch {torch.__version__} cannot load `{source.name}`: {first_line(error)}",
        "load it with the PyTorch that wrote it and save it again",
    )


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_KEYWORD,
        parameter.VAR_POSITIONAL,
    )


def _exported(module: Any, examples: Sequence[Example], source_name: str) -> Any:
    """Return a module of Python as an exported program."""
    open_sizes = {example.name: dict.fromkeys(example.open_axes, torch.export.Dim.AUTO) for example in examples}
    try:
        return torch.export.export(
            module, (), {example.name: example.tensor for example in examples}, dynamic_shapes=open_sizes
        )
    except Exception as error:  # the module's own code, which may raise anything
        raise ModelError(f"torch.export cannot export `{source_name}`: {first_line(error)}", _PROGRAM_HINT) from error


def _convert_script(request: Request, module: Any) -> Made:
    """Convert a scripted module, and leave model and references in the request's folder."""
    source_name = Path(request.source).name
    names = _script_inputs(module, source_name)
    traced = _traced_inputs(module)
    examples = _examples(request, names, traced)
    call = _Call(module, [example.name for example in examples])
    if traced and not (request.inputs or request.feeds) and _takes_any_batch(call, examples):
        examples = [Example(example.name, example.tensor, (0,)) for example in examples]
    outputs = _outputs(call, examples, source_name)
    unverified = ""
    if request.samples:
        logger.info("asking the source for references")
        unverified = leave_references(
            request, [example.described() for example in examples], lambda feeds: call.named(feeds, list(outputs))
        )
    logger.info("converting the script")
    model = _onnx_of_script(request, module, examples, outputs)
    dims = {name: name for example in examples for name in example.dims().values()}
    programs.save(model, request, dict.fromkeys(call.names), tuple(outputs), dims)
    return programs.made(unverified)


def _script_inputs(module: Any, source_name: str) -> list[str]:
    """Return the names of a scripted module's inputs.

    Raises:
        ModelError: one of them is no tensor, or may be left out, which PyTorch's exporter of scripts fails on.
    """
    arguments = module.forward.schema.arguments[1:]
    for argument in arguments:
        if argument.has_default_value() or str(argument.type) != "Tensor":
            kind = str(argument.type) + (", with a default" if argument.has_default_value() else "")
            raise ModelError(
                f"`{source_name}` takes `{printable(argument.name)}` as {printable(kind)}: only tensors without a"
                " default can be inputs of an ONNX model made of a script",
                "script a module around it whose `forward` takes tensors only",
            )
    return [argument.name for argument in arguments]


def _traced_inputs(module: Any) -> dict[str, Any]:
    """Return tensors like those a module was traced with, by input name; none where the file does not tell them."""
    found: dict[str, Any] = {}
    names = [argument.name for argument in module.forward.schema.arguments[1:]]
    for name, value in zip(names, list(module.forward.graph.inputs())[1:], strict=True):
        kind = value.type()
        if kind.kind() == "TensorType" and kind.sizes() is not None and kind.dtype() is not None:
            found[name] = torch.zeros(kind.sizes(), dtype=kind.dtype())
    return found


def _examples(request: Request, names: Sequence[str], known: Mapping[str, Any]) -> list[Example]:
    """Return a tensor per input: from the given request, of the given shape, or as known; else it is asked for.

    Raises:
        UsageError: an input that is given does not exist; the shape of one is not known.
    """
    given = {key: torch.from_numpy(np.array(value)) for key, value in _feeds(request).items()}
    unknown = sorted((set(request.inputs) | set(given)) - set(names))
    if unknown:
        listed = ", ".join(f"`{printable(name)}`" for name in names)
        raise UsageError(f"the model has no input `{printable(unknown[0])}`; its inputs are {listed}")
    examples = []
    for name in names:
        shape = request.inputs.get(name)
        tensor = given.get(name)
        if tensor is None and shape is not None:
            sizes = [size if size is not None else OPEN_SIZE if axis else BATCH for axis, size in enumerate(shape)]
            tensor = torch.ones(sizes, dtype=known[name].dtype if name in known else torch.float32)
        tensor = known.get(name) if tensor is None else tensor
        if tensor is None:
            raise UsageError(
                f"`{printable(Path(request.source).name)}` does not say what shape its input `{printable(name)}` has",
                f"give it, such as --input {printable(name)}:?x3x224x224, or a request with --inputs x.npz if it takes"
                " other than float32",
            )
        examples.append(Example(name, tensor, tuple(axis for axis, size in enumerate(shape or ()) if size is None)))
    return examples


def _feeds(request: Request) -> dict[str, Array]:
    return read_npz(Path(request.feeds)) if request.feeds else {}


class _Call:
    """A module as a function of its inputs by name."""

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        self._module = module
        self.names = list(names)

    def flat(self, tensors: Sequence[Any]) -> list[Any]:
        """Return what the module returns for inputs in order, as a flat list without what is None."""
        with torch.no_grad():
            returned = self._module(**dict(zip(self.names, tensors, strict=True)))
        return [leaf for leaf in pytree.tree_leaves(returned) if leaf is not None]

    def named(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Return the outputs, by name, for inputs by name."""
        leaves = self.flat([torch.from_numpy(np.array(feeds[name])) for name in self.names])
        return {name: programs.to_numpy(leaf) for name, leaf in zip(outputs, leaves, strict=True)}


def _takes_any_batch(call: _Call, examples: Sequence[Example]) -> bool:
    """Return whether a traced module answers twice the batch with twice the answers: sizes may be fixed in a trace."""
    tensors = [torch.rand(example.tensor.shape).to(example.tensor.dtype) for example in examples]
    if len({tensor.shape[:1] for tensor in tensors}) != 1 or not tensors[0].ndim:
        return False
    try:
        once = call.flat(tensors)
        twice = call.flat([torch.cat([tensor, tensor.flip(0)]) for tensor in tensors])
        return all(
            torch.allclose(torch.cat([left, left.flip(0)]), right, rtol=1e-3, atol=1e-5)
            for left, right in zip(once, twice, strict=True)
        )
    except Exception:  # of the module's own code, which a size does not fit: then it does not take it
        return False


def _outputs(call: _Call, examples: Sequence[Example], source_name: str) -> dict[str, dict[int, str]]:
    """Return the names of a module's outputs, and the open dimensions of each: those of as many rows as the batch.

    Raises:
        ModelError: it fails on inputs of these shapes, or returns something other than tensors.
        UsageError: it fails for the type of an input, of which only the shape was given.
    """
    try:
        leaves = call.flat([example.tensor for example in examples])
    except Exception as error:  # of the module's own code
        shapes = ", ".join(f"{e.name} {_dtype(e.tensor)} {shape_text(e.tensor.shape)}" for e in examples)
        raise ModelError(
            f"`{source_name}` fails on inputs of the given shapes ({printable(shapes)}): {_said(error)}",
            "give other shapes with --input, or a request with --inputs x.npz if it takes other than float32",
        ) from error
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise ModelError(f"`{source_name}` does not return tensors only", "script a module that does")
    batch = {example.tensor.shape[0] for example in examples if 0 in example.open_axes}
    names = ["output"] if len(leaves) == 1 else [f"output_{index}" for index in range(len(leaves))]
    return {
        name: {0: _BATCH_NAME} if leaf.ndim and leaf.shape[0] in batch else {}
        for name, leaf in zip(names, leaves, strict=True)
    }


def _said(error: Exception) -> str:
    """Return what a script's error says: the last line, below the places in the script's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1].removeprefix("RuntimeError: ") if lines else type(error).__name__, limit=200)


def _onnx_of_script(
    request: Request, module: Any, examples: Sequence[Example], outputs: Mapping[str, dict[int, str]]
) -> Any:
    """Return a scripted module as an ONNX model.

    Raises:
        ModelError: it cannot be expressed in ONNX.
    """
    path = Path(request.folder, _SCRIPT_NAME)
    axes = {example.name: example.dims() for example in examples} | dict(outputs)
    try:
        torch.onnx.export(
            module,
            tuple(example.tensor for example in examples),
            str(path),
            dynamo=False,  # the newer exporter takes no scripts
            opset_version=request.opset,
            input_names=[example.name for example in examples],
            output_names=list(outputs),
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
            verbose=False,
        )
    except Exception as error:  # the exporter's own errors, and PyTorch's
        raise ModelError(
            f"torch.onnx cannot convert the script `{Path(request.source).name}`: {first_line(error)}", _PROGRAM_HINT
        ) from error
    return ir.load(path)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
