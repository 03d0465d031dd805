"""Parts of constants: cut when the plan is made, so that a piece's file holds its own part alone."""

import numpy as np
import onnx_ir as ir


def slice_tensor(tensor: ir.TensorProtocol, axis: int, start: int, stop: int) -> ir.TensorProtocol:
    """Return a part of a tensor along one axis; a part of a memory-mapped file stays one where it is contiguous."""
    dims = list(tensor.shape.numpy())
    axis %= len(dims)
    whole = dims[axis]
    dims[axis] = stop - start
    shape = ir.Shape(dims)
    whole_bytes = tensor.dtype.bitwidth % 8 == 0
    if isinstance(tensor, ir.ExternalTensor) and whole_bytes and all(size == 1 for size in dims[:axis]):
        row = tensor.nbytes // whole
        return ir.ExternalTensor(
            tensor.location,
            (tensor.offset or 0) + start * row,
            (stop - start) * row,
            tensor.dtype,
            shape=shape,
            name=str(tensor.name),
            base_dir=tensor.base_dir,
        )

    def part() -> ir.TensorProtocol:
        selected = tensor.numpy()[(slice(None),) * axis + (slice(start, stop),)]
        return ir.Tensor(np.ascontiguousarray(selected), dtype=tensor.dtype)

    return ir.LazyTensor(part, dtype=tensor.dtype, shape=shape, name=tensor.name)
