"""A budget of resident bytes: room is made, requests fail, and the process lives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyps.adapters.ceiling import Ceiling
from hyps.adapters.resident import resident
from hyps.errors import ExecutionError
from plan_fixtures import mlp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is resident is read from Linux' /proc")

_MB = 10**6


def now() -> int:
    told = resident()
    assert told is not None
    return told.total_nbytes


def test_what_fits_is_let_through_without_freeing() -> None:
    freed: list[int] = []
    Ceiling(now() + 500 * _MB).make_room("p0", 100 * _MB, lambda: freed.append(1), 0)
    assert freed == []


def test_room_is_made_before_anything_is_refused() -> None:
    held = [np.ones(100 * _MB, np.uint8)]
    ceiling = Ceiling(now() + 10 * _MB)
    ceiling.make_room("p0", 60 * _MB, held.clear, 0)
    assert held == []


def test_what_does_not_fit_is_refused_with_what_would_do() -> None:
    budget = now() + 50 * _MB
    with pytest.raises(ExecutionError, match="partition `p0` needs 400 MB more") as caught:
        Ceiling(budget).make_room("p0", 400 * _MB, lambda: None, 450 * _MB)
    assert caught.value.code == "E_MEMORY"
    wanted = int(caught.value.hint.split("--memory ")[1].rstrip("MB`")) * _MB
    Ceiling(wanted + 20 * _MB).make_room("p0", 450 * _MB, lambda: None, 0)


_BACKSTOP = """
import numpy as np
from hyps.adapters.ceiling import Ceiling
from hyps.adapters.resident import resident
ceiling = Ceiling(resident().total_nbytes + 60_000_000)
with ceiling.backstop():
    np.ones(20_000_000, np.uint8)
    try:
        np.ones(200_000_000, np.uint8)
    except MemoryError:
        print("refused")
np.ones(200_000_000, np.uint8)
print("allowed")
"""


def test_the_system_refuses_memory_beyond_the_budget_only_within() -> None:
    told = subprocess.run([sys.executable, "-c", _BACKSTOP], check=True, capture_output=True, text=True, timeout=20)
    assert told.stdout.split() == ["refused", "allowed"]


_THREADS_WITHIN = """
import threading
from hyps.adapters.ceiling import Ceiling
from hyps.adapters.resident import resident
with Ceiling(resident().total_nbytes + 1_000_000).backstop():
    ends = threading.Event()
    threads = [threading.Thread(target=ends.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    ends.set()
    for thread in threads:
        thread.join()
print("ended")
"""


def test_other_threads_can_begin_within() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _THREADS_WITHIN], check=True, capture_output=True, text=True, timeout=20
    )
    assert told.stdout.split() == ["ended"]


_TWO_AT_ONCE = """
import resource
import threading
from hyps.adapters.ceiling import Ceiling
from hyps.adapters.resident import resident
loose, tight = (Ceiling(resident().total_nbytes + room) for room in (90_000_000, 60_000_000))
inside, first, second = threading.Semaphore(0), threading.Event(), threading.Event()
def hold(ceiling, over):
    with ceiling.backstop():
        inside.release()
        over.wait(20)
limit = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0]
one = threading.Thread(target=hold, args=(loose, first))
one.start()
inside.acquire(timeout=20)
other = threading.Thread(target=hold, args=(tight, second))
other.start()
inside.acquire(timeout=20)
held = limit()
first.set()
one.join()
print(held == limit())
second.set()
other.join()
print(limit() == resource.RLIM_INFINITY)
"""


def test_of_two_runs_at_once_the_last_to_end_frees_the_process() -> None:
    told = subprocess.run([sys.executable, "-c", _TWO_AT_ONCE], check=True, capture_output=True, text=True, timeout=30)
    assert told.stdout.split() == ["True", "True"]


_LARGER = """
import sys
import numpy as np
from hyps.adapters.resident import resident
from hyps.errors import ExecutionError
from hyps.local import LocalRunner
with LocalRunner(sys.argv[1], threads=1, memory_bytes=int(sys.argv[2])) as runner:
    source, made = runner.inputs[0].name, runner.outputs[0].name
    small = runner.run({source: np.ones((2, 512), np.float32)})[made]
    for rows in (100_000, 20_000):
        try:
            runner.run({source: np.ones((rows, 512), np.float32)})
        except ExecutionError as error:
            print(error.code)
    again = runner.run({source: np.ones((2, 512), np.float32)})[made]
    assert np.array_equal(small, again)
"""


@pytest.mark.slow
@pytest.mark.parametrize("budget_mb", [60, 90])
def test_a_request_that_would_pass_the_budget_fails_and_the_next_one_runs(budget_mb: int, tmp_path: Path) -> None:
    mlp(512, 1024, 1024, 512, 4, batch="batch").write(tmp_path / "plan")
    child = [sys.executable, "-c", _LARGER, str(tmp_path / "plan"), str(budget_mb * _MB)]
    told = subprocess.run(child, check=False, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == ["E_MEMORY", "E_MEMORY"]
