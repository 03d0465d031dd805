"""Parts of constants: what they hold, and whether they stay on disk."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hyps_passes.division.constants import slice_tensor


@pytest.mark.parametrize(("shape", "axis"), [((12, 5), 0), ((12, 5), 1), ((1, 12, 5), 1), ((2, 6, 5), 1)])
@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
def test_a_part_of_a_tensor_on_disk(shape: tuple[int, ...], axis: int, dtype: str, tmp_path: Path) -> None:
    """It stays on disk where it is contiguous there."""
    whole = np.arange(60).reshape(shape).astype(dtype)
    (tmp_path / "weights.bin").write_bytes(b"x" * 64 + whole.tobytes())
    kind = ir.DataType.from_numpy(whole.dtype)
    tensor = ir.ExternalTensor(
        "weights.bin", 64, whole.nbytes, kind, shape=ir.Shape(shape), name="w", base_dir=str(tmp_path)
    )
    part = slice_tensor(tensor, axis, 1, 4)
    expected = np.take(whole, range(1, 4), axis)
    assert isinstance(part, ir.ExternalTensor) == all(size == 1 for size in shape[:axis])
    np.testing.assert_array_equal(part.numpy(), expected)
    assert tuple(part.shape.numpy()) == expected.shape
