"""The soak tells what grows from what does not, and what went wrong from what clients asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from soak.growth import growth_of, unexpected
from soak.sampling import Series
from soak.tally import Tally, tally_of


def test_what_grows_slowly_all_the_time_is_found() -> None:
    growth = growth_of("rss_nbytes", [(float(at), 1e8 + 20_000.0 * at) for at in range(1800)])

    assert growth is not None
    assert growth.is_too_much
    assert growth.per_hour == pytest.approx(72e6)


def test_what_grows_at_first_alone_is_no_growth() -> None:
    growth = growth_of("rss_nbytes", [(float(at), 1e8 + 1e6 * min(at, 400)) for at in range(1800)])

    assert growth is not None
    assert not growth.is_too_much


def test_one_descriptor_that_comes_and_goes_is_no_growth_and_four_that_stay_are() -> None:
    waves = growth_of("descriptors", [(float(at), 20.0 + at % 2) for at in range(400)])
    stairs = growth_of("descriptors", [(float(at), 20.0 + at // 50) for at in range(400)])

    assert waves is not None
    assert not waves.is_too_much
    assert stairs is not None
    assert stairs.is_too_much


def test_a_few_samples_tell_nothing() -> None:
    assert growth_of("threads", [(float(at), 1.0) for at in range(7)]) is None


def test_failures_that_clients_asked_for_are_expected_and_no_others() -> None:
    assert unexpected({"E_DEADLINE": 3, "E_EXECUTION": 1}, frozenset({"E_DEADLINE"})) == {"E_EXECUTION": 1}


def test_a_client_that_died_and_came_back_is_counted_whole(tmp_path: Path) -> None:
    told = [Tally(done=1, failed={}), Tally(done=5, failed={"E_BUSY": 1}), Tally(done=2, wrong=1, failed={})]
    lines = [f'{{"done":{t.done},"wrong":{t.wrong},"failed":{str(t.failed).replace(chr(39), chr(34))}}}' for t in told]
    (tmp_path / "log").write_text("\n".join(lines) + "\nwarning: not a tally\n")

    total = tally_of(tmp_path / "log")

    assert (total.done, total.wrong, total.failed) == (7, 1, {"E_BUSY": 1})


def test_a_process_is_sampled_until_it_has_ended() -> None:
    command = [sys.executable, "-c", "print(flush=True); import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        series = Series("one", process.pid)
        assert series.take(0.0)
        assert series.samples["rss_nbytes"][0][1] > 1e6
        assert series.samples["descriptors"][0][1] >= 3
        assert series.samples["threads"] == [(0.0, 1.0)]
        process.stdin.close()
        process.wait(20)

    assert not series.take(1.0)
