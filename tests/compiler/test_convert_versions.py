"""Packages that run code from model files are refused, in the versions that do."""

import pytest

from hyps.errors import DependencyError
from hyps_compiler.convert.versions import refuse_unsafe


def test_an_old_reader_is_refused() -> None:
    with pytest.raises(
        DependencyError, match=r"skops 0\.11\.0 is installed, and any before 0\.12 may run code"
    ) as caught:
        refuse_unsafe("skops", "0.11.0", "0.12")
    assert caught.value.hint == 'pip install --upgrade "skops>=0.12"'


@pytest.mark.parametrize("version", ["0.12", "0.12.0", "0.13.dev0", "1"])
def test_a_newer_reader_is_not(version: str) -> None:
    refuse_unsafe("skops", version, "0.12")
