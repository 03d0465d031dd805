"""What this machine can do for HyPS, and what is in the way: for people who ask why something does not work."""

import contextlib
import platform
import resource
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hyps.adapters.cgroups import can_make_groups, group_cores, group_memory, group_version
from hyps.adapters.machine import available_nbytes, core_count, cpu_facts, meminfo
from hyps.dependencies import FLOORS, address_space_nbytes, is_below
from hyps.errors import printable
from hyps.formats.quantities import format_nbytes
from hyps.terminal import table

_FEATURES = (
    *("avx", "avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
"""What onnxruntime has faster code for, in the system's words: x86 first, then ARM."""

_LITTLE_MEMORY_NBYTES = 100 * 10**6
_LITTLE_ROOM_NBYTES = 10**9
_FEW_FILES = 256
_LIMITS = ("address_space_bytes", "core_quota", "open_files")
"""What is without a limit where it is None, beside all that is called one."""


@dataclass(frozen=True, slots=True)
class Package:
    """One package that HyPS uses or can use."""

    name: str
    version: str | None
    """None: not installed."""
    floor: str
    extra: str
    """Which extra of hyps brings it; empty: every installation."""

    @property
    def is_old(self) -> bool:
        """Whether it is installed in a version that will not do."""
        return self.version is not None and is_below(self.version, self.floor)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is in the way, and what to do about it."""

    what: str
    way_out: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found."""

    packages: tuple[Package, ...]
    machine: dict[str, Any]
    """By name, as values for machines."""
    problems: tuple[Problem, ...]

    @property
    def exit_status(self) -> int:
        """1 where a package keeps commands from starting: older than it may be, or missing and needed by all.

        What only the compiler needs may be missing: the light installation is whole without.
        """
        return int(any(p.is_old or (p.version is None and not p.extra) for p in self.packages))


def examine(extras: Sequence[str] = tuple(FLOORS)) -> Diagnosis:
    """Look at the packages of `extras`, and at the machine."""
    packages = tuple(_package(name, extra) for extra in extras for name in FLOORS[extra])
    machine = {**_python(), **_processor(), **_memory(), **_transport(), **_limits()}
    return Diagnosis(packages, machine, (*_package_problems(packages), *_machine_problems(machine)))


def show(diagnosis: Diagnosis) -> str:
    """Return what was found as text for people."""
    rows = [(p.name, p.version or "missing", p.floor, _remark(p)) for p in diagnosis.packages]
    lines = [table(rows, ("package", "version", "at least", ""), "llll"), ""]
    facts = [(name.removesuffix("_bytes").replace("_", " "), _text(name, v)) for name, v in diagnosis.machine.items()]
    lines += [f"{name:<21}{value}" for name, value in facts]
    lines += ["", *(f"problem: {p.what}\n  do: {p.way_out}" for p in diagnosis.problems)]
    return "\n".join(lines if diagnosis.problems else [*lines, "no problems found"])


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return what was found for machines."""
    packages = [{"name": p.name, "version": p.version, "floor": p.floor, "extra": p.extra} for p in diagnosis.packages]
    problems = [{"what": problem.what, "way_out": problem.way_out} for problem in diagnosis.problems]
    return {"packages": packages, "machine": diagnosis.machine, "problems": problems}


# What is there


def _package(name: str, extra: str) -> Package:
    found = None
    for distribution in (name, name.removesuffix("-cpu"), f"{name}-gpu"):  # builds of one package under other names
        with contextlib.suppress(PackageNotFoundError):
            found = found or version(distribution)
    return Package(name, found, FLOORS[extra][name], extra)


def _python() -> dict[str, Any]:
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except ImportError:  # the table of packages tells
        providers = []
    return {"hyps": version("hyps"), "python": platform.python_version(), "execution_providers": providers}


def _processor() -> dict[str, Any]:
    name, flags = cpu_facts()
    return {
        "processor": printable(name or platform.machine(), 60),
        "architecture": platform.machine(),
        "features": [flag for flag in _FEATURES if flag in flags],
        "cores": core_count(),
        "core_quota": group_cores(),
    }


def _memory() -> dict[str, Any]:
    machine, group = meminfo(), group_memory()
    return {
        "memory_bytes": machine.get("MemTotal"),
        "available_bytes": available_nbytes(),
        "swap_bytes": machine.get("SwapTotal"),
        "cgroup_version": group_version(),
        "cgroup_limit_bytes": None if group is None else group.limit_nbytes,
        "can_make_cgroups": can_make_groups(),
        "temp_folder": tempfile.gettempdir(),
        "temp_free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
    }


def _transport() -> dict[str, Any]:
    try:
        import zmq
    except ImportError:  # the table of packages tells
        return {"libzmq": None, "curve": False, "ipc": False}
    return {"libzmq": zmq.zmq_version(), "curve": bool(zmq.has("curve")), "ipc": bool(zmq.has("ipc"))}


def _limits() -> dict[str, Any]:
    return {
        "open_files": _limit(resource.RLIMIT_NOFILE),
        "address_space_bytes": address_space_nbytes(),
        "data_limit_bytes": _limit(resource.RLIMIT_DATA),
    }


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


# What is in the way


def _package_problems(packages: Sequence[Package]) -> list[Problem]:
    found = []
    for package in packages:
        if package.is_old:
            text = f"{package.name} {package.version} is older than {package.floor}"
            found.append(Problem(text, f'pip install --upgrade "{package.name}>={package.floor}"'))
        elif package.version is None and package.extra in ("", "compiler"):
            found.append(Problem(f"{package.name} is not installed", _install(package.extra)))
    return found


def _machine_problems(machine: dict[str, Any]) -> list[Problem]:
    available, space = machine["available_bytes"], machine["address_space_bytes"]
    files = machine["open_files"]
    checks = [
        (
            available is not None and available < _LITTLE_MEMORY_NBYTES,
            f"only {format_nbytes(available or 0)} of memory is available",
            "end other programs, or raise the limit of the control group",
        ),
        (
            machine["architecture"] in ("x86_64", "AMD64") and "avx2" not in machine["features"],
            "the processor has no AVX2, for which onnxruntime's fast code is written",
            "use a newer machine, or give the virtual one its host's processor",
        ),
        (not machine["curve"], "libzmq has no CURVE, which encrypts", "pip install --force-reinstall pyzmq"),
        (not machine["ipc"], "libzmq has no ipc:// addresses", "use tcp://127.0.0.1 addresses"),
        (
            machine["temp_free_bytes"] < _LITTLE_ROOM_NBYTES,
            f"only {format_nbytes(machine['temp_free_bytes'])} are free for temporary files",
            "name a folder on another disk in the environment variable TMPDIR",
        ),
        (files is not None and files < _FEW_FILES, f"only {files} files may be open", "ulimit -n 1024"),
        (
            space is not None,
            f"the address space is limited to {format_nbytes(space or 0)}; onnxruntime takes more of it than memory",
            "ulimit -v unlimited; --memory and control groups limit what is really used",
        ),
    ]
    return [Problem(what, way_out) for is_bad, what, way_out in checks if is_bad]


# As text


def _remark(package: Package) -> str:
    if package.version is None:
        return _install(package.extra)
    return "too old" if package.is_old else ""


def _install(extra: str) -> str:
    return f'pip install "hyps[{extra}]"' if extra else "pip install hyps"


def _text(name: str, value: Any) -> str:
    if value is None:
        return "no limit" if "limit" in name or name in _LIMITS else "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(value) or "none"
    if name.endswith("_bytes"):
        return format_nbytes(value)
    if isinstance(value, str):
        return printable(value, 60)
    return str(value) if isinstance(value, int) else f"{value:.3g}"
