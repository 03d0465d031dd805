"""Keras files, SavedModel folders and frozen graphs loaded as one TensorFlow function with named inputs and outputs.

Imports TensorFlow and Keras: for the child process only.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyps.errors import ModelError, printable
from hyps_compiler.convert import frozen, saved_models
from hyps_compiler.convert.keras_files import EXPORT_HINT, load_keras
from hyps_compiler.convert.request import first_line
from hyps_compiler.convert.samples import Input


@dataclass(frozen=True, slots=True)
class Traced:
    """A TensorFlow function and what its tensors are called outside."""

    function: Any
    """A ConcreteFunction."""
    inputs: dict[str, str]
    """TensorFlow's tensor name -> the ONNX input's name, in the model's order."""
    outputs: dict[str, str]
    """TensorFlow's tensor name -> the ONNX output's name, in the model's order."""
    call: Callable[[Sequence[Any]], Sequence[Any]]
    """Computes the outputs from the inputs, both in the model's order, as the framework does for its own users."""
    framework: str
    """Name and version, such as `keras 3.15.1`."""
    owner: Any = None
    """What keeps the function's variables alive."""

    def described(self) -> list[Input]:
        """Return the inputs as the ONNX model has them."""
        tensors = self.function.inputs[: len(self.inputs)]
        return [
            Input(name, tensor.dtype.name, None if tensor.shape.rank is None else tuple(tensor.shape.as_list()))
            for name, tensor in zip(self.inputs.values(), tensors, strict=True)
        ]

    def shapes(self) -> dict[str, tuple[int | None, ...] | None]:
        """Return the declared shape of each input by name."""
        return {value.name: value.shape for value in self.described()}

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name that the framework computes."""
        results = self.call([tf.constant(feeds[name]) for name in self.inputs.values()])
        return {name: np.asarray(value) for name, value in zip(self.outputs.values(), results, strict=True)}


def load_source(source: Path, kind: str, scratch: Path, outputs: Sequence[str] = (), *, trust: bool = False) -> Traced:
    """Return the inference function of a Keras file, a SavedModel folder or a frozen graph.

    Args:
        source: the file or folder.
        kind: which of TensorFlow's kinds it is.
        scratch: a folder for what has to be unpacked meanwhile.
        outputs: the tensors of a frozen graph to compute; empty: those that nothing else uses.
        trust: whether a SavedModel or a frozen graph may do more than compute.

    Raises:
        ModelError: Keras or TensorFlow cannot load it, or it has no one function to convert.
    """
    if kind == "saved-model":
        return _load_saved_model(source, source if trust else saved_models.screened_copy(source, scratch))
    if kind == "frozen-graph":
        return _load_frozen(source, outputs, trust=trust)
    return trace_model(load_keras(source, scratch), source.name)


def _load_frozen(source: Path, outputs: Sequence[str], *, trust: bool) -> Traced:
    """Return a frozen graph as a function."""
    function, input_names, output_names = frozen.load_graph(source, outputs, trust=trust)
    return Traced(
        function=function,
        inputs=_by_tensor(function.inputs, input_names),
        outputs=_by_tensor(function.outputs, output_names),
        call=lambda flat: function(*flat),
        framework=f"tensorflow {tf.__version__}",
    )


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
        raise ModelError(f"`{source_name}` cannot be traced: {first_line(error)}", EXPORT_HINT) from error
    input_names = _names([path for path, _ in leaves], _layers_of(model, "inputs"), "input", taken=())
    output_names = _names(output_paths, _layers_of(model, "outputs"), "output", taken=input_names)
    return Traced(
        function=function,
        inputs=_by_tensor(function.inputs[: len(specs)], input_names),
        outputs=_by_tensor(function.outputs, output_names),
        call=lambda flat: keras.tree.flatten(model(*keras.tree.pack_sequence_as(arguments, flat), training=False)),
        framework=f"keras {keras.__version__}",
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


def _load_saved_model(source: Path, folder: Path) -> Traced:
    """Return the serving function of a SavedModel, read from a folder; messages are about `source`."""
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow's own errors, OSError, ValueError, KeyError, protobuf's DecodeError
        raise ModelError(
            f"tensorflow {tf.__version__} cannot load the SavedModel `{source.name}`: {first_line(error)}",
            "export the model again",
        ) from error
    function = loaded.signatures[_signature_name(source, sorted(loaded.signatures))]
    # The structured signature is sorted by name, and so are the function's flat tensors.
    input_names = sorted(function.structured_input_signature[1])
    answers = sorted(function.structured_outputs)
    output_names = [_distinct(name, input_names) for name in answers]

    def call(flat: Sequence[Any]) -> list[Any]:
        results = function(**dict(zip(input_names, flat, strict=True)))
        return [results[name] for name in answers]

    return Traced(
        function=function,
        inputs=_by_tensor(function.inputs[: len(input_names)], input_names),
        outputs=_by_tensor(function.outputs, output_names),
        call=call,
        framework=f"tensorflow {tf.__version__}",
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
