"""Keras files and SavedModel folders loaded as one TensorFlow function with named inputs and outputs.

Imports TensorFlow and Keras: for the child process only.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from hyps.errors import ModelError, printable
from hyps_compiler.convert.request import first_line

_EXPORT_HINT = "where the class is defined, call `model.export(FOLDER)` and convert that folder instead"


@dataclass(frozen=True, slots=True)
class Traced:
    """A TensorFlow function and what its tensors are called outside."""

    function: Any
    """A ConcreteFunction."""
    inputs: dict[str, str]
    """TensorFlow's tensor name -> the ONNX input's name, in the model's order."""
    outputs: dict[str, str]
    """TensorFlow's tensor name -> the ONNX output's name, in the model's order."""
    owner: Any
    """What keeps the function's variables alive."""


def load_source(source: Path) -> Traced:
    """Return the inference function of a `.keras` file or a SavedModel folder.

    Raises:
        ModelError: Keras or TensorFlow cannot load it, or it has no one function to convert.
    """
    return _load_saved_model(source) if source.is_dir() else trace_model(_load_keras(source), source.name)


def _load_keras(source: Path) -> Any:
    """Return the Keras model in a file, with no code from the file run (Keras' safe mode)."""
    try:
        return keras.saving.load_model(source, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises TypeError, ValueError, KeyError, OSError and zipfile's own for a bad file
        raise _explain_keras(source, error) from error


def _explain_keras(source: Path, error: Exception) -> ModelError:
    """Return the refusal for a file that Keras does not load: what is known of its classes first, else Keras' words."""
    for name in _class_names(source):
        if name.endswith("Lambda") and "Lambda" in str(error):
            return ModelError(
                f"`{source.name}` holds a Lambda layer, which is Python code; code from a model file is not run",
                _EXPORT_HINT,
            )
    unknown = sorted(set(_unknown_classes(source)))
    if unknown:
        listed = ", ".join(f"`{printable(name)}`" for name in unknown[:5])
        word = "class" if len(unknown) == 1 else "classes"
        return ModelError(f"`{source.name}` needs the {word} {listed}, which Keras does not know", _EXPORT_HINT)
    return ModelError(
        f"keras {keras.__version__} cannot load `{source.name}`: {first_line(error)}",
        "load it with `keras.saving.load_model` and save it again, with the Keras that wrote it",
    )


def _configs(source: Path) -> Iterator[dict[str, Any]]:
    """Yield every serialized object in a Keras file's configuration, outermost first."""
    with zipfile.ZipFile(source) as archive:
        pending = [json.loads(archive.read("config.json"))]
    while pending:
        item = pending.pop()
        if isinstance(item, dict) and "class_name" in item:
            yield item
        pending.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())


def _class_names(source: Path) -> list[str]:
    return [str(config["class_name"]) for config in _configs(source)]


def _unknown_classes(source: Path) -> Iterator[str]:
    """Yield the classes of a Keras file that are neither Keras' own nor registered here."""
    for config in _configs(source):
        module, name = config.get("module"), config.get("registered_name") or config["class_name"]
        is_builtin = isinstance(module, str) and (module == "builtins" or module.split(".")[0] == "keras")
        is_internal = str(config["class_name"]).startswith("__")  # `__tensor__`, `__tuple__`: values, not classes
        if not is_builtin and not is_internal and keras.saving.get_registered_object(name) is None:
            yield str(name)


def trace_model(model: Any, source_name: str) -> Traced:
    """Return a Keras model's inference function, with flat inputs named as the model names them.

    Raises:
        ModelError: the model's inputs are not known, or its Python code cannot be traced.
    """
    arguments = _signature(model, source_name)
    leaves = keras.tree.flatten_with_path(arguments)
    specs = [
        tf.TensorSpec(leaf.shape, keras.backend.standardize_dtype(leaf.dtype), name=f"hyps_input_{index}")
        for index, (_, leaf) in enumerate(leaves)
    ]
    output_paths: list[tuple[Any, ...]] = []

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]  # tensorflow has no types
    def infer(*flat: Any) -> list[Any]:
        results = keras.tree.flatten_with_path(model(*keras.tree.pack_sequence_as(arguments, flat), training=False))
        output_paths[:] = [path for path, _ in results]
        return [tf.identity(value) for _, value in results]  # an output that is an input needs a tensor of its own

    try:
        function = infer.get_concrete_function()
    except Exception as error:  # the model's own code, which may raise anything
        raise ModelError(f"`{source_name}` cannot be traced: {first_line(error)}", _EXPORT_HINT) from error
    input_tensors = [tensor.name for tensor in function.inputs[: len(specs)]]
    output_tensors = [tensor.name for tensor in function.outputs]
    return Traced(
        function=function,
        inputs=dict(
            zip(input_tensors, _names([path for path, _ in leaves], _input_layers(model), "input"), strict=True)
        ),
        outputs=dict(zip(output_tensors, _names(output_paths, _output_layers(model), "output"), strict=True)),
        owner=model,
    )


