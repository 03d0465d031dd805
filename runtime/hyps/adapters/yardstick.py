"""How fast this machine multiplies: one figure by which devices can be compared before any model was measured."""

import time

import numpy as np

from hyps.adapters.sessions import Mode, Sessions

_MATMUL_MODEL = (
    b"\x08\x08"  # IR version 8
    b"\x3a\x37"  # the graph:
    b"\x0a\x11\x0a\x01a\x0a\x01b\x12\x01y\x22\x06MatMul\x12\x01g"  # one node, a x b -> y, and a name
    b"\x5a\x09\x0a\x01a\x12\x04\x0a\x02\x08\x01"  # input a: float, any shape
    b"\x5a\x09\x0a\x01b\x12\x04\x0a\x02\x08\x01"  # input b
    b"\x62\x09\x0a\x01y\x12\x04\x0a\x02\x08\x01"  # output y
    b"\x42\x04\x0a\x00\x10\x11"  # opset 17
)
_SIDE = 384
_RUNS = 9


def macs_per_s(opener: Sessions) -> float:
    """Return the multiply-accumulates per second of a matrix product with the threads that sessions of `opener` have.

    Takes some tens of milliseconds. The fastest of several runs: what others do meanwhile is not this machine's speed.
    """
    session = opener.open_bytes(_MATMUL_MODEL, Mode.FAST, "the yardstick")
    square = np.ones((_SIDE, _SIDE), np.float32)
    best_s = float("inf")
    for _ in range(_RUNS):
        start_s = time.perf_counter()
        session.run(None, {"a": square, "b": square})
        best_s = min(best_s, time.perf_counter() - start_s)
    return _SIDE**3 / best_s
