"""Partitions whose weights are read: the same answers, memory that is used again, and refusals of what is altered."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from form_fixtures import write_formed
from hyps.adapters.sessions import Mode, Sessions
from hyps.adapters.streams import Streamed, Streams
from hyps.errors import PlanError
from hyps.formats.plan import Plan
from plan_fixtures import cnn, mlp


@pytest.fixture
def streams() -> Iterator[Streams]:
    made = Streams(Sessions(1))
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "plan"


def load(streams: Streams, folder: Path, plan: Plan, index: int, room_nbytes: int | None = None) -> Streamed:
    streamed = streams.begin(folder, plan.partitions[index], plan.optimization, room_nbytes)
    streams.finish(streamed)
    return streamed


def test_answers_are_those_of_the_mapped_partition_bit_for_bit(streams: Streams, folder: Path) -> None:
    flow = cnn(8, 16)
    plan = write_formed(flow, folder)
    known = flow.feeds()
    for index, part in enumerate(plan.partitions):
        feeds = {name: known[name] for name in part.inputs}
        expected = Sessions(1).open(folder / part.file, Mode.MAPPED, "none").run(list(part.outputs), feeds)
        made = load(streams, folder, plan, index).run(list(part.outputs), feeds)
        assert [value.tobytes() for value in made] == [value.tobytes() for value in expected]
        known.update(zip(part.outputs, made, strict=True))


def test_partitions_of_one_shape_share_a_session_and_nothing_else(streams: Streams, folder: Path) -> None:
    flow = mlp(16, 16, 16)
    plan = write_formed(flow, folder)
    first, second = (load(streams, folder, plan, index) for index in range(2))
    assert first.session is second.session
    x = flow.feeds()["t0"].astype(np.float32)
    expected = np.maximum(x @ _weight(folder, plan, 1).T, 0)
    np.testing.assert_allclose(second.run(["t2"], {"t1": x})[0], expected, rtol=1e-5)
    assert not np.allclose(first.run(["t1"], {"t0": x})[0], expected)


def test_memory_into_which_an_array_points_is_not_moved(streams: Streams, folder: Path) -> None:
    plan = write_formed(mlp(64, 64, 64), folder)
    streamed = load(streams, folder, plan, 0)
    array = next(iter(streamed.weights.values()))
    with pytest.raises(BufferError):
        streamed.buffers[0].memory.resize(2**22)
    assert array.size


def _weight(folder: Path, plan: Plan, index: int) -> NDArray[np.float32]:
    return np.fromfile(folder / plan.partitions[index].weights[0].path, np.float32)[:256].reshape(16, 16)


def test_memory_of_what_was_shut_is_used_again(streams: Streams, folder: Path) -> None:
    plan = write_formed(mlp(16, 16, 16, 16), folder)
    first = load(streams, folder, plan, 0)
    (buffer,) = first.buffers
    streams.shut(first)
    assert load(streams, folder, plan, 1).buffers == [buffer]
    assert load(streams, folder, plan, 2).buffers != [buffer]


def test_weights_that_are_there_are_not_read_again(streams: Streams, folder: Path) -> None:
    plan = write_formed(mlp(16, 16), folder)
    first = load(streams, folder, plan, 0)
    (folder / plan.partitions[0].weights[0].path).unlink()
    second = load(streams, folder, plan, 0)
    streams.shut(first)
    third = load(streams, folder, plan, 0)
    assert first.buffers == ()
    assert second.buffers == third.buffers


def test_what_is_held_stays_until_it_is_let_go(streams: Streams, folder: Path) -> None:
    """A run may be under way when its partition is released: its weights must not change under it."""
    plan = write_formed(mlp(16, 16, 16), folder)
    first = load(streams, folder, plan, 0)
    streams.hold(first)
    streams.shut(first)
    second = load(streams, folder, plan, 1)
    assert first.buffers != second.buffers
    streams.shut(first)
    assert first.buffers == ()


def test_idle_memory_makes_way_before_more_is_read(streams: Streams, folder: Path) -> None:
    plan = write_formed(mlp(256, 256, 512), folder)
    held = [load(streams, folder, plan, index) for index in range(2)]
    for one in held:
        streams.shut(one)
    assert streams._pool.idle_nbytes == 3 * 2**18
    load(streams, folder, plan, 0, room_nbytes=2**18)
    assert streams._pool.idle_nbytes <= 2**18


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: path.unlink(), "E_MISSING"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "E_TAMPERED"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "E_TAMPERED"),
        (lambda path: (path.rename(path.with_suffix(".away")), path.symlink_to(path.with_suffix(".away"))), "E_PATH"),
    ],
    ids=["missing", "short", "long", "link"],
)
def test_altered_weights_are_refused_and_leave_the_rest_to_work(
    streams: Streams, folder: Path, damage: object, code: str
) -> None:
    plan = write_formed(mlp(16, 16, 16), folder)
    assert callable(damage)
    damage(folder / plan.partitions[0].weights[0].path)
    with pytest.raises(PlanError) as caught:
        load(streams, folder, plan, 0)
    assert caught.value.code == code
    x = np.ones((1, 16), np.float32)
    assert load(streams, folder, plan, 1).run(["t2"], {"t1": x})[0].shape == (1, 16)


def test_what_could_not_be_read_is_read_the_next_time(streams: Streams, folder: Path) -> None:
    plan = write_formed(mlp(16, 16), folder)
    path = folder / plan.partitions[0].weights[0].path
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(PlanError):
        load(streams, folder, plan, 0)
    path.write_bytes(data)
    assert load(streams, folder, plan, 0).weights["w0"].tobytes() == data


def test_reads_that_bring_less_than_asked_for_are_gone_on_with(
    streams: Streams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, or when a signal comes."""
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: whole(file, [parts[0][:1000]], offset))
    plan = write_formed(mlp(64, 64), folder)
    data = (folder / plan.partitions[0].weights[0].path).read_bytes()
    assert load(streams, folder, plan, 0).weights["w0"].tobytes() == data


def test_a_session_that_was_not_used_for_long_is_made_anew(
    streams: Streams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyps.adapters.streams._SESSIONS_NBYTES", 120_000)
    plan = write_formed(mlp(8, 16, 24, 32), folder)
    for index in (0, 1, 0, 2):
        streams.shut(load(streams, folder, plan, index))
    forms = [part.form.sha256 for part in plan.partitions if part.form is not None]
    assert list(streams._sessions) == [forms[0], forms[2]]


def test_a_partition_bound_to_memory_runs_with_its_weights(streams: Streams, folder: Path) -> None:
    import onnxruntime

    flow = mlp(16, 16)
    plan = write_formed(flow, folder)
    streamed = load(streams, folder, plan, 0)
    x, y = flow.feeds()["t0"], np.empty((1, 16), np.float32)
    binding = streamed.io_binding()
    binding.bind_ortvalue_input("t0", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("t1", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    streamed.run_with_iobinding(binding)
    assert y.tobytes() == streamed.run(["t1"], {"t0": x})[0].tobytes()
