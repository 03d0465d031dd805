"""Partitions in memory: nothing stays there that nobody can release."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from form_fixtures import write_formed
from hyps.adapters.sessions import Mode, Sessions
from hyps.adapters.streams import Streamed, Streams
from hyps.errors import PlanError
from hyps.formats.plan import Plan
from hyps.loading import Loader
from plan_fixtures import mlp


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return write_formed(mlp(8, 16, 12, 4), tmp_path)


@pytest.fixture
def loader(plan: Plan, tmp_path: Path) -> Iterator[Loader]:
    modes = dict.fromkeys((part.id for part in plan.partitions), Mode.STREAMED)
    loader = Loader(tmp_path, plan, Sessions(1), modes)
    yield loader
    loader.close()


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_wait_that_is_broken_off_leaves_what_can_be_released(
    loader: Loader, plan: Plan, monkeypatch: pytest.MonkeyPatch, is_ahead: bool
) -> None:
    first = plan.partitions[0].id

    def interrupted(streams: Streams, streamed: Streamed) -> None:
        raise KeyboardInterrupt

    if is_ahead:
        loader.read_ahead(first, None)
    with monkeypatch.context() as patched:
        patched.setattr(Streams, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loader.load(first)
    assert loader.loaded == {first}
    loader.unload(first)
    assert loader.loaded == set()
    loader.load(first)
    assert loader.loaded == {first}


def test_what_cannot_be_read_is_not_there(loader: Loader, plan: Plan, tmp_path: Path) -> None:
    first = plan.partitions[0]
    (tmp_path / first.weights[0].path).unlink()
    with pytest.raises(PlanError, match="missing"):
        loader.load(first.id)
    assert loader.loaded == set()
