"""Convolution and pooling in numpy, channels first, then the batch: `[channels, batch, height, width]`.

That order makes a convolution one matrix product without moving its result. A batch of none is fine and costs nothing.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def windows(x: Array, kernel: int, stride: int) -> Array:
    """Return a view of shape `[channels, batch, rows, columns, kernel, kernel]` on every window of `x`."""
    view = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    return view[:, :, ::stride, ::stride]


def padded(x: Array, before: int, after: int, value: float = 0.0) -> Array:
    """Return `x` with `before` rows and columns of `value` in front and `after` behind."""
    return np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)), constant_values=value)


def convolved(x: Array, weight: Array, stride: int, group: int) -> Array:
    """Return the convolution of a padded `x` with `weight`, `[filters, channels / group, kernel, kernel]`."""
    filters, _, kernel, _ = weight.shape
    view = windows(x, kernel, stride)
    channels, batch, rows, columns = view.shape[:4]
    patch = channels // group * kernel * kernel
    patches = view.transpose(0, 4, 5, 1, 2, 3).reshape(group, patch, batch * rows * columns)
    product = weight.reshape(group, filters // group, patch) @ patches
    return np.asarray(product.reshape(filters, batch, rows, columns))


def rounded(measured: Array) -> NDArray[np.float32]:
    """Return `measured` without its last digits, which depend on the machine's matrix product, so that no byte does."""
    return measured.astype(np.float16).astype(np.float32)
