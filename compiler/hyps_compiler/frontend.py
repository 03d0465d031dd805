"""Opens whatever a user calls a model: an ONNX file, a model of the zoo, or something that can be converted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hyps.errors import ModelError, printable
from hyps_compiler.convert import SAMPLES, Conversion, can_convert, convert
from hyps_compiler.converting import UNTRUSTED, Converting
from hyps_compiler.limits import MOST_TENSOR_NBYTES
from hyps_compiler.snapshot import copy
from hyps_compiler.source import Source, files_digest, open_source

ZOO = "zoo:"


def open_model(
    model: str | Path,
    work: Path,
    *,
    max_tensor_nbytes: int = MOST_TENSOR_NBYTES,
    verify: bool = True,
    converting: Converting = UNTRUSTED,
) -> Source:
    """Return the checked ONNX file of a model; what must be made first is made in `work`.

    A tensor that the model computes may take `max_tensor_nbytes`. What is converted, as `converting` says, is compared
    with its source if `verify`.

    Raises:
        ModelError: there is no such model or file, or it cannot be read.
        DependencyError: it is to be converted, and what reads it is not installed.
        DifferenceError: what it was converted to does not compute what it computes.
    """
    for accepts, load in LOADERS:
        if accepts(str(model)):
            path, conversion = load(str(model), work, verify, converting)
            source = replace(open_source(path, max_tensor_nbytes=max_tensor_nbytes), conversion=conversion)
            # two conversions of one model differ in the names they make up, so that the original tells what it is
            return replace(source, sha256=files_digest(_files(Path(model)))) if Path(model).exists() else source
    return _gathered(open_source(Path(model), max_tensor_nbytes=max_tensor_nbytes), work)


def _gathered(source: Source, work: Path) -> Source:
    """Return the model with its external data in one folder, copied where they are links: few readers follow these."""
    if not any(taken.path.is_symlink() for taken in source.stamps[1:]):
        return source
    for taken in source.stamps:
        copy(taken, work / "gathered" / taken.path.relative_to(source.path.parent))
    return replace(source, path=work / "gathered" / source.path.name)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _from_zoo(model: str, work: Path, _verify: bool, _converting: Converting) -> tuple[Path, None]:
    import hyps_models  # the zoo needs onnx and nothing of ours; only who asks for it loads it

    name = model.removeprefix(ZOO)
    if name not in hyps_models.names():
        raise ModelError(
            f"there is no `{printable(name)}` in the zoo",
            f"it has {', '.join(hyps_models.names())}",
            code="E_NOT_FOUND",
        )
    path = work / f"{name}.onnx"
    hyps_models.save(name, path)
    return path, None


def _converted(model: str, work: Path, verify: bool, converting: Converting) -> tuple[Path, Conversion]:
    path = work / f"{Path(model).stem}.onnx"
    samples = SAMPLES if verify else 0
    return path, convert(Path(model), path, samples=samples, modules=converting.modules, trust=converting.trust)


def _is_convertible(path: Path) -> bool:
    try:
        return can_convert(path)
    except OSError:  # a name that the system cannot have; `open_source` says so
        return False


Load = Callable[[str, Path, bool, Converting], tuple[Path, Conversion | None]]

LOADERS: tuple[tuple[Callable[[str], bool], Load], ...] = (
    (lambda model: model.startswith(ZOO), _from_zoo),
    (lambda model: _is_convertible(Path(model)), _converted),
)
"""Whether a loader takes the model, and the function that makes an ONNX file of it in a folder, compared with its
source if so wanted; ONNX files need none."""
