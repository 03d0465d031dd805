import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyps.adapters.resident import CODE_NBYTES, give_back, peak_error_nbytes, reset_peak, resident

_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is tested is read from Linux' /proc")
_PAGE = mmap.PAGESIZE


def _touch_and_forget(nbytes: int) -> None:
    with mmap.mmap(-1, nbytes) as block:
        for start in range(0, nbytes, _PAGE):
            block[start] = 1


@_LINUX
def test_the_peak_begins_anew_at_what_is_resident() -> None:
    _touch_and_forget(64 * 2**20)
    assert reset_peak()
    now = resident()
    assert now is not None
    assert now.peak_nbytes - now.total_nbytes <= peak_error_nbytes(8)


@_LINUX
@pytest.mark.parametrize("nbytes", [3 * 2**20, 40 * 2**20])
def test_the_peak_tells_what_was_taken_and_given_back(nbytes: int) -> None:
    reset_peak()
    before = resident()
    _touch_and_forget(nbytes)
    after = resident()
    assert before is not None
    assert after is not None
    risen = after.peak_nbytes - before.total_nbytes
    assert nbytes - peak_error_nbytes(2) <= risen <= nbytes + 2 * peak_error_nbytes(2)


_OWN_PEAK = """
import mmap, sys
from hyps.adapters.resident import OwnPeak, give_back, resident

def touch(block):
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start]

before, peak = resident(), OwnPeak()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as code:
    touch(code)
    with mmap.mmap(-1, 32_000_000) as block:
        block[:: mmap.PAGESIZE] = bytes(len(block[:: mmap.PAGESIZE]))
    give_back()
    assert resident().file_nbytes < before.file_nbytes + 32_000_000
    print(resident().anonymous_nbytes - before.anonymous_nbytes, peak.measure() - before.total_nbytes)
"""


@_LINUX
def test_a_peak_of_our_own_has_what_was_given_back_but_not_all_code(tmp_path: Path) -> None:
    (tmp_path / "large.so").write_bytes(bytes(64_000_000))
    command = [sys.executable, "-c", _OWN_PEAK, str(tmp_path / "large.so")]
    printed = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout
    grown, risen = map(int, printed.split())
    assert abs(risen - (32_000_000 + CODE_NBYTES)) < 3_000_000 + max(0, grown)


@_LINUX
def test_parts_add_up() -> None:
    now = resident()
    assert now is not None
    assert now.anonymous_nbytes + now.file_nbytes == now.total_nbytes <= now.peak_nbytes


_FRESH = """
import numpy, onnxruntime
from hyps.adapters.resident import give_back, resident
from hyps.adapters.sessions import Mode, Sessions
sessions = Sessions(1)
sessions.measure_base()
held = numpy.arange(1_000_000)
before = resident()
give_back()
after = resident()
assert held.sum() == 499999500000
assert sessions.measure_base() > 0  # opens and runs as before
print(before.file_nbytes - after.file_nbytes, before.anonymous_nbytes - after.anonymous_nbytes)
"""


@_LINUX
@pytest.mark.slow
def test_giving_back_frees_code_and_loses_no_data() -> None:
    told = subprocess.run([sys.executable, "-c", _FRESH], check=True, capture_output=True, text=True, timeout=20)
    code_nbytes, anonymous_nbytes = map(int, told.stdout.split())
    assert code_nbytes > 15 * 2**20
    assert abs(anonymous_nbytes) < 2 * 2**20


@_LINUX
def test_giving_back_again_and_again_is_harmless() -> None:
    matrix = np.random.default_rng(0).random((64, 64))
    wanted = matrix @ matrix
    for _ in range(3):
        give_back()
        assert np.array_equal(matrix @ matrix, wanted)
