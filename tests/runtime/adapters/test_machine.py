"""What the machine is."""

import platform

import pytest

from hyps.adapters import machine


def test_the_cpu_family_is_stable_and_names_the_architecture() -> None:
    assert machine.cpu_family() == machine.cpu_family()
    assert machine.cpu_family().split("+")[0] == platform.machine()


def test_flags_are_read_from_either_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.cpu_family.cache_clear()
    monkeypatch.setattr(
        machine, "_lines", lambda _: ["processor\t: 0", "flags\t\t: fpu avx2 avx sse", "bugs\t: avx512f"]
    )
    assert machine.cpu_family().endswith("+avx+avx2")
    machine.cpu_family.cache_clear()
    monkeypatch.setattr(machine, "_lines", lambda _: ["Features\t: fp asimd sve"])
    assert machine.cpu_family().endswith("+asimd+sve")
    machine.cpu_family.cache_clear()


def test_two_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"processor : {i}\nphysical id : 0\ncore id : {i // 2}".splitlines() for i in range(8)]
    monkeypatch.setattr(machine, "_lines", lambda _: [line for lines_of_one in lines for line in lines_of_one])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 6})
    assert machine.core_count() == 3


def test_without_core_ids_every_processor_is_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_lines", lambda _: ["processor : 0", "processor : 1"])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert machine.core_count() == 2


def test_memory_is_measured() -> None:
    rss, peak = machine.rss_nbytes(), machine.peak_rss_nbytes()
    assert rss is not None
    assert peak is not None
    assert 5_000_000 < rss <= peak


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_lines", lambda _: [])
    assert machine.rss_nbytes() is None


def test_trimming_needs_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.trim()
    machine._glibc.cache_clear()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert machine._glibc("malloc_trim") is None
    machine.trim()
    machine._glibc.cache_clear()
