"""Partitions whose weights are read into memory that is used again, and handed to onnxruntime as inputs.

Nothing is mapped: what is resident is what was asked for, and reading in large pieces is faster than page faults.
"""

import contextlib
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hyps.adapters.plan_files import length_error, opened
from hyps.adapters.reading import fill
from hyps.adapters.sessions import Mode, Session, Sessions
from hyps.adapters.tables import Table
from hyps.adapters.weight_pool import Buffer, WeightPool
from hyps.errors import HypsError, InternalError, PlanError
from hyps.formats.plan import Form, Optimization, Partition
from hyps.formats.weight_blocks import Block, blocks_of

Array = np.ndarray[Any, Any]

_CLOSING_S = 5.0
"""A read that hangs longer, on a network or a broken disk, does not keep the process."""

_SESSION_NBYTES = 48 * 1024
_SESSIONS_NBYTES = 4 * 2**20
"""What sessions kept for their next turn may take. Measured: 28 to 44 KB each, or 100 with threads of their own.

Making one anew takes 0.1 ms, and code of onnxruntime that running does not need: 13 MB of it.
"""

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@dataclass(slots=True, eq=False)
class Streamed:
    """A partition ready to run, in place of a session; made by `Streams`.

    Attributes:
        session: onnxruntime's, which other partitions may have as well.
        names: what the session calls the partition's tensors.
        weights: the other inputs of the session, by its names.
        tables: those of the weights of which only rows are read, for each run anew.
        read_s: seconds that reading took.
        read_nbytes: bytes that were read: none of what lay in memory already.
    """

    session: Session
    names: Mapping[str, str]
    buffers: Sequence[Buffer]
    weights: dict[str, Array] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    read_s: float = 0.0
    read_nbytes: int = 0
    holders: int = 1
    """Who still needs the weights to stay where they are."""
    error: HypsError | None = None
    is_read: threading.Event = field(default_factory=threading.Event)
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held by the run whose rows the tables have."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        """Return the named outputs, as a session does.

        Raises:
            RuntimeError: of onnxruntime's kinds.
            PlanError: rows of a table cannot be read any more.
        """
        given = {self.names[name]: value for name, value in feeds.items()}
        wanted = [self.names[name] for name in outputs]
        with self._rows(feeds) if self.tables else _NOTHING:
            made: list[Any] = self.session.run(wanted, {**given, **self.weights}, options)
        return made

    def io_binding(self) -> "_Binding":
        """Return what binds the partition's tensors to memory, its weights bound already."""
        inner = self.session.io_binding()
        for name, weight in self.weights.items():
            inner.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(weight))
        indices = {name for table in self.tables.values() for name in table.looked_up_by}
        return _Binding(inner, self.names, dict.fromkeys(indices))

    def run_with_iobinding(self, binding: "_Binding", options: Any = None) -> None:
        """Run on what is bound.

        Raises:
            RuntimeError: of onnxruntime's kinds.
            PlanError: rows of a table cannot be read any more.
        """
        feeds = {name: value.numpy() for name, value in binding.indices.items()}
        with self._rows(feeds) if self.tables else _NOTHING:
            self.session.run_with_iobinding(binding.inner, options)

    @contextlib.contextmanager
    def _rows(self, feeds: Mapping[str, Any]) -> Iterator[None]:
        """Have the rows in the tables that a run on `feeds` looks up."""
        with self.turn:
            try:
                for table in self.tables.values():
                    table.read(feeds)
                yield
            finally:
                for table in self.tables.values():
                    table.drop()


