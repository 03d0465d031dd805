"""Faults in reading weights: whose memory it is, what is read, what is read ahead, and what is given back."""

from mutants.fault import Fault, test_files

_POOL = "runtime/hyps/adapters/weight_pool.py"
_STREAMS = "runtime/hyps/adapters/streams.py"
_EXECUTOR = "runtime/hyps/adapters/executor.py"
_STATE = "runtime/hyps/core/worker_state.py"
_RESIDENCY = "runtime/hyps/core/residency.py"
_TEST_POOL = test_files("runtime/adapters/test_weight_pool")
_TEST_STREAMS = test_files("runtime/adapters/test_streams")
_TEST_STATE = test_files("runtime/core/test_worker_state")

FAULTS = (
    Fault(
        "memory-in-use-is-taken",
        _POOL,
        "        idle = sorted((b for b in self._buffers if not b.users), ",
        "        idle = sorted((b for b in self._buffers if b.users < 2), ",
        "a partition's weights are read over while it runs",
        _TEST_POOL,
    ),
    Fault(
        "what-failed-to-be-read-is-kept",
        _STREAMS,
        "            if not buffer.is_filled:\n",
        "            if not buffer.is_filled and (setattr(buffer, 'is_filled', True) or True):\n",
        "what could not be read passes for the weights the next time",
        _TEST_STREAMS,
    ),
    Fault(
        "idle-memory-is-never-given-back",
        _POOL,
        "                if over > 0 and buffer.idle_nbytes:\n",
        "                if over > 2**62 and buffer.idle_nbytes:\n",
        "memory that nobody uses counts against the budget",
        _TEST_POOL,
    ),
    Fault(
        "short-reads-are-whole",
        "runtime/hyps/adapters/reading.py",
        "        done += count\n",
        "        done += _PIECE_NBYTES\n",
        "a read that brings less than was asked for leaves old bytes",
        _TEST_STREAMS,
    ),
    Fault(
        "length-is-not-compared",
        _STREAMS,
        "        if found != block.file.nbytes:\n",
        "        if found < 0:\n",
        "a file that grew is read as if it were the plan's",
        _TEST_STREAMS,
    ),
    Fault(
        "runs-hold-nothing",
        _EXECUTOR,
        "            self._streams.hold(session)\n",
        "            pass\n",
        "a partition that is released loses its weights to others under its run",
        test_files("runtime/adapters/test_executor"),
    ),
    Fault(
        "kept-partitions-take-no-room",
        _STATE,
        "        weights = self._weight_nbytes({*self._loaded, *self._residency.kept, self._tasks[following].id})\n",
        "        weights = self._weight_nbytes({*self._loaded, self._tasks[following].id})\n",
        "more is read ahead than fits",
        _TEST_STATE,
    ),
    Fault(
        "read-ahead-for-nobody-stays",
        _STATE,
        "            leaving.add(self._ahead)  # the requests that needed it have failed\n",
        "",
        "what was read for a request that failed is never let go",
        _TEST_STATE,
    ),
    Fault(
        "shared-weights-count-each-time",
        _RESIDENCY,
        "    return own + sum(shared.values())\n",
        "    return own + sum(nbytes for task in tasks for _, nbytes in task.shared)\n",
        "tiles count their weights once each",
        test_files("runtime/core/test_residency"),
    ),
)
