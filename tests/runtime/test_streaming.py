"""A plan in this process whose weights are read: the same bits, ahead of time if there is room, within the budget."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from form_fixtures import write_formed
from hyps.adapters.sessions import Mode
from hyps.errors import PlanError
from hyps.formats.plan import Plan
from hyps.local import LocalRunner
from plan_fixtures import Dataflow, cnn, mlp, sharded

FLOWS = {"mlp": mlp(8, 16, 12, 4), "cnn": cnn(), "sharded": sharded()}
_SWOLLEN_NBYTES = 2**30


@pytest.fixture(params=sorted(FLOWS))
def flow(request: pytest.FixtureRequest) -> Dataflow:
    return FLOWS[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "plan"


def tight(folder: Path, plan: Plan, count: float = 1, **more: Any) -> LocalRunner:
    """Return a runner whose budget holds so many partitions at once."""
    with LocalRunner(folder, plan=plan) as runner:
        base = runner.base_nbytes
    parts = [replace(part, weight_bytes=part.weight_bytes + _SWOLLEN_NBYTES) for part in plan.partitions]
    budget = base + int((count + 0.5) * _SWOLLEN_NBYTES)
    return LocalRunner(folder, plan=replace(plan, partitions=tuple(parts)), memory_bytes=budget, **more)


def test_answers_have_the_bits_of_mapped_partitions(flow: Dataflow, folder: Path) -> None:
    plan = write_formed(flow, folder)
    old = replace(plan, partitions=tuple(replace(part, form=None) for part in plan.partitions))
    with tight(folder, plan) as streaming, tight(folder, old) as mapping:
        assert set(streaming.modes.values()) == {Mode.STREAMED}
        assert set(mapping.modes.values()) == {Mode.MAPPED}
        for seed in range(2):
            feeds = flow.feeds(seed)
            made, expected = streaming.run(feeds), mapping.run(feeds)
            assert [value.tobytes() for value in made.values()] == [value.tobytes() for value in expected.values()]


def test_what_is_kept_is_laid_out_anew_and_the_rest_read(flow: Dataflow, folder: Path) -> None:
    plan = write_formed(flow, folder)
    with LocalRunner(folder, plan=plan) as fast, tight(folder, plan, 2) as runner:
        assert {runner.modes[partition] for partition in runner.kept} <= {Mode.PACKED, Mode.STREAMED}
        assert {runner.modes[partition] for partition in runner.swapped} == {Mode.STREAMED}
        made, expected = runner.run(flow.feeds()), fast.run(flow.feeds())
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_an_exact_run_reads_nothing_ahead_and_maps(flow: Dataflow, folder: Path) -> None:
    plan = write_formed(flow, folder)
    with LocalRunner(folder, plan=plan, memory_bytes=2**40, exact=True) as runner:
        assert set(runner.modes.values()) == {Mode.EXACT}


def test_a_batch_gets_each_its_own_answer(flow: Dataflow, folder: Path) -> None:
    plan = write_formed(flow, folder)
    requests = [flow.feeds(seed) for seed in range(3)]
    with tight(folder, plan, 2) as runner:
        alone = [runner.run(feeds) for feeds in requests]
        together = runner.run_batch(requests)
    for one, other in zip(alone, together, strict=True):
        assert [value.tobytes() for value in one.values()] == [value.tobytes() for value in other.values()]


def test_every_turn_is_timed(folder: Path) -> None:
    plan = write_formed(mlp(8, 16, 12, 4), folder)
    with tight(folder, plan, 2) as runner:
        runner.run(mlp(8, 16, 12, 4).feeds())
        for partition in runner.swapped:
            timing = runner.timings[partition]
            lengths = [len(times) for times in (timing.load_s, timing.wait_s, timing.run_s, timing.release_s)]
            assert lengths == [1, 1, 1, 1]
            assert min(timing.load_s[0], timing.wait_s[0], timing.release_s[0]) >= 0


def test_what_was_altered_meanwhile_is_refused_at_its_turn_and_later_ones_work(folder: Path) -> None:
    flow = mlp(8, 16, 12, 4)
    plan = write_formed(flow, folder)
    with tight(folder, plan, 2) as runner:
        path = folder / plan.partitions[2].weights[0].path
        data = path.read_bytes()
        path.write_bytes(data[:-4])
        with pytest.raises(PlanError) as caught:
            runner.run(flow.feeds())
        assert caught.value.code == "E_TAMPERED"
        path.write_bytes(data)
        assert runner.run(flow.feeds())["t3"].shape == (1, 4)


def test_a_batch_broken_off_lets_go_of_what_was_read_ahead(folder: Path) -> None:
    flow = mlp(8, 16, 12, 4)
    plan = write_formed(flow, folder)

    def interrupt(_name: str, _value: Any) -> None:
        raise KeyboardInterrupt

    with tight(folder, plan, 2) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(flow.feeds(), on_activation=interrupt)
        assert runner._engine._loader.loaded == set(runner.kept)
        assert runner.run(flow.feeds())["t3"].shape == (1, 4)


def test_kept_partitions_run_on_weights_they_share_in_a_lane(folder: Path) -> None:
    """All kept, but laid out anew none: there is no room for any weight twice."""
    flow = mlp(1024, 1024, 1024, batch=1)
    plan = write_formed(flow, folder)
    with LocalRunner(folder) as runner:
        expected = runner.run(flow.feeds())
    shared = plan.partitions[0].form
    assert shared is not None
    twin = replace(plan.partitions[1], weights=plan.partitions[0].weights)
    assert twin.form is not None
    twin = replace(twin, form=replace(twin.form, weights=shared.weights))
    tied = replace(plan, partitions=(plan.partitions[0], twin))
    with LocalRunner(folder, plan=tied, check=False) as free:
        budget = free.base_nbytes + 6 * 2**20
    with LocalRunner(folder, plan=tied, check=False, memory_bytes=budget) as runner:
        assert set(runner.modes.values()) == {Mode.STREAMED}
        assert not runner.swapped
        answers = [runner.run(flow.feeds())["t2"].tobytes() for _ in range(4)]
    assert len(set(answers)) == 1
    assert answers[0] != expected["t2"].tobytes()


_MEASURE = """
import json, sys
import numpy as np
from hyps.adapters.resident import OwnPeak
from hyps.adapters.sessions import Sessions
from hyps.local import LocalRunner
x = np.ones((1, 1448), np.float32)
Sessions(None).measure_base()
peak = OwnPeak()
with LocalRunner(sys.argv[1], memory_bytes=int(sys.argv[2]) or None, threads=1) as runner:
    base, made = runner.base_nbytes, None
    if int(sys.argv[2]):
        for _ in range(3):
            made = runner.run({"t0": x})
    print(json.dumps([base, len(runner.swapped), peak.measure()]))
"""


def test_reading_stays_within_the_budget(folder: Path) -> None:
    """A hundred megabytes of weights by an eighth of that at a time."""
    write_formed(mlp(*[1448] * 13, batch=1), folder)

    def measured(budget: int) -> list[int]:
        command = [sys.executable, "-c", _MEASURE, str(folder), str(budget)]
        result: list[int] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        return result

    base = measured(0)[0]
    budget = base + 28_000_000
    _, swapped, peak = measured(budget)
    assert swapped >= 10
    assert peak <= budget
