"""The converting child process: reads one request from its standard input, leaves a model or a refusal.

`python -m hyps_compiler.convert.child` imports TensorFlow, which takes gigabytes and prints; the parent never does.
The parent keeps this process' standard input open for as long as it wants the conversion: when the parent ends,
however it ends, this process cleans up and ends too.
"""

import importlib
import logging
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hyps.errors import DependencyError, HypsError, UsageError, printable
from hyps_compiler.convert.request import KINDS, MODEL_NAME, REFUSAL_NAME, Refusal, Request, first_line

logger = logging.getLogger(__name__)


def main() -> int:
    """Serve the one request on standard input; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_parent, args=(request.folder,), daemon=True).start()
    try:
        run(request)
    except Exception as error:  # the top of this process: whatever it was, the parent must be told
        traceback.print_exc()
        Path(request.folder, REFUSAL_NAME).write_bytes(msgspec.json.encode(_to_refusal(error, request)))
        return 1
    return 0


def run(request: Request) -> None:
    """Convert as asked and leave the model in the request's folder.

    Raises:
        DependencyError: TensorFlow, Keras or tf2onnx cannot be imported.
        ModelError: the source cannot be loaded or expressed in ONNX.
        UsageError: an input to fix does not exist or has another rank; a module of the user's cannot be imported.
    """
    _import_frameworks()
    from hyps_compiler.convert import freeze, graph, sources, weights

    _import_users_modules(request.modules)
    source = Path(request.source)
    logger.info("loading %s", source.name)
    traced = sources.load_source(source)
    logger.info("freezing %d inputs, %d outputs", len(traced.inputs), len(traced.outputs))
    frozen = freeze.freeze(traced.function, request.constant_nbytes)
    freeze.fix_shapes(frozen.graph_def, _fixed_shapes(traced.inputs, request.inputs, frozen.graph_def))
    weight_names = _name_weights(frozen.lifted, [*traced.inputs.values(), *traced.outputs.values()])
    logger.info("converting, with %d weights set aside", len(weight_names))
    model = graph.to_onnx(
        frozen.graph_def,
        inputs=traced.inputs | weight_names,
        outputs=traced.outputs,
        opset=request.opset,
        source_name=source.name,
    )
    logger.info("writing %d nodes", len(model.graph.node))
    weights.write_model(
        model,
        {
            weight_names[f"{name}:0"]: weights.Weight(variable.numpy, freeze.variable_nbytes(variable))
            for name, variable in frozen.lifted.items()
        },
        Path(request.folder, MODEL_NAME),
        data_name=request.data_name,
        file_nbytes=request.file_nbytes,
    )


def _end_with_parent(folder: str) -> None:
    """Wait for the end of standard input, then remove this process' files and end it, whatever it is doing."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read: its lock, held here, would break the normal exit
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _import_frameworks() -> None:
    """Import what everything else here needs, so that a broken installation is told from a broken model."""
    for name in ("tensorflow", "keras", "tf2onnx"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DependencyError(f"`{name}` is installed but cannot be imported: {printable(str(error))}") from error


def _import_users_modules(names: tuple[str, ...]) -> None:
    if names:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the user's own code
            raise UsageError(f"the module `{printable(name)}` cannot be imported: {printable(str(error))}") from error


def _fixed_shapes(
    tensors: Mapping[str, str], wanted: Mapping[str, tuple[int | None, ...]], graph_def: Any
) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes to fix by placeholder, from those by input name.

    Raises:
        UsageError: there is no such input, or the model cannot take that shape.
    """
    nodes = {name: tensor.split(":")[0] for tensor, name in tensors.items()}
    unknown = sorted(set(wanted) - set(nodes))
    if unknown:
        listed = ", ".join(f"`{printable(name)}`" for name in nodes)
        raise UsageError(f"the model has no input `{printable(unknown[0])}`; its inputs are {listed}")
    declared = {node.name: node.attr["shape"].shape for node in graph_def.node if node.op == "Placeholder"}
    for name, shape in wanted.items():
        _check_shape(name, shape, declared[nodes[name]])
    return {nodes[name]: shape for name, shape in wanted.items()}


def _check_shape(name: str, shape: tuple[int | None, ...], declared: Any) -> None:
    """Raise a UsageError unless `shape` is a case of a placeholder's declared shape (-1: dynamic)."""
    if declared.unknown_rank:
        return
    sizes = [dim.size for dim in declared.dim]
    if len(sizes) != len(shape) or any(size not in (-1, given) for size, given in zip(sizes, shape, strict=True)):
        given = "x".join("?" if size is None else str(size) for size in shape)
        takes = "x".join("?" if size == -1 else str(size) for size in sizes)
        raise UsageError(f"the input `{printable(name)}` cannot have the shape {given}: the model takes {takes}")


def _name_weights(lifted: Mapping[str, Any], taken: Iterable[str]) -> dict[str, str]:
    """Return a readable name per lifted variable, by its placeholder's tensor; all different, none of them `taken`."""
    used = set(taken)
    names: dict[str, str] = {}
    for placeholder, variable in lifted.items():
        name = base = variable.name.split(":")[0]
        number = 0
        while name in used:
            number += 1
            name = f"{base}_{number}"
        used.add(name)
        names[f"{placeholder}:0"] = name
    return names


def _to_refusal(error: Exception, request: Request) -> Refusal:
    """Return what the parent is told about an error."""
    name = printable(Path(request.source).name)
    if isinstance(error, HypsError):
        kind = next(word for word, error_class in KINDS.items() if type(error) is error_class)
        return Refusal(kind=kind, message=error.message, hint=error.hint, code=error.code)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return Refusal(kind="failed", message=f"memory ran out in the conversion of `{name}`", code="E_MEMORY")
    if isinstance(error, OSError) and error.errno is not None:
        return Refusal(kind="output", message=f"the ONNX model of `{name}` cannot be written: {error.strerror}")
    said = f"{type(error).__name__}: {first_line(error)}"
    return Refusal(
        kind="model",
        message=f"tf2onnx cannot convert `{name}`: {said}",
        hint="run it again with -v to see what TensorFlow and tf2onnx print",
    )


if __name__ == "__main__":
    sys.exit(main())
