"""The trace file: whole events at every moment, bounded, and harmless when the disk is full."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hyps.adapters.traces import TraceFile
from hyps.errors import OutputError
from hyps.formats.chrome_trace import Event, named_process

HEADERS = named_process(1, "requests", order=1)


def event(number: int) -> Event:
    return {"ph": "C", "name": "n", "pid": 1, "tid": 0, "ts": number, "args": {"n": "x" * (number % 50)}}


def read(path: Path) -> list[dict[str, Any]]:
    """Read a trace as Perfetto does: its array may lack the end, but no event may."""
    text = path.read_text()
    told: list[dict[str, Any]] = json.loads(text if text.endswith("]\n") else text + "]")
    return told


@pytest.mark.parametrize("headers", [[], HEADERS], ids=["bare", "with headers"])
def test_the_file_can_be_read_after_every_write_and_has_its_end_at_last(tmp_path: Path, headers: list[Event]) -> None:
    path = tmp_path / "trace.json"
    with TraceFile(path, lambda: headers) as trace:
        assert read(path) == headers
        for number in range(5):
            trace.write([event(2 * number), event(2 * number + 1)])
            assert read(path) == headers + [event(n) for n in range(2 * number + 2)]
        trace.write([])
    assert json.loads(path.read_text()) == headers + [event(n) for n in range(10)]


def test_no_event_lies_across_a_page(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceFile(path, lambda: HEADERS) as trace:
        for number in range(100):
            trace.write([event(n) for n in range(number)])
    data = path.read_bytes()
    assert len(data) > 20 * 4096
    for border in range(4096, len(data), 4096):
        inside = data[:border].rstrip(b" ")
        assert inside.endswith((b"}", b"[\n")), data[border - 60 : border + 20]
    assert len(json.loads(data)) == 2 + sum(range(100))


def test_events_larger_than_a_page_are_written_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    large = [{**event(number), "name": "x" * 5000 * (number % 3)} for number in range(20)]
    with TraceFile(path, list) as trace:
        trace.write(large)
        assert read(path) == large


def test_it_is_begun_anew_when_it_grows_too_large(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceFile(path, lambda: HEADERS, max_nbytes=5000) as trace:
        for number in range(1000):
            trace.write([event(number)])
    files = [tmp_path / "trace.json.1", path]
    assert sorted(tmp_path.iterdir()) == [path, files[0]]
    assert all(file.stat().st_size <= 5000 + 4096 for file in files)
    both = [read(file) for file in files]
    assert all(told[:2] == HEADERS for told in both)
    numbers = [one["ts"] for told in both for one in told[2:]]
    assert numbers == list(range(numbers[0], 1000))


def test_one_that_was_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("something long and old" * 100)
    with TraceFile(path, list) as trace:
        trace.write([event(1)])
    assert read(path) == [event(1)]


def test_where_it_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        TraceFile(tmp_path / "nowhere" / "trace.json", list)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_ends_tracing_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.json"
    with TraceFile(path, list) as trace:
        trace.write([event(1)])
        real, full = trace._file, os.open("/dev/full", os.O_WRONLY)
        os.close(real)
        trace._file = full
        trace.write([event(2)])
        trace.write([event(3)])
    assert [record.message for record in caplog.records] == [f"tracing into `{path}` ends: No space left on device"]
    assert read(path) == [event(1)]


LIMITED = """
import resource, sys
from pathlib import Path
from hyps.adapters.traces import TraceFile
trace = TraceFile(Path(sys.argv[1]), list)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for number in range(1000):
    trace.write([{"ph": "C", "name": "n", "pid": 1, "tid": 0, "ts": number, "args": {"n": "x" * 500}}])
"""


def test_where_there_is_room_for_half_an_event_none_of_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True, timeout=20, stderr=subprocess.DEVNULL)
    told = read(path)
    assert [one["ts"] for one in told] == list(range(len(told)))
    assert 10 < len(told) < 20


KILLED = """
import sys
from pathlib import Path
from hyps.adapters.traces import TraceFile
trace = TraceFile(Path(sys.argv[1]), list, 200_000)
number = 0
while True:
    event = {"ph": "C", "name": "n", "pid": 1, "tid": 0, "args": {"n": "x" * 500}}
    trace.write([{**event, "ts": number + place} for place in range(20)])
    number += 20
"""


def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    most = 0
    for attempt in range(8):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as process:
            deadline_s = time.monotonic() + 20
            while not path.exists():
                assert time.monotonic() < deadline_s
            time.sleep(0.011 * attempt)
            process.send_signal(signal.SIGKILL)
        before = tmp_path / "trace.json.1"
        told = [one for file in (before, path) if file.exists() for one in read(file)]
        numbers = [one["ts"] for one in told]
        assert numbers == list(range(min(numbers, default=0), max(numbers, default=-1) + 1))
        most = max(most, len(numbers))
        for file in tmp_path.iterdir():
            file.unlink()
    assert most > 100
