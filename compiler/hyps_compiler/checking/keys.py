"""What a result depends on, as one digest: the model's bytes, how it is compiled, and by which software."""

import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterable
from pathlib import Path

import msgspec

from hyps.adapters.machine import cpu_family
from hyps.errors import ClusterError
from hyps.formats.cluster import decode_cluster
from hyps_compiler.checking.facts import VERSION
from hyps_compiler.checking.rules import CompileOptions
from hyps_compiler.checking.targets import Target, files_in, model_files
from hyps_compiler.convert.kinds import kind_of

_PACKAGES = ("ml_dtypes", "msgspec", "networkx", "numpy", "onnx", "onnx-ir", "onnxruntime", "ortools")
_OURS = ("hyps", "hyps_compiler", "hyps_models", "hyps_passes")
_DISTRIBUTION_OF = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "sklearn": ("scikit-learn",)}
"""Names of the distributions that bring a package, where they are not its own."""
_CHUNK_NBYTES = 2**20


def result_key(target: Target, options: CompileOptions, software: str, *, trust: bool, conversion: str = "") -> str:
    """Return the name under which the result of a model is kept.

    Args:
        target: the model, whose files are read whole.
        options: how it is compiled; of the files in it only their content counts.
        software: `software_digest`'s.
        trust: whether code in the model may be run.
        conversion: what else the conversion depends on.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    content = msgspec.to_builtins(options)
    for name in ("cluster", "profile", "inputs", "calibration"):
        content[name] = _content(Path(content[name])) if content[name] else None
    facts = {
        "version": VERSION,
        "model": target.model if target.path is None else target.path.name,  # plans hold the file's name
        "options": content,
        "software": software,
        "converter": _converter(target),
        "trust": trust,
        "conversion": conversion,
        "machine": cpu_family() if options.optimize == "native" else platform.machine(),
    }
    _add(digest, "facts", msgspec.json.encode(facts, order="sorted"))
    for path in _profiles(options.cluster) if options.cluster else ():
        _add(digest, path.name, bytes.fromhex(_file_digest(path)))
    for name, path in model_files(target.path) if target.path is not None else ():
        _add(digest, name, bytes.fromhex(_file_digest(path)))
    return digest.hexdigest()


def software_digest() -> str:
    """Return a digest of HyPS itself, file by file where it is a working copy, and of the versions of what it uses.

    Nothing is imported for it.
    """
    digest = hashlib.sha256()
    _add(digest, "python", platform.python_version().encode())
    for name in _PACKAGES:
        _add(digest, name, _version(name).encode())
    for name, content in _own_files():
        _add(digest, name, content)
    return digest.hexdigest()


def _own_files() -> Iterable[tuple[str, bytes]]:
    """Yield the names and digests of our files: from the record of an installed package, else from the files."""
    record = importlib.metadata.distribution("hyps").read_text("RECORD") or ""
    rows = [line.rsplit(",", 2) for line in record.splitlines()]
    installed = sorted((row[0], row[1].encode()) for row in rows if len(row) == 3 and row[0].startswith(_ROOTS))
    if installed:
        return installed
    return [(name, content) for package in _OURS for name, content in _sources(package)]


_ROOTS = tuple(f"{name}/" for name in _OURS)


def _sources(package: str) -> Iterable[tuple[str, bytes]]:
    found = importlib.util.find_spec(package)
    for root in sorted(found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(root).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _content(path: Path) -> list[tuple[str, str]]:
    """Return the digest of a file, or of each file in a folder with its name."""
    return [(name, _file_digest(file)) for name, file in files_in(path)]


def _profiles(cluster: str) -> list[Path]:
    """Return the profiles that a cluster file names; none where it is wrong, which whoever compiles says."""
    folder = Path(cluster).parent
    try:
        devices = decode_cluster(Path(cluster).read_text("utf-8", "replace")).devices
    except ClusterError:
        return []
    named = (folder / device.profile for device in devices if device.profile is not None)
    return [path for path in named if path.is_file()]


def _converter(target: Target) -> dict[str, str]:
    kind = kind_of(target.path) if target.path is not None else None
    names = [d for package in (kind.packages if kind else ()) for d in _DISTRIBUTION_OF.get(package, (package,))]
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _file_digest(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, content: bytes) -> None:
    """Add a named value, each part with its length before it, so that no two lists of values look alike."""
    for part in (name.encode("utf-8", "surrogateescape"), content):
        digest.update(len(part).to_bytes(8, "little") + part)
