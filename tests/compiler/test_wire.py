from pathlib import Path

import pytest

from hostile.bombs import deep
from hyps_compiler.wire import nests_deeper


@pytest.mark.parametrize("levels", [3, 32, 60, 400])
def test_depth_is_told_from_bytes_alone(tmp_path: Path, levels: int) -> None:
    deep(levels)(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    assert nests_deeper(data, levels - 2)
    assert not nests_deeper(data, levels + 1)


def test_bytes_that_are_no_model_are_not_deep() -> None:
    for data in (b"", b"\xff" * 50, bytes(range(256)), b"\x3a\xff\xff\xff\xff\x0f" + b"\x0a" * 100):
        assert not nests_deeper(data, 1)