def _signature(model: Any, source_name: str) -> list[Any]:
    """Return the positional arguments of a model's call as a nest of things with a shape and a dtype."""
    if isinstance(model, keras.Sequential):
        return [model.inputs[0]] if model.inputs else _built_signature(model, source_name)
    if getattr(model, "inputs", None):
        return [model.input]
    return _built_signature(model, source_name)


def _built_signature(model: Any, source_name: str) -> list[Any]:
    """Return the arguments a subclassed model was built with; their batch is dynamic."""
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"inputs": config.get("input_shape")}
    if any(shape is None for shape in shapes.values()):
        raise ModelError(f"`{source_name}` does not say what inputs it takes", "call the model once before saving it")

    def to_spec(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: to_spec(part) for name, part in shape.items()}
        if all(size is None or isinstance(size, int) for size in shape):
            return keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype)
        return [to_spec(part) for part in shape]

    return [to_spec(shape) for shape in shapes.values()]


def _input_layers(model: Any) -> list[str]:
    return [tensor._keras_history.operation.name for tensor in getattr(model, "inputs", None) or []]


def _output_layers(model: Any) -> list[str]:
    return [tensor._keras_history.operation.name for tensor in getattr(model, "outputs", None) or []]


def _names(paths: Sequence[tuple[Any, ...]], layers: Sequence[str], word: str) -> list[str]:
    """Return one name per leaf of a nest: its key in a dict, else its layer's name, else a number; all different."""
    names: list[str] = []
    for index, path in enumerate(paths):
        keys = [step for step in path if isinstance(step, str)]
        name = keys[-1] if keys else layers[index] if len(layers) == len(paths) else f"{word}_{index}"
        while name in names:
            name = f"{name}_{index}"
        names.append(name)
    return names


def _load_saved_model(source: Path) -> Traced:
    """Return the serving function of a SavedModel folder."""
    try:
        loaded = tf.saved_model.load(str(source))
    except (
        Exception
    ) as error:  # TensorFlow raises its own errors, OSError, ValueError, KeyError, protobuf's DecodeError
        raise ModelError(
            f"tensorflow {tf.__version__} cannot load the SavedModel `{source.name}`: {first_line(error)}",
            "export the model again",
        ) from error
    function = loaded.signatures[_signature_name(source, sorted(loaded.signatures))]
    # The structured signature is sorted by name, and so are the function's flat tensors.
    input_names = sorted(function.structured_input_signature[1])
    output_names = sorted(function.structured_outputs)
    return Traced(
        function=function,
        inputs=dict(zip([tensor.name for tensor in function.inputs], input_names, strict=False)),
        outputs=dict(zip([tensor.name for tensor in function.outputs], output_names, strict=True)),
        owner=loaded,
    )


def _signature_name(source: Path, names: Sequence[str]) -> str:
    """Return the one signature to convert: `serving_default`, else the only one."""
    if "serving_default" in names:
        return "serving_default"
    if len(names) == 1:
        return names[0]
    if not names:
        raise ModelError(
            f"the SavedModel `{source.name}` has no signature, so its inputs and outputs are not known",
            "export it with `model.export(FOLDER)` or `tf.saved_model.save(module, FOLDER, signatures=...)`",
        )
    listed = ", ".join(f"`{printable(name)}`" for name in names[:8])
    raise ModelError(
        f"the SavedModel `{source.name}` has {len(names)} signatures ({listed}) and none is `serving_default`",
        "export it with one signature",
    )
