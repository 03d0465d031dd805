"""What `hypsc run --explain` shows."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hyps.adapters.spill_file import SpillCounts
from hyps.local import LocalRunner
from hyps_compiler.cli import main
from hyps_compiler.explaining import WIDTH, Explanation, Share, explained, group, show_explanation
from plan_fixtures import sharded


def share(label: str = "p0", *, compute_s: float = 0.01, wait_s: float = 0.0, **more: float | None) -> Share:
    sizes = {"read_nbytes": 0, "peak_nbytes": 60_000_000, "planned_nbytes": 5_000_000, **more}
    return Share(label, "streamed", 0.0, compute_s, wait_s, 0.0, **sizes)  # type: ignore[arg-type]  # sizes are whole


def told(*shares: Share, seconds: float = 1.0) -> Explanation:
    return Explanation(shares, shares, seconds, 1, 40_000_000, 64_000_000)


def bars(text: str) -> list[str]:
    return [line.split()[-1] for line in text.splitlines() if line and line.split()[-1][0] in "█▒░"]


def test_no_line_is_wider_than_the_terminal() -> None:
    long = share("a_name_that_is_far_too_long_for_any_column..another_one [56 tiles]", compute_s=12345.0, wait_s=9e4)
    text = show_explanation(told(long, share(read_nbytes=3e12, peak_nbytes=None, planned_nbytes=None), seconds=2e5))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "[56 tiles]" in text


def test_a_bar_shows_what_the_time_went_to() -> None:
    text = show_explanation(told(share("slow", compute_s=0.5, wait_s=0.5), share("quick", compute_s=0.3)))
    assert bars(text)[:2] == ["█████▒▒▒▒▒", "███"]


def test_what_no_partition_took_is_told() -> None:
    one = told(share(compute_s=0.6, wait_s=0.1), seconds=1.0)
    assert one.other_s == pytest.approx(0.3)
    assert "other 30 %" in show_explanation(one)


def test_a_run_without_time_shows_no_bar() -> None:
    assert bars(show_explanation(told(share(compute_s=0.0), seconds=0.0))) == []


def test_feature_maps_that_left_memory_are_told() -> None:
    one = replace(told(share()), spilled=SpillCounts(176_000_000, 2.5, 88_000_000, 0.5))
    assert "spilled: 176 MB written in 2.5 s, 88.0 MB read back in 500 ms" in show_explanation(one)
    assert one.as_json()["spilled"]["read_nbytes"] == 88_000_000
    assert "spilled" not in show_explanation(told(share()))


def test_pieces_of_one_layer_stand_together(tmp_path: Path) -> None:
    plan = sharded(shards=3).write(tmp_path / "plan")
    groups = group(plan, [share(part.id, read_nbytes=7) for part in plan.partitions])
    pieces = next(one for one in groups if one.count == 3)
    assert pieces.label.endswith("[3 slices]")
    assert pieces.read_nbytes == 21
    assert pieces.compute_s == pytest.approx(0.03)
    assert sum(one.count for one in groups) == len(plan.partitions)


def test_requests_are_answered_as_ever_and_accounted_for(tmp_path: Path) -> None:
    flow = sharded(shards=3)
    flow.write(tmp_path / "plan")
    feeds = [flow.feeds(seed) for seed in range(3)]
    with LocalRunner(tmp_path / "plan", threads=1) as runner:
        wanted = runner.run_batch(feeds)
        answers, explanation = explained(runner, feeds)
    for answer, want in zip(answers, wanted, strict=True):
        assert all(np.array_equal(answer[name], want[name]) for name in want)
    assert explanation.requests == 3
    assert all(one.compute_s > 0 for one in explanation.shares)
    assert sum(one.seconds for one in explanation.shares) <= explanation.seconds
    assert explanation.total("read_nbytes") == 0, "all was loaded before"


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from Linux' /proc")
def test_the_peak_of_each_turn_is_told(tmp_path: Path) -> None:
    flow = sharded(shards=3)
    flow.write(tmp_path / "plan")
    with LocalRunner(tmp_path / "plan", threads=1) as runner:
        _, explanation = explained(runner, [flow.feeds()])
    assert all((one.peak_nbytes or 0) > 20_000_000 for one in explanation.shares)
    assert explanation.peak_nbytes == max(one.peak_nbytes or 0 for one in explanation.shares)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_the_command_shows_it(flags: tuple[str, ...], tmp_path: Path) -> None:
    sharded(shards=3).write(tmp_path / "plan")
    result = CliRunner().invoke(main, ["run", str(tmp_path / "plan"), "--explain", *flags])
    assert result.exit_code == 0, result.output
    if flags:
        assert len(json.loads(result.stdout)["explanation"]["partitions"]) == 5
    else:
        assert "[3 slices]" in result.stdout


def test_a_worker_elsewhere_explains_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["run", "--connect", "tcp://127.0.0.1:9", "--explain"])
    assert result.exit_code == 2
    assert "--explain" in result.output
