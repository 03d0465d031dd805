import sys

import pytest

from hyps.dependencies import floor_of
from hyps.errors import DependencyError
from hyps_passes.searches.solver import require_solver


def test_what_is_installed_here_will_do() -> None:
    require_solver()


def test_searching_without_ortools_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    with pytest.raises(DependencyError, match="needs ortools, which is not installed") as caught:
        require_solver()
    assert caught.value.hint == 'pip install "hyps[search]"'


def test_an_old_ortools_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortools.__version__", "9.1.2")
    with pytest.raises(DependencyError, match=f"needs ortools {floor_of('ortools')} or newer, and 9.1.2 is installed"):
        require_solver()
