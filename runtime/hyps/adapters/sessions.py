"""onnxruntime sessions: opened by path so that weights stay mapped, with the options each way of running wants."""

import functools
import re
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from hyps.adapters.guard import guarded
from hyps.adapters.machine import core_count, rss_nbytes
from hyps.adapters.resident import give_back
from hyps.errors import ExecutionError, HypsError, PlanError, printable
from hyps.formats.plan import Optimization

Session: TypeAlias = Any
"""An `onnxruntime.InferenceSession`, which has no types."""

ORT_ERRORS: tuple[type[Exception], ...] = (
    MemoryError,
    RuntimeError,
    ValueError,
    TypeError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
"""What onnxruntime raises; its own classes share no parent but Exception."""

_IDENTITY_MODEL = (
    b"\x08\x08"  # IR version 8
    b"\x3a\x2f"  # the graph:
    b"\x0a\x10\x0a\x01x\x12\x01y\x22\x08Identity\x12\x01g"  # one node, x -> y, and a name
    b"\x5a\x0b\x0a\x01x\x12\x06\x0a\x04\x08\x01\x12\x00"  # input x: float, no dimensions
    b"\x62\x0b\x0a\x01y\x12\x06\x0a\x04\x08\x01\x12\x00"  # output y: the same
    b"\x42\x04\x0a\x00\x10\x11"  # opset 17
)
"""The smallest model, as a file would hold it: it starts what onnxruntime starts once per process."""


class Mode(Enum):
    """How a partition is run."""

    FAST = "fast"
    """Kept loaded, weights laid out anew for speed: twice their bytes while it loads, once after. What it computes in
    is kept for the next run, of any such session."""
    PACKED = "packed"
    """As `FAST`, under a budget: without memory that onnxruntime would keep for later runs."""
    STREAMED = "streamed"
    """Weights are inputs, read into memory that is used again: for partitions that have a form."""
    MAPPED = "mapped"
    """Weights stay in the mapped file: loads in milliseconds, no private memory, released at once."""
    EXACT = "exact"
    """As plain onnxruntime without graph optimizations, bit for bit: what verification compares."""


class Sessions:
    """Opens sessions with the threads that suit many of them in one process."""

    def __init__(self, threads: int | None = None, *, share_pool: bool = False, is_alone: bool = False) -> None:
        """Choose how sessions are opened.

        Args:
            threads: threads for one partition; None: one per core.
            share_pool: let all sessions share one pool of threads, which is fastest when there are many. The process
                must be ours: onnxruntime makes one such pool, never changes it, and then refuses any other session.
            is_alone: there will be one session only, whose threads are left as onnxruntime has them.
        """
        self.threads = threads or core_count()
        self._pooled = share_pool and self.threads > 1
        self._is_alone = is_alone
        self._smallest: Session | None = None
        if self._pooled:
            _make_pool(self.threads)
        onnxruntime.set_default_logger_severity(4)

    def open(self, path: Path, mode: Mode, optimization: Optimization) -> Session:
        """Return a session of the partition in the file `path`.

        Raises:
            PlanError: onnxruntime refuses the file.
        """
        self._begin(mode)
        return self._create(str(path), self._options(mode, optimization), printable(path.name))

    def open_bytes(self, model: bytes, mode: Mode, shown: str) -> Session:
        """Return a session of a model of our own.

        Raises:
            PlanError: onnxruntime refuses it.
        """
        self._begin(mode)
        return self._create(model, self._options(mode, "none"), shown)

    def measure_base(self) -> int:
        """Return the resident bytes of this process with onnxruntime started and what only that needed given back.

        0 where the system does not tell. Running partitions brings back up to `CODE_NBYTES`.
        """
        give_back()  # of what importing left, before more comes: a small budget may not hold both
        self._create(_IDENTITY_MODEL, self._options(Mode.MAPPED, "none"), "the empty model")
        give_back()
        return rss_nbytes() or 0

    def shrink(self) -> None:
        """Give back what `FAST` sessions keep for their next runs; what is computed now is not touched."""
        if self._smallest is not None:
            self._smallest.run(None, {"x": np.zeros((), np.float32)}, _shrinking())

    def _begin(self, mode: Mode) -> None:
        """Have the smallest model run before anything else in the arena, whose first piece is never given back."""
        if mode is not Mode.FAST or self._smallest is not None:
            return
        options = self._options(mode, "none")
        if not self._pooled:
            options.intra_op_num_threads = 1
        smallest = self._create(_IDENTITY_MODEL, options, "the empty model")
        smallest.run(None, {"x": np.zeros((), np.float32)})
        self._smallest = smallest

    def _create(self, source: str | bytes, options: Any, shown: str) -> Session:
        weights = Path(source).parent if isinstance(source, str) else None
        try:
            with guarded(weights):
                return onnxruntime.InferenceSession(
                    source, options, providers=["CPUExecutionProvider"], enable_fallback=0
                )
        except ORT_ERRORS as error:
            if is_out_of_memory(error):
                raise PlanError(f"partition file `{shown}` does not fit in memory", _LESS_MEMORY, "E_MEMORY") from error
            raise PlanError(f"onnxruntime refuses the partition file `{shown}`: {one_line(error)}") from error

    def _options(self, mode: Mode, optimization: Optimization) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._set_threads(options)
        level = onnxruntime.GraphOptimizationLevel
        already_laid_out = optimization == "native"
        optimize = mode in (Mode.FAST, Mode.PACKED) and not already_laid_out
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        # By default onnxruntime would quantize what is multiplied with weights that are quantized by blocks.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        if mode in (Mode.MAPPED, Mode.STREAMED):
            options.add_session_config_entry("session.disable_prepacking", "1")
        if mode is Mode.FAST:
            _make_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            options.enable_mem_pattern = False  # one block for all of a run would lie beside those of other sessions
        elif mode is not Mode.EXACT:
            options.enable_cpu_mem_arena = False  # what it keeps would be kept by every session
            options.enable_mem_pattern = False
            options.enable_mem_reuse = False  # a block that waits to be used again is held between two tensors' lives
            # Of its own accord onnxruntime would put off what makes an output, and hold what that is made of.
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        return options

    def _set_threads(self, options: Any) -> None:
        options.inter_op_num_threads = 1
        if self._pooled:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self.threads
            if not self._is_alone:
                # Idle sessions' threads would spin and hold the cores: 7 to 40 times slower with many sessions.
                options.add_session_config_entry("session.force_spinning_stop", "1")


_ORT_PLACES = re.compile(r"Load model from .*? failed:\s*|/\S*onnxruntime\S*\.(?:cc|h):\d+ (?:\S+ )*?(?=[A-Z])")
"""What onnxruntime puts before its reason: the file, which the caller knows, and places in its own source."""

_LESS_MEMORY = "give `--memory`, or compile with a smaller `--memory`"


def execution_error(partition: str, error: Exception) -> HypsError:
    """Return the refusal that stands for what onnxruntime raised while `partition` ran."""
    if is_out_of_memory(error):
        message = f"partition `{printable(partition)}` ran out of memory"
        return ExecutionError(message, "use smaller inputs or smaller partitions", code="E_MEMORY")
    return ExecutionError(f"partition `{printable(partition)}` failed: {one_line(error)}")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether onnxruntime means that it could not get the memory it wanted."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation", "Cannot allocate memory")


def one_line(error: Exception) -> str:
    r"""Return what onnxruntime says as one line, without its own prefix and the source lines behind it.

    >>> one_line(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no such op\nat line 7"))
    'no such op'
    """
    text = str(error).strip() or type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return printable(_ORT_PLACES.sub("", text.splitlines()[0]).strip(), 300)


@functools.cache
def _make_arena() -> None:
    """Make the one arena of this process, for what sessions compute in and keep for their next run.

    With one each, as onnxruntime has it by itself, 54 sessions of MobileNetV2 held 138 MB, and 51 with this; their
    requests took as long, or less.
    """
    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # It grows by doubling: were each piece as large as what asked for it, requests of ever larger shapes would add up.
    by_doubling = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": -1}
    config = onnxruntime.OrtArenaCfg({**by_doubling, "max_dead_bytes_per_chunk": -1})
    onnxruntime.create_and_register_allocator(info, config)


@functools.cache
def _shrinking() -> Any:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@functools.cache
def _make_pool(threads: int) -> None:
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
