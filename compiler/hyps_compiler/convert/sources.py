"""Keras files and SavedModel folders loaded as one TensorFlow function with named inputs and outputs.

Imports TensorFlow and Keras: for the child process only.
"""

import itertools
import json
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from hyps.errors import ModelError, printable
from hyps_compiler.convert.request import first_line

_EXPORT_HINT = "where the model was made, call `model.export(FOLDER)`, and convert that folder instead"


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
    configs = list(_configs(source))
    if any(config["class_name"] == "Lambda" for config in configs) and "Lambda" in str(error):
        return ModelError(
            f"`{source.name}` holds a Lambda layer, which is Python code; code from a model file is not run",
            _EXPORT_HINT,
        )
    unknown = sorted({name for name in map(_custom_name, configs) if name and not _is_registered(name)})
    if unknown:
        listed = ", ".join(f"`{printable(name)}`" for name in unknown[:5])
        word = "class or function" if len(unknown) == 1 else "classes or functions"
        return ModelError(f"`{source.name}` needs the {word} {listed}, which Keras does not know", _EXPORT_HINT)
    return ModelError(
        f"keras {keras.__version__} cannot load `{source.name}`: {_keras_words(error)}",
        "load it with the Keras that wrote it, and save it again",
    )


def _configs(source: Path) -> Iterator[dict[str, Any]]:
    """Yield every serialized object in a Keras file's configuration."""
    with zipfile.ZipFile(source) as archive:
        pending = [json.loads(archive.read("config.json"))]
    while pending:
        item = pending.pop()
        if isinstance(item, dict) and "class_name" in item and "module" in item:
            yield item
        pending.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())


def _custom_name(config: dict[str, Any]) -> str | None:
    """Return the name under which a serialized object would have to be registered; None if it is Keras' own."""
    module, registered_name = str(config["module"]), config.get("registered_name")
    if config["class_name"] == "function":  # Keras' own are saved as `relu`, registered ones as `package>name`
        return str(config["config"]) if ">" in str(config["config"]) else None
    if module == "builtins" or module.split(".")[0] == "keras":
        return None
    return str(registered_name or config["class_name"])


def _is_registered(name: str) -> bool:
    return keras.saving.get_registered_object(name) is not None


def _keras_words(error: Exception) -> str:
    """Return the part of a Keras error that says what happened; it stands behind what was being done meanwhile."""
    _, _, cause = str(error).rpartition("Exception encountered: ")
    lines = [line for line in cause.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    return printable(lines[0].strip(), limit=200).rstrip(".") if lines else first_line(error)


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
    input_names = _names([path for path, _ in leaves], _layers_of(model, "inputs"), "input", taken=())
    output_names = _names(output_paths, _layers_of(model, "outputs"), "output", taken=input_names)
    return Traced(
        function=function,
        inputs=_by_tensor(function.inputs[: len(specs)], input_names),
        outputs=_by_tensor(function.outputs, output_names),
        owner=model,
    )


def _signature(model: Any, source_name: str) -> list[Any]:
    """Return the positional arguments of a model's call as a nest of things with a shape and a dtype."""
    if isinstance(model, keras.Sequential):
        return [model.inputs[0]] if model.built else _built_signature(model, source_name)
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


def _layers_of(model: Any, attribute: str) -> list[str]:
    """Return the names of the layers that a model's `inputs` or `outputs` come from; none for a subclassed model."""
    return [tensor._keras_history.operation.name for tensor in getattr(model, attribute, None) or []]


def _names(paths: Sequence[tuple[Any, ...]], layers: Sequence[str], word: str, *, taken: Collection[str]) -> list[str]:
    """Return one name per leaf of a nest, all different: its key in a dict, else its layer's name, else a number."""
    names: list[str] = []
    for index, path in enumerate(paths):
        keys = [step for step in path if isinstance(step, str)]
        name = keys[-1] if keys else layers[index] if len(layers) == len(paths) else f"{word}_{index}"
        names.append(_distinct(name, {*names, *taken}))
    return names


def _distinct(name: str, taken: Collection[str]) -> str:
    """Return the name, with a number if it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in taken)


def _by_tensor(tensors: Sequence[Any], names: Sequence[str]) -> dict[str, str]:
    return {tensor.name: name for tensor, name in zip(tensors, names, strict=True)}


def _load_saved_model(source: Path) -> Traced:
    """Return the serving function of a SavedModel folder."""
    try:
        loaded = tf.saved_model.load(str(source))
    except Exception as error:  # TensorFlow's own errors, OSError, ValueError, KeyError, protobuf's DecodeError
        raise ModelError(
            f"tensorflow {tf.__version__} cannot load the SavedModel `{source.name}`: {first_line(error)}",
            "export the model again",
        ) from error
    function = loaded.signatures[_signature_name(source, sorted(loaded.signatures))]
    # The structured signature is sorted by name, and so are the function's flat tensors.
    input_names = sorted(function.structured_input_signature[1])
    output_names = [_distinct(name, input_names) for name in sorted(function.structured_outputs)]
    return Traced(
        function=function,
        inputs=_by_tensor(function.inputs[: len(input_names)], input_names),
        outputs=_by_tensor(function.outputs, output_names),
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
