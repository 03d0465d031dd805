"""What `import hyps` gives, and what it does not bring along."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import hyps
from hyps.formats.plan import Plan


def test_all_names_exist() -> None:
    assert hyps.__all__ == sorted(hyps.__all__)
    assert all(hasattr(hyps, name) for name in hyps.__all__)
    assert dir(hyps) == hyps.__all__


def test_exports_are_the_real_things() -> None:
    assert hyps.Plan is Plan
    assert hyps.__version__ == version("hyps")


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="`nonsense`"):
        hyps.nonsense  # noqa: B018  # the access is what is tested


@pytest.mark.parametrize("module", ["hyps", "hyps.cli", "hyps.terminal", "hyps.formats.quantities"])
def test_importing_brings_nothing_heavy(module: str) -> None:
    heavy = "{'numpy', 'onnxruntime', 'zmq', 'msgspec', 'onnx'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


def test_a_client_brings_neither_onnxruntime_nor_asyncio() -> None:
    code = "import sys, hyps.client, hyps.remote; print({'onnxruntime', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "set()\n"


def test_only_a_session_for_coroutines_brings_asyncio() -> None:
    code = "import sys, hyps; a = 'asyncio' in sys.modules; hyps.AsyncSession; print(a, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "False True\n"


def test_a_worker_does_without_what_costs_memory_only() -> None:
    heavy = {"asyncio", "email", "hashlib", "importlib.metadata", "lzma", "secrets", "ssl", "tempfile", "zipfile"}
    code = f"import sys, hyps.worker; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