@dataclass(frozen=True, slots=True)
class _Binding:
    """An `onnxruntime.IOBinding` that takes the partition's names."""

    inner: Any
    names: Mapping[str, str]
    indices: dict[str, Any]
    """What is bound to the inputs by which rows are looked up."""

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        if name in self.indices:
            self.indices[name] = value
        self.inner.bind_ortvalue_input(self.names[name], value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.inner.bind_ortvalue_output(self.names[name], value)


@dataclass(frozen=True, slots=True)
class _Job:
    streamed: Streamed
    folder: Path
    form: Form
    blocks: Mapping[str, Block]


class Streams:
    """Reads partitions' weights, one partition at a time; what it holds is bounded by who calls `shrink`."""

    def __init__(self, opener: Sessions) -> None:
        """Take what opens the sessions of forms; the thread that reads starts with the first partition."""
        self._opener = opener
        self._pool = WeightPool()
        self._sessions: OrderedDict[str, tuple[Session, int]] = OrderedDict()
        self._guard = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(
        self, folder: Path, partition: Partition, optimization: Optimization, room_nbytes: int | None
    ) -> Streamed:
        """Begin to read the weights of a partition that has a form; `finish` waits for them.

        Args:
            folder: the plan folder, or where else the partition's files lie.
            partition: what to read.
            optimization: the plan's.
            room_nbytes: what memory that nobody uses may take beside it; None: as much as there is.

        Raises:
            PlanError: onnxruntime refuses the form, or there is no memory.
        """
        form = partition.form
        assert form is not None, "only partitions with a form are streamed"
        session = self._session(folder, form, optimization)
        blocks = blocks_of(partition)
        buffers: list[Buffer] = []
        tables: dict[str, Table] = {}
        try:
            tables.update(_open_tables(folder, partition))
            buffers.extend(self._pool.take(block.key, block.nbytes) for block in blocks.values())
        except PlanError:
            self._give(buffers)
            _close(tables)
            raise
        if room_nbytes is not None:
            self._pool.shrink(room_nbytes)
        names = {name: f"x{i}" for i, name in enumerate(form.inputs)}
        names.update((name, f"y{i}") for i, name in enumerate(form.outputs))
        streamed = Streamed(session, names, buffers, tables=tables)
        if all(buffer.is_filled for buffer in buffers):
            self._hand_over(_Job(streamed, folder, form, blocks))
            streamed.is_read.set()
        else:
            self._start_thread()
            self._jobs.put(_Job(streamed, folder, form, blocks))
        return streamed

    def prepare(self, folder: Path, partition: Partition, optimization: Optimization) -> None:
        """Make the session of a partition's form, so that its first turn needs not.

        Raises:
            PlanError: onnxruntime refuses the form.
        """
        assert partition.form is not None, "only partitions with a form are streamed"
        self._session(folder, partition.form, optimization)

    def finish(self, streamed: Streamed) -> None:
        """Wait until the weights are there.

        Raises:
            PlanError: a file is missing, altered in length, or cannot be read; the partition has been shut.
        """
        streamed.is_read.wait()
        if streamed.error is not None:
            self.shut(streamed)
            raise streamed.error

    def hold(self, streamed: Streamed) -> None:
        """Keep a partition's memory for one more: a run that may be under way when `shut` is called."""
        with self._guard:
            streamed.holders += 1

    def shut(self, streamed: Streamed) -> None:
        """Let the partition's memory be used for others once nobody holds it; then it cannot be run any more."""
        with self._guard:
            streamed.holders -= 1
            if streamed.holders:
                return
        streamed.is_read.wait()
        streamed.weights.clear()
        self._give(streamed.buffers)
        streamed.buffers = ()
        _close(streamed.tables)
        streamed.tables = {}

    def shrink(self, most_nbytes: int) -> None:
        """Give memory back to the system until what nobody uses takes `most_nbytes` at most."""
        self._pool.shrink(most_nbytes)

    def close(self) -> None:
        """End the thread and forget all sessions; what is still in use stays with who uses it."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(_CLOSING_S)
            self._thread = None
        with self._guard:
            self._sessions.clear()
        self._pool.shrink(0)

    def _give(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            self._pool.give(buffer)

    def _session(self, folder: Path, form: Form, optimization: Optimization) -> Session:
        """Return the session of a form, made anew where it was not used for long."""
        with self._guard:
            if form.sha256 in self._sessions:
                self._sessions.move_to_end(form.sha256)
                return self._sessions[form.sha256][0]
        path = folder / form.file
        session = self._opener.open(path, Mode.STREAMED, optimization)
        with contextlib.suppress(OSError), self._guard:
            self._sessions[form.sha256] = session, _SESSION_NBYTES + 4 * path.stat().st_size
            while sum(nbytes for _, nbytes in self._sessions.values()) > _SESSIONS_NBYTES and len(self._sessions) > 1:
                self._sessions.popitem(last=False)
        return session

    # The thread that reads.

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_all, name="weights", daemon=True)
            self._thread.start()

    def _read_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            start_s = time.perf_counter()
            try:
                self._read(job)
            except HypsError as error:
                job.streamed.error = error
            except Exception as broken:  # this thread's top: were it to die, who waits would wait for ever
                job.streamed.error = InternalError(f"{type(broken).__name__}: {broken}")
            job.streamed.read_s = time.perf_counter() - start_s
            job.streamed.is_read.set()

    def _read(self, job: _Job) -> None:
        for block, buffer in zip(job.blocks.values(), job.streamed.buffers, strict=True):
            if not buffer.is_filled:
                read_block(job.folder, block, memoryview(buffer.memory))
                buffer.is_filled = True
                job.streamed.read_nbytes += block.nbytes
        self._hand_over(job)

    def _hand_over(self, job: _Job) -> None:
        memories = dict(zip(job.blocks, job.streamed.buffers, strict=True))
        for index, weight in enumerate(job.form.weights):
            if weight.looked_up_by:
                job.streamed.weights[f"w{index}"] = job.streamed.tables[f"w{index}"].array
                continue
            start = job.blocks[weight.path].place_of(weight.offset)
            part = np.frombuffer(memoryview(memories[weight.path].memory), np.uint8, weight.nbytes, start)
            job.streamed.weights[f"w{index}"] = part.view(weight.dtype).reshape(weight.shape)


def _open_tables(folder: Path, partition: Partition) -> Iterator[tuple[str, Table]]:
    """Yield the tables of the partition's form, by its names for them."""
    files = {ref.path: ref for ref in partition.weights}
    for index, weight in enumerate(partition.form.weights if partition.form is not None else ()):
        if weight.looked_up_by:
            yield f"w{index}", Table(folder, files[weight.path], weight)


def _close(tables: Mapping[str, Table]) -> None:
    for table in tables.values():
        table.close()


def read_block(folder: Path, block: Block, memory: memoryview) -> None:
    """Read a block of a file of `folder` into `memory`, which is large enough.

    Raises:
        PlanError: the file is missing, cannot be read, or has another length than the plan says (`E_TAMPERED`).
    """
    with opened(folder, block.file.path) as descriptor:
        found = os.fstat(descriptor).st_size
        if found != block.file.nbytes:
            raise length_error(block.file.path, found, block.file.nbytes)
        for span in block.spans:
            done = fill(descriptor, memory[span.start : span.start + span.nbytes], span.offset)
            if done < span.nbytes:
                raise length_error(block.file.path, span.offset + done, block.file.nbytes)
