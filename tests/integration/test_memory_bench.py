"""The memory benchmark limits what it says, throws files out of memory, and counts honestly."""

import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyps_models
from hyps_compiler.arrays import write_npz
from inferring import Job, evict
from limits import memory_limit
from memory.contenders import BEST, DEFAULT, NATIVE, PORTABLE
from memory.measuring import ENDLESS, SPARE_NBYTES, Size, best_of, bracket, median_s
from memory.processes import Contender, cannot_slow_down, run_once
from memory.subjects import MB, SUBJECTS
from memory.tables import show


@given(st.integers(0, 4000), st.integers(0, 4000), st.integers(30, 90))
def test_limits_descend_and_leave_the_process_its_own(weights: int, maps: int, base: int) -> None:
    size = Size(weights * MB, maps * MB, base * MB)

    limits = list(size.limits((64 * MB,)).values())

    assert limits == sorted(limits, reverse=True)
    assert limits[0] == ENDLESS
    assert 64 * MB in limits
    assert min(limits) >= min(64, base) * MB
    if max(weights, maps) >= 8 * base:
        assert min(limits) == min(64 * MB, size.nbytes // 8)
    else:
        assert min(limits) in (64 * MB, size.nbytes // 8 + base * MB + SPARE_NBYTES)


def run(failure: str = "", peak: int = 0, **samples: list[float]) -> dict[str, Any]:
    return {"failure": failure, "samples_s": samples, "cgroup_peak_bytes": peak, "load_average": 1.0, "memory": {}}


def limit(nbytes: int, **runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"limit_bytes": nbytes, "runs": runs, "plans": {}}


def test_a_search_begins_between_what_was_too_little_and_what_was_enough() -> None:
    tried = [
        limit(ENDLESS, default=[run(peak=900 * MB, cold=[1.0])]),
        limit(500 * MB, default=[run(peak=500 * MB, cold=[1.0])]),
        limit(200 * MB, default=[run("killed"), run("killed")]),
        limit(100 * MB, default=[run("killed")]),
    ]

    assert bracket("default", tried) == (200 * MB, 500 * MB)
    assert bracket("default", tried[:1]) == (16 * MB, 900 * MB + SPARE_NBYTES)


def test_the_median_is_over_all_processes_and_the_fastest_counts() -> None:
    found = limit(MB, best=[run(cold=[3.0, 1.0]), run("killed", cold=[2.0])], other=[run(cold=[5.0])], dead=[run("x")])

    assert median_s(found, "best", "cold") == 2.0
    assert median_s(found, "best", "warm") is None
    assert best_of(("other", "best", "dead"), found, "cold") == "best"
    assert best_of(("dead",), found, "cold") is None


def test_tables_tell_ratios_failures_and_refusals() -> None:
    refused = {"refusal": "too small", "budget_bytes": None}
    full = limit(ENDLESS, **{DEFAULT: [run(cold=[1.0], warm=[1.0])], PORTABLE: [run(cold=[1.5], warm=[1.5])]})
    small = limit(64 * MB, **{DEFAULT: [run("killed")], BEST: [run(cold=[2.0])]})
    model = {
        "size": {"weight_bytes": 500 * MB, "map_bytes": 20 * MB, "base_bytes": 50 * MB},
        "limits": {"none": full, "1/8": {**small, "plans": {PORTABLE: refused, NATIVE: refused}}},
        "smallest": {},
        "slow": {"skipped": "no cgroup"},
    }

    text = show({"vgg16": model})

    assert "500 MB of weights" in text
    assert "| none |  | 1.00 | - | 1.50 | 1.00 | - | 1.50 |  |  | 1.50 |" in text
    assert "| 1/8 | 64 | killed | 2.00 | refused |" in text
    assert "no cgroup" in text


def test_what_is_mapped_is_thrown_out_too(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 40_000)
    with file.open("r+b") as stream:
        os.fsync(stream.fileno())
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            total = sum(mapped[::4096])
            before = _resident_nbytes(file)
            evict(tmp_path)
            assert before > 9 * MB
            assert _resident_nbytes(file) == 0
            assert sum(mapped[::4096]) == total


@pytest.mark.slow
def test_a_contender_tells_every_mode_and_is_killed_when_late(tmp_path: Path) -> None:
    model, feeds = tmp_path / "model.onnx", tmp_path / "feeds.npz"
    hyps_models.save("digits", model)
    write_npz(feeds, hyps_models.sample_inputs("digits"))
    job = Job(str(model), "default", str(feeds), str(tmp_path), ("cold", "warm", "cached"), 3, 5.0)

    done = run_once(Contender("default", "whole.py", job), ENDLESS, 60)
    late = run_once(Contender("default", "whole.py", replace(job, repeats=10**9, seconds=60.0)), ENDLESS, 2)

    assert done.failure == ""
    assert {mode: len(samples) for mode, samples in done.samples_s.items()} == {"cold": 3, "warm": 3, "cached": 3}
    assert done.memory["cold"]["peak_rss_bytes"] > 20 * MB
    assert late.failure == "over 2 s"


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are made by root")
def test_a_slow_disk_is_proved_slow_or_the_reason_is_told(tmp_path: Path) -> None:
    with memory_limit(10**9) as held:
        has_group = held.disk_folder is not None

    reason = cannot_slow_down(tmp_path)

    assert isinstance(reason, str)
    assert has_group or reason
    assert list(tmp_path.iterdir()) == []


def test_every_subject_tells_whether_it_can_be_measured() -> None:
    assert {"vgg16", "resnet50", "mobilenetv2", "encoder", "dense-3gb", "meshnet"} <= set(SUBJECTS)
    assert len(SUBJECTS) == 9
    for name in ("vgg16", "meshnet"):
        assert SUBJECTS[name].missing == ""


def _resident_nbytes(file: Path) -> int:
    """Return how much of the file this process has in its memory."""
    size = 0
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        is_ours = False
        for line in lines:
            if "-" in line.split()[0]:
                is_ours = line.rstrip().endswith(str(file))
            elif is_ours and line.startswith("Rss:"):
                size += int(line.split()[1]) * 1024
    return size
