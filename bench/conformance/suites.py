"""Where the models come from: each suite lists names and loads one model with the requests to try it on."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from strangers import SHARED, make_inputs, path_of

_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
_TOO_LARGE = ("phi2lm_test", "phi4lm_test")
"""Models of tens of gigabytes, which do not fit beside their own optimized copies in 24 GiB."""
_NEWEST_IR = 13
_NEWEST_OPSET = 27
"""What onnxruntime 1.31 knows. The onnx package stamps cases with newer ones, in which operators take more types."""
_ONNXSCRIPT_MODELS = "onnxscript.rewriter.models"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and the answer that came with the model."""

    feeds: dict[str, Any]
    expected: tuple[Any, ...] | None = None
    """In the order of the model's outputs; None where none is stored."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to try; its file may lie in the scratch folder that it was loaded into."""

    path: Path
    requests: tuple[Request, ...] = ()
    """Empty where none is stored: one is made up."""
    rtol: float = 1e-3
    atol: float = 1e-7
    """Tolerances of the stored answers, as the suite has them."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of models."""

    names: Callable[[], Sequence[str]]
    load: Callable[[str, Path], Model]
    about: str
    missing: str = ""
    """What to do where it has no models."""
    levels: tuple[str, ...] = field(default=("none", "portable", "native"))


def folder_suite(folder: Path) -> Suite:
    """Return the models below `folder`; stored requests lie beside them, as the onnx package has its own.

    A file `NAME.npz` beside `NAME.onnx` holds a request.
    """

    def names() -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.onnx"))

    def load(name: str, scratch: Path) -> Model:
        path = folder / name
        if any(path.parent.glob("test_data_set_*")):
            return Model(path, _stored_requests(path))
        arrays = path.with_suffix(".npz")
        if arrays.exists():
            with np.load(arrays, allow_pickle=False) as stored:
                return Model(path, (Request(dict(stored)),))
        return Model(path)

    return Suite(names, load, f"models below {folder.name}")


def _onnx_data(kind: str, about: str) -> Suite:
    folder = _DATA / kind

    def names() -> list[str]:
        return sorted(path.parent.name for path in folder.glob("*/model.onnx"))

    def load(name: str, scratch: Path) -> Model:
        path = folder / name / "model.onnx"
        told = path.with_name("data.json")
        tolerances = json.loads(told.read_text()) if told.exists() else {}
        return Model(path, _stored_requests(path), rtol=tolerances.get("rtol", 1e-3), atol=tolerances.get("atol", 1e-7))

    return Suite(names, load, about)


def _stored_requests(path: Path) -> tuple[Request, ...]:
    proto = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in proto.graph.initializer}
    requests = []
    for data in sorted(path.parent.glob("test_data_set_*")):
        inputs = _values(data, "input", proto.graph.input)
        outputs = _values(data, "output", proto.graph.output)
        given = zip(proto.graph.input, inputs, strict=False)  # trailing weights that are inputs too have no file
        feeds = {value.name: item for value, item in given if item is not None or value.name not in weights}
        requests.append(Request(feeds, tuple(outputs)))
    return tuple(requests)


def _values(folder: Path, stem: str, declared: Any) -> list[Any]:
    count = len(list(folder.glob(f"{stem}_*.pb")))
    return [_value(folder / f"{stem}_{index}.pb", declared[index].type) for index in range(count)]


def _value(path: Path, kind: Any) -> Any:
    data = path.read_bytes()
    which = kind.WhichOneof("value")
    if which == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if which == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return _array(TensorProto.FromString(data))


def _array(tensor: TensorProto) -> Any:
    array = numpy_helper.to_array(tensor)
    return array.astype(object) if array.dtype.kind in "SU" else array


def _node_tests() -> dict[str, Any]:
    from onnx.backend.test.loader import load_node_model_tests

    return {case.name.removeprefix("test_"): case for case in load_node_model_tests()}


_NODE_TESTS: dict[str, Any] = {}


def _node_names() -> list[str]:
    _NODE_TESTS.update(_NODE_TESTS or _node_tests())
    return sorted(_NODE_TESTS)


def _load_node(name: str, scratch: Path) -> Model:
    _node_names()
    case = _NODE_TESTS[name]
    case.model.ir_version = min(case.model.ir_version, _NEWEST_IR)
    for opset in case.model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, _NEWEST_OPSET)
    path = scratch / "model.onnx"
    onnx.save(case.model, path)
    return Model(path, tuple(_node_request(case.model, *data) for data in case.data_sets), case.rtol, case.atol)


