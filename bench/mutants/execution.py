"""Faults in running a plan: order, when activations are dropped, shared memory, budgets, files, and the wire."""

from mutants.fault import Fault, test_files

_ENGINE = "runtime/hyps/engine.py"
_STATE = "runtime/hyps/core/worker_state.py"
_RESIDENCY = "runtime/hyps/core/residency.py"
_LANES = "runtime/hyps/adapters/lanes.py"
_FILES = "runtime/hyps/adapters/plan_files.py"
_TEST_ENGINE = test_files("runtime/test_local runtime/adapters/test_lanes compiler/test_driver")
_TEST_STATE = test_files("runtime/core/test_worker_state runtime/test_local")
_TEST_LANES = test_files("runtime/adapters/test_lanes runtime/test_local")
_TEST_RESIDENCY = test_files("runtime/core/test_residency runtime/core/test_worker_state")

FAULTS = (
    Fault(
        "dropped-too-early",
        _ENGINE,
        "            used.update(partition.inputs)\n",
        "            used.update(partition.inputs[:1])\n",
        "an activation that a later partition needs is dropped",
        _TEST_ENGINE,
    ),
    Fault(
        "never-dropped",
        _ENGINE,
        "            for name in step.drops:\n                del store[name]\n",
        "",
        "activations are held until the request ends",
        _TEST_ENGINE,
    ),
    Fault(
        "outputs-mixed-up",
        _ENGINE,
        "            store.update(zip(step.outputs, made, strict=True))\n",
        "            store.update(zip(sorted(step.outputs), made, strict=True))\n",
        "what a partition makes goes under another name",
        _TEST_ENGINE,
    ),
    Fault(
        "requests-share-a-store",
        "runtime/hyps/tensor_store.py",
        "        return self._bring(self._requests[request], ",
        "        return self._bring(self._requests[next(iter(self._requests))], ",
        "requests that run side by side read each other's activations",
        _TEST_ENGINE,
    ),
    Fault(
        "exact-is-optimized",
        "runtime/hyps/adapters/sessions.py",
        "        optimize = mode in (Mode.FAST, Mode.PACKED) and not already_laid_out\n",
        "        optimize = mode is not Mode.MAPPED and not already_laid_out\n",
        "an exact run is optimized, so that its bits differ",
        test_files("runtime/adapters/test_sessions runtime/test_local"),
    ),
    Fault(
        "run-before-its-inputs",
        _STATE,
        "        if request.missing[index] == 0 and ",
        "        if request.missing[index] <= 1 and ",
        "a partition is run before the one that makes its input",
        _TEST_STATE,
    ),
    Fault(
        "dropped-after-the-first-reader",
        _STATE,
        "uses = {name: sum(index in needed for index in users) for",
        "uses = {name: min(1, sum(index in needed for index in users)) for",
        "an activation with two readers is dropped after the first",
        _TEST_STATE,
    ),
    Fault(
        "duplicate-counts-twice",
        _STATE,
        "        if event.tensor in request.arrived:\n            return []",
        "        if event.tensor in request.arrived and event.tensor not in request.held:\n            return []",
        "a tensor that arrives twice makes a partition ready too early",
        _TEST_STATE,
    ),
    Fault(
        "finished-request-kept",
        _STATE,
        "        return [last, *(Drop(request.name, name) for name in request.held)]\n",
        "        return [last]\n",
        "what a finished request holds is never dropped",
        _TEST_STATE,
    ),
    Fault(
        "two-partitions-in-passing",
        _STATE,
        "        steps = self._unload_transient(partition)\n",
        "        steps: list[Instruction] = []\n",
        "a swapped partition stays loaded when the next one comes",
        _TEST_STATE,
    ),
    Fault(
        "budget-without-activations",
        _RESIDENCY,
        "    running = {task.id: live_nbytes[task.id] + task.scratch_nbytes for task in tasks}\n    _refuse",
        "    running = {task.id: task.scratch_nbytes for task in tasks}\n    _refuse",
        "activations do not count against a worker's budget",
        _TEST_RESIDENCY,
    ),
    Fault(
        "outputs-are-not-held",
        _RESIDENCY,
        "    last_use = {name: len(tasks) for name in outputs}\n",
        "    last_use: dict[str, int] = {}\n",
        "a model's output is taken for gone before the answer",
        _TEST_RESIDENCY,
    ),
    Fault(
        "buffers-overlap",
        "runtime/hyps/adapters/arena.py",
        "lifetimes[other].first <= tensor.last and tensor.first <= lifetimes[other].last",
        "lifetimes[other].first < tensor.last and tensor.first < lifetimes[other].last",
        "a partition writes over the input that it reads",
        test_files("runtime/adapters/test_arena runtime/adapters/test_lanes"),
    ),
    Fault(
        "buffer-reused-while-alive",
        _LANES,
        "Lifetime(seen[name].nbytes, first, step)",
        "Lifetime(seen[name].nbytes, first, min(step, first + 1))",
        "the memory of an activation is used again before its last reader",
        _TEST_LANES,
    ),
    Fault(
        "answer-of-the-previous-request",
        _LANES,
        "        arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in self._made.items()}\n",
        "        made = {name: np.empty(spec.shape, spec.dtype) for name, spec in self._made.items()}\n"
        '        arrays = self.__dict__.setdefault("_arrays", made)\n',
        "the next request writes over the answer that the caller holds",
        _TEST_LANES,
    ),
    Fault(
        "stale-input",
        _LANES,
        "        arrays.update((name, feeds[name]) for name in self._fed)\n",
        '        arrays.update(self.__dict__.setdefault("_latest", {name: feeds[name] for name in self._fed}))\n',
        "the first request on a lane is computed again and again",
        _TEST_LANES,
    ),
    Fault(
        "two-requests-on-a-lane",
        _LANES,
        "        if not self._lock.acquire(blocking=False):\n            return None\n",
        "        if not self._lock.acquire(blocking=False):\n            self._lock = threading.Lock()\n"
        "            self._lock.acquire()\n",
        "two threads compute in the same memory",
        _TEST_LANES,
    ),
    Fault(
        "digests-are-not-compared",
        _FILES,
        "    if digest != sha256:\n",
        "    if len(digest) != len(sha256):\n",
        "an altered file of the plan is run",
        test_files("runtime/adapters/test_plan_files"),
    ),
    Fault(
        "weight-files-are-not-checked",
        _FILES,
        "for part in partitions for path, sha256 in file_digests(part)}",
        "for part in partitions for path, sha256 in file_digests(part)[:1]}",
        "altered weights are run",
        test_files("runtime/adapters/test_plan_files"),
    ),
    Fault(
        "half-a-file-is-hashed",
        _FILES,
        "        digest.update(view[:count])\n",
        "        digest.update(view[:count])\n        break\n",
        "what is altered behind the first piece of a file is not seen",
        test_files("runtime/adapters/test_plan_files"),
    ),
    Fault(
        "symbolic-dimensions-may-disagree",
        "runtime/hyps/formats/signature.py",
        "isinstance(dim, str) and dims.setdefault(dim, size) != size:",
        "isinstance(dim, str) and dims.setdefault(dim, size) < size:",
        "a request may give one dimension two sizes",
        test_files("runtime/formats/test_signature runtime/adapters/test_feeds"),
    ),
    Fault(
        "shape-not-checked-on-the-quick-way",
        "runtime/hyps/adapters/feeds.py",
        " or array.shape != shape or dtype is None:",
        " or array.ndim != len(shape or ()) or dtype is None:",
        "an array of other dimensions is taken where it has as many of them",
        test_files("runtime/adapters/test_feeds runtime/test_local"),
    ),
    Fault(
        "memory-order-on-the-wire",
        "runtime/hyps/adapters/frames.py",
        "    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data\n",
        '    return np.asarray(value).ravel(order="K").view(np.uint8).data\n',
        "a transposed array arrives in the order in which it lay in memory",
        test_files("runtime/adapters/test_frames"),
    ),
    Fault(
        "answer-to-another-client",
        "runtime/hyps/worker.py",
        "        return _Job(str(next(self._numbers)), peer, message.request, request, time.monotonic(), timeout_s)\n",
        "        first = next(iter(self._jobs.values()), None)\n"
        "        asker = peer if first is None else first.peer\n"
        "        return _Job(str(next(self._numbers)), asker, message.request, request, time.monotonic(), timeout_s)\n",
        "one client gets another's answers",
        test_files("runtime/test_worker"),
    ),
)
