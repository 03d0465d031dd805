"""Keras files loaded with no code from them run, and what is said of those that Keras does not load.

Imports Keras: for the child process only.
"""

import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras

from hyps.dependencies import floor_of
from hyps.errors import ModelError, printable
from hyps_compiler.convert.checks import COPY_HINT
from hyps_compiler.convert.request import first_line
from hyps_compiler.convert.versions import refuse_unsafe

EXPORT_HINT = "where the model was made, call `model.export(FOLDER)`, and convert that folder instead"
_CLASS_HINT = f"name the Python module that registers it with --module; or, {EXPORT_HINT}"


_LAMBDAS = {"Lambda", "__lambda__"}
"""Classes whose configuration is Python bytecode."""


def load_keras(source: Path, scratch: Path) -> Any:
    """Return the Keras model in a file, with no code from the file run (Keras' safe mode).

    Args:
        source: the `.keras` file or HDF5 file.
        scratch: a folder for what has to be unpacked meanwhile.

    Raises:
        DependencyError: Keras is so old that it would run code from the file, or read files that it names.
        ModelError: it holds code, or Keras cannot load it.
    """
    refuse_unsafe("keras", keras.__version__, floor_of("keras"))
    if source.suffix.lower() != ".keras":
        _refuse_code(source, _configs(_read_hdf5_config(source)))  # older Keras run lambdas of HDF5 files in safe mode
    try:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return keras.saving.load_model(_prepared(source, Path(folder)), compile=False, safe_mode=True)
    except Exception as error:  # Keras raises TypeError, ValueError, KeyError, OSError and zipfile's own for a bad file
        raise _explain_keras(source, error) from error


def _prepared(source: Path, folder: Path) -> Path:
    """Return what Keras shall load in place of a file, made in an empty folder.

    Keras reads the weights of an archive into memory, all at once; from an unpacked one it takes them one by one.
    """
    if source.suffix.lower() == ".keras":
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)
        return folder
    link = folder / f"model{source.suffix.lower()}"  # Keras knows its files by suffixes in lower case
    link.symlink_to(source)
    return link


def _explain_keras(source: Path, error: Exception) -> ModelError:
    """Return the refusal for a file that Keras does not load: what is known of its classes first, else Keras' words."""
    is_archive = source.suffix.lower() == ".keras"
    configs = list(_configs(_read_config(source) if is_archive else _read_hdf5_config(source)))
    if "Lambda" in str(error):
        _refuse_code(source, configs)
    unknown = sorted({name for name in map(_custom_name, configs) if name and not _is_registered(name)})
    if unknown:
        listed = ", ".join(f"`{printable(name)}`" for name in unknown[:5])
        word = "class or function" if len(unknown) == 1 else "classes or functions"
        return ModelError(f"`{_shown(source)}` needs the {word} {listed}, which Keras does not know", _CLASS_HINT)
    return ModelError(
        f"keras {keras.__version__} cannot load `{_shown(source)}`: {_keras_words(error)}",
        "load it with the Keras that wrote it, and save it again",
    )


def _refuse_code(source: Path, configs: Iterable[dict[str, Any]]) -> None:
    """Raise if one of the serialized objects is Python code."""
    if any(config["class_name"] in _LAMBDAS for config in configs):
        raise ModelError(
            f"`{_shown(source)}` holds a Lambda layer, which is Python code; code from a model file is not run",
            EXPORT_HINT,
        )


def _shown(source: Path) -> str:
    return printable(source.name)


def _read_config(source: Path) -> Any:
    with zipfile.ZipFile(source) as archive:
        return json.loads(archive.read("config.json"))


def _read_hdf5_config(source: Path) -> Any:
    """Return the configuration in an HDF5 file.

    Raises:
        ModelError: the file is damaged, or holds weights alone.
    """
    try:
        with h5py.File(source) as file:
            text = file.attrs.get("model_config")
            holds_weights = any(name in file for name in ("layers", "_layer_checkpoint_dependencies", "model_weights"))
            holds_weights = holds_weights or "layer_names" in file.attrs
        config = None if text is None else json.loads(text)
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError; json ValueError and RecursionError
        raise ModelError(f"`{_shown(source)}` is cut short or damaged: {first_line(error)}", COPY_HINT) from error
    if config is None:
        what = "holds weights and no model" if holds_weights else "holds no Keras model"
        raise ModelError(f"`{_shown(source)}` {what}", "save the whole model with `model.save(FILE)`")
    return config


def _configs(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every serialized object in a Keras file's configuration."""
    pending = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict) and isinstance(item.get("class_name"), str):
            yield item
        pending.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())


def _custom_name(config: dict[str, Any]) -> str | None:
    """Return the name under which a serialized object would have to be registered; None if it is Keras' own."""
    if "module" not in config:  # of an HDF5 file, which does not say whose its classes are
        return _unknown_layer(config)
    module, registered_name = str(config["module"]), config.get("registered_name")
    if config["class_name"] == "function":  # Keras' own are saved as `relu`, registered ones as `package>name`
        return str(config["config"]) if ">" in str(config["config"]) else None
    if module == "builtins" or module.split(".")[0] == "keras":
        return None
    return str(registered_name or config["class_name"])


def _unknown_layer(config: dict[str, Any]) -> str | None:
    """Return the name of a layer of an HDF5 file that Keras does not have; None if it has it, or it is no layer."""
    name = str(config["class_name"])
    is_layer = isinstance(config.get("config"), dict) and "trainable" in config["config"]
    known = hasattr(keras.layers, name) or hasattr(keras.models, name) or name == "Functional"
    return None if known or not is_layer else name


def _is_registered(name: str) -> bool:
    return keras.saving.get_registered_object(name) is not None


def _keras_words(error: Exception) -> str:
    """Return the part of a Keras error that says what happened; it stands behind what was being done meanwhile."""
    _, _, cause = str(error).rpartition("Exception encountered: ")
    lines = [line for line in cause.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    return printable(lines[0].strip(), limit=200).rstrip(".") if lines else first_line(error)
