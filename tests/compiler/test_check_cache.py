"""Results by content: what a key depends on, and a cache that neither trusts nor breaks."""

import math
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from check_fixtures import layer, outcome, partition, plan, save_dense
from hyps.errors import OutputError
from hyps_compiler.checking.cache import Cache, default_folder
from hyps_compiler.checking.facts import Outcome, measured_difference
from hyps_compiler.checking.keys import result_key, software_digest
from hyps_compiler.checking.rules import CompileOptions
from hyps_compiler.checking.targets import Target

KEY = "ab" * 32
FOUND = outcome(plan(partition(0, layer("fc1", 12))))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new")
    assert cache.read(KEY, Outcome) is None
    cache.write(KEY, FOUND)
    assert cache.read(KEY, Outcome) == FOUND
    assert [path.name for path in (tmp_path / "new" / "ab").iterdir()] == [f"{KEY}.json"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_difference_that_is_no_number_is_kept_as_a_large_one(tmp_path: Path, value: float) -> None:
    cache = Cache(tmp_path)
    assert FOUND.facts is not None
    facts = msgspec.structs.replace(FOUND.facts, difference=measured_difference(value, "y"))
    cache.write(KEY, Outcome(facts=facts))
    read = cache.read(KEY, Outcome)
    assert read is not None
    assert read.facts is not None
    assert read.facts.difference is not None
    assert read.facts.difference.value > 1e300


def test_no_folder_keeps_nothing(tmp_path: Path) -> None:
    cache = Cache(None)
    cache.write(KEY, FOUND)
    assert cache.read(KEY, Outcome) is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" + data,
        lambda data: data.replace(b'"hyps-check"', b'"something"'),
        lambda data: data.replace(b'"version":1', b'"version":2', 1),
        lambda data: data.replace(KEY.encode(), b"cd" * 32),
        lambda data: data.replace(b'"partitions":[', b'"partitions":["x",'),
        lambda data: b"[" * 100_000,
        lambda data: b"\x80\x04\x95cposix\nsystem\n",
    ],
)
def test_a_damaged_entry_is_ignored_and_written_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = Cache(tmp_path)
    cache.write(KEY, FOUND)
    path = tmp_path / "ab" / f"{KEY}.json"
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    assert cache.read(KEY, Outcome) is None
    cache.write(KEY, FOUND)
    assert cache.read(KEY, Outcome) == FOUND


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        Cache(tmp_path / "file").write(KEY, FOUND)
    assert "--no-cache" in caught.value.hint


def _write_often(folder: Path, number: int) -> None:
    value = outcome(plan(partition(0, layer("fc1", number * 4))))
    for _ in range(200):
        Cache(folder).write(KEY, value)


def test_processes_that_write_at_once_leave_a_whole_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        found = Cache(tmp_path).read(KEY, Outcome)
        if found is not None:
            assert found.facts is not None
            seen.append(found.facts.plan.partitions[0].weight_bytes)
        elif seen:
            raise AssertionError("an entry that was there is gone")
    for writer in writers:
        writer.join(20)
        assert writer.exitcode == 0
    assert set(seen) <= {4, 8}
    assert [path.name for path in (tmp_path / "ab").iterdir()] == [f"{KEY}.json"]


def test_the_users_cache_is_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "hyps" / "check"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "hyps" / "check"


# Keys


@pytest.fixture
def target(tmp_path: Path) -> Target:
    path = save_dense(tmp_path / "model.onnx")
    return Target(path.as_posix(), path)


def key(target: Target, options: CompileOptions | None = None, software: str = "s", *, trust: bool = False) -> str:
    return result_key(target, options or CompileOptions(), software, trust=trust)


def test_a_key_is_that_of_the_content(target: Target, tmp_path: Path) -> None:
    before = key(target)
    assert target.path is not None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / "model.onnx"
    copy.write_bytes(target.path.read_bytes())
    assert key(Target(str(copy), copy)) == before
    os.utime(target.path, (0, 0))
    assert key(target) == before
    copy.write_bytes(copy.read_bytes() + b"\0\0")
    assert key(Target(str(copy), copy)) != before


def test_a_key_is_that_of_options_software_and_files(target: Target, tmp_path: Path) -> None:
    inputs = tmp_path / "x.npz"
    inputs.write_bytes(b"one")
    with_file = CompileOptions(inputs=str(inputs))
    first = key(target, with_file)
    inputs.write_bytes(b"two")
    told = [
        first,
        key(target, with_file),
        key(target),
        key(target, CompileOptions(memory_bytes=10**8)),
        key(target, CompileOptions(cut=("all",))),
        key(target, CompileOptions(input={"x": (2, 16)})),
        key(target, software="other"),
        key(target, trust=True),
    ]
    assert len(set(told)) == len(told)
    moved = tmp_path / "y.npz"
    moved.write_bytes(b"two")
    assert key(target, CompileOptions(inputs=str(moved))) == told[1]


@pytest.mark.parametrize("name", ["m.onnx", "m.ONNX", "m.pb", "m"])
def test_weights_in_other_files_count(tmp_path: Path, name: str) -> None:
    import onnx

    path = save_dense(tmp_path / name, (64, 64, 64))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    before = key(Target(str(path), path))
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[5] ^= 1
    (tmp_path / "m.data").write_bytes(data)
    assert key(Target(str(path), path)) != before


def test_every_file_of_a_folder_counts_with_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "a").write_bytes(b"weights")
    before = key(Target(str(folder), folder))
    (folder / "variables" / "a").rename(folder / "variables" / "b")
    renamed = key(Target(str(folder), folder))
    (folder / "variables" / "b").write_bytes(b"other")
    assert len({before, renamed, key(Target(str(folder), folder))}) == 3


def test_profiles_that_a_cluster_names_count(target: Target, tmp_path: Path) -> None:
    cluster, profile = tmp_path / "cluster.toml", tmp_path / "here.json"
    cluster.write_text('[[devices]]\nname = "one"\nprofile = "here.json"\n')
    profile.write_text("1")
    before = key(target, CompileOptions(cluster=str(cluster)))
    profile.write_text("2")
    assert key(target, CompileOptions(cluster=str(cluster))) != before


def test_models_of_the_zoo_differ_by_name() -> None:
    assert key(Target("zoo:digits", None)) != key(Target("zoo:lstm", None))


def test_the_software_is_the_same_twice() -> None:
    assert len(software_digest()) == 64