def _node_request(model: ModelProto, inputs: Sequence[Any], outputs: Sequence[Any]) -> Request:
    weights = {tensor.name for tensor in model.graph.initializer}
    wanted = [value for value in model.graph.input if value.name not in weights]
    feeds = {value.name: _plain(item) for value, item in zip(wanted, inputs, strict=False)}
    return Request(feeds, tuple(map(_plain, outputs)))


def _plain(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return _array(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "SU":
        return value.astype(object)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _light_names() -> list[str]:
    return sorted(path.stem for path in (_DATA / "light").glob("*.onnx"))


def _load_light(name: str, scratch: Path) -> Model:
    path = _DATA / "light" / f"{name}.onnx"
    proto = onnx.load(path)
    weights = {tensor.name for tensor in proto.graph.initializer}
    (value,) = (value for value in proto.graph.input if value.name not in weights)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    image = (np.arange(count) / count).astype(np.float32).reshape(shape)  # as onnx's own runner makes it
    expected = _array(onnx.load_tensor(path.with_name(f"{name}_output_0.pb")))
    return Model(path, (Request({value.name: image}, (expected,)),))


def _shared_names() -> list[str]:
    return sorted(path.stem for path in SHARED.glob("*.onnx"))


def _load_shared(name: str, scratch: Path) -> Model:
    return Model(path_of(name), tuple(Request(make_inputs(name, seed)) for seed in (0, 1)))


def _zoo_names() -> list[str]:
    from hyps_models.zoo import MODELS

    # of a family whose members differ in depth and width alone the smallest tells as much as all fifteen
    return sorted(name for name in MODELS if not name.startswith("efficientnet") or name == "efficientnet-b0")


def _load_zoo(name: str, scratch: Path) -> Model:
    from hyps_compiler.frontend import open_model

    return Model(open_model(f"zoo:{name}", scratch).path)


def _onnxscript_makers() -> dict[str, Callable[[], Any]]:
    """Return the functions that make onnxscript's packaged test models; those that need torch are left out."""
    if importlib.util.find_spec("onnxscript") is None:
        return {}
    makers = {}
    for path in sorted(Path(importlib.import_module(_ONNXSCRIPT_MODELS).__path__[0]).glob("_*.py")):
        if path.stem != "__init__" and "import torch" not in path.read_text():
            module = importlib.import_module(f"{_ONNXSCRIPT_MODELS}.{path.stem}")
            makers.update({name: make for name, make in vars(module).items() if "test" in name and callable(make)})
    return {name: make for name, make in makers.items() if isinstance(make, FunctionType) and name not in _TOO_LARGE}


def _load_onnxscript(name: str, scratch: Path) -> Model:
    import onnx_ir as ir

    holder = _onnxscript_makers()[name]()
    path = scratch / "model.onnx"
    ir.save(holder.get_onnx_model(), path)
    return Model(path, (Request(holder.get_ort_inputs()),))


def _ort_names() -> list[str]:
    import onnxruntime

    return sorted(path.stem for path in (Path(onnxruntime.__file__).parent / "datasets").glob("*.onnx"))


def _load_ort(name: str, scratch: Path) -> Model:
    import onnxruntime

    return Model(Path(onnxruntime.__file__).parent / "datasets" / f"{name}.onnx")


SUITES: dict[str, Suite] = {
    "node": Suite(_node_names, _load_node, "every operator's test cases of the onnx package"),
    "simple": _onnx_data("simple", "small models of the onnx package"),
    "pytorch-converted": _onnx_data("pytorch-converted", "modules of PyTorch, of the onnx package"),
    "pytorch-operator": _onnx_data("pytorch-operator", "operators of PyTorch, of the onnx package"),
    "light": Suite(_light_names, _load_light, "nine image nets of the onnx package, weights computed in the graph"),
    "onnxruntime": Suite(_ort_names, _load_ort, "models in the onnxruntime package"),
    "onnxscript": Suite(
        lambda: sorted(_onnxscript_makers()),
        _load_onnxscript,
        "test models in the onnxscript package",
        "pip install onnxscript",
    ),
    "shared": Suite(_shared_names, _load_shared, "real models of strangers", "set HYPS_SHARED to their folder"),
    "zoo": Suite(_zoo_names, _load_zoo, "HyPS's reference models"),
}


def load_suite(word: str) -> Suite:
    """Return the suite of that name, or of the folder at that path.

    Raises:
        SystemExit: it is neither.
    """
    if word in SUITES:
        return SUITES[word]
    if Path(word).is_dir():
        return folder_suite(Path(word))
    raise SystemExit(f"error: `{word}` is no suite and no folder; suites: {', '.join(SUITES)}")


def iterate(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the suite's word and the name of every model of the suites."""
    for word in words:
        for name in load_suite(word).names():
            yield word, name
