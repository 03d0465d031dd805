"""Tries whether the rows of a plan's answers depend on each other; a program, for memory and crashes of its own.

`python -m hyps.row_trial PLAN` ends with 0 where they do not, with 4 where they do, and with 1 where that could not be
tried; stdout has the output at fault, or why not.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyps.adapters.plan_files import read_plan
from hyps.adapters.row_trials import DIFFERENT
from hyps.errors import HypsError
from hyps.formats.plan import NamedTensor
from hyps.local import LocalRunner

_ROWS = 3
_OPEN_SIZES = (4, 1, 16)
"""What open dimensions behind the first one are tried with."""

_TOLERANCE = 1e-3
"""Of the largest value: kernels add up in another order where there are more rows; rows that mix differ by far more."""


def dependent_output(folder: str | Path) -> str | None:
    """Return an output of which a row is another one when it is computed beside others; None: there is none.

    Raises:
        HypsError: the plan does not run on made-up values.
    """
    plan = read_plan(folder)
    with LocalRunner(folder, plan=plan, check=False, threads=1) as runner:
        for size in _OPEN_SIZES[:-1]:
            with contextlib.suppress(HypsError):
                return _first_difference(runner, size)
        return _first_difference(runner, _OPEN_SIZES[-1])


def _first_difference(runner: LocalRunner, size: int) -> str | None:
    rng = np.random.default_rng(0)
    rows = [{tensor.name: _made_up(tensor, size, rng) for tensor in runner.inputs} for _ in range(_ROWS)]
    alone = [runner.run(row) for row in rows]
    together = runner.run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    for tensor in runner.outputs:
        if not _is_alike(together[tensor.name], [answer[tensor.name] for answer in alone]):
            return tensor.name
    return None


def _made_up(tensor: NamedTensor, size: int, rng: np.random.Generator) -> np.ndarray:
    shape = (1, *(dim if isinstance(dim, int) else size for dim in (tensor.shape or ())[1:]))
    if tensor.dtype == "string":
        return rng.choice(np.array(["0", "1"], dtype=object), shape)
    dtype = np.dtype(tensor.dtype)
    return rng.standard_normal(shape).astype(dtype) if dtype.kind in "fc" else rng.integers(0, 2, shape).astype(dtype)


def _is_alike(together: Any, alone: Sequence[Any]) -> bool:
    """Return whether rows are the same as when each was computed by itself."""
    expected = np.concatenate(alone)
    if together.shape != expected.shape or any(len(answer) != 1 for answer in alone):
        return False
    if expected.dtype.kind not in "fc":
        return np.array_equal(together, expected)
    largest = float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0))
    return np.allclose(together, expected, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)


def main(folder: str) -> int:
    """Try, print what was found, and return the exit status."""
    try:
        differs = dependent_output(folder)
    except HypsError as error:
        print(error.message)  # noqa: T201  what this program is for
        return 1
    if differs is not None:
        print(differs)  # noqa: T201
        return DIFFERENT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
