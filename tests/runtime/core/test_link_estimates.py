import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps.core.link_estimates import LinkEstimates
from hyps.formats.replanning import HUB, LinkFacts


def _heard(rate: float, latency_s: float, sizes: list[int], *, times: int = 8, noise: float = 0.0) -> LinkEstimates:
    links, rng = LinkEstimates(), random.Random(7)
    for turn in range(times):
        for nbytes in sizes:
            seconds = (2 * latency_s + nbytes / rate) * (1 + noise * rng.random())
            links.add("a", "b", nbytes, seconds, float(turn))
    return links


@given(
    rate=st.floats(1e5, 1e10),
    latency_s=st.floats(0, 0.2),
    sizes=st.lists(st.integers(0, 20_000_000), min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_any_messages_give_figures_that_can_be(rate: float, latency_s: float, sizes: list[int]) -> None:
    told = _heard(rate, latency_s, sizes, times=2).get("a", "b")

    assert told is not None
    assert told.samples == 2 * len(sizes)
    assert told.bytes_per_s is None or told.bytes_per_s > 0
    assert 0 <= told.latency_s < 0.2 + 20_000_000 / rate


def test_short_and_long_messages_tell_latency_and_rate() -> None:
    told = _heard(7e6, 0.014, [100, 20_000, 300_000, 3_000_000]).get("a", "b")

    assert told is not None
    assert told.bytes_per_s == pytest.approx(7e6, rel=0.01)
    assert told.latency_s == pytest.approx(0.014, rel=0.01)


def test_a_third_of_waiting_messages_changes_little() -> None:
    links = _heard(7e6, 0.014, [100, 300_000, 3_000_000], noise=0.1)
    for turn in range(4):
        links.add("a", "b", 100, 2.0, 8.0 + turn)
        links.add("a", "b", 300_000, 2.0, 8.0 + turn)

    told = links.get("a", "b")

    assert told is not None
    assert told.bytes_per_s == pytest.approx(7e6, rel=0.15)
    assert told.latency_s == pytest.approx(0.014, rel=0.15)


def test_what_stands_before_a_message_counts_as_sent() -> None:
    links = _heard(7e6, 0.014, [100, 300_000])
    for turn in range(8):
        links.add("a", "b", 1_000, 0.028 + 3_001_000 / 7e6, 9.0 + turn, behind_nbytes=3_000_000)

    told = links.get("a", "b")

    assert told is not None
    assert told.bytes_per_s == pytest.approx(7e6, rel=0.01)


def test_messages_of_one_size_are_predicted_right() -> None:
    told = _heard(7e6, 0.0, [800_000]).get("a", "b")

    assert told is not None
    assert told.seconds(800_000) == pytest.approx(800_000 / 7e6)


def test_short_messages_tell_no_rate() -> None:
    told = _heard(7e6, 0.014, [100, 400]).get("a", "b")

    assert told is not None
    assert told.bytes_per_s is None
    assert told.latency_s == pytest.approx(0.014, rel=0.01)


def test_a_link_on_which_size_does_not_matter_is_at_least_as_fast_as_was_seen() -> None:
    told = _heard(1e12, 0.001, [100, 1_000_000]).get("a", "b")

    assert told is not None
    assert told.bytes_per_s is not None
    assert 4e8 <= told.bytes_per_s <= 6e8


def test_a_link_that_slows_down_is_soon_known_to_be_slow() -> None:
    links = _heard(50e6, 0.001, [100, 1_000_000], times=50)
    for turn in range(9):
        links.add("a", "b", 1_000_000, 0.002 + 1_000_000 / 5e6, 50.0 + turn)

    told = links.get("a", "b")

    assert told is not None
    assert told.bytes_per_s == pytest.approx(5e6, rel=0.02)


def test_old_classes_lose_against_new_ones() -> None:
    links = _heard(50e6, 0.001, [100, 1_000_000, 4_000_000])
    for turn in range(16):
        links.add("a", "b", 100, 0.002, 1000.0 + turn)
        links.add("a", "b", 1_000_000, 0.002 + 1_000_000 / 5e6, 1000.0 + turn)

    told = links.get("a", "b")

    assert told is not None
    assert told.bytes_per_s == pytest.approx(5e6, rel=0.02)


def test_directions_are_told_apart_and_given_to_the_search() -> None:
    links = LinkEstimates()
    for nbytes, seconds in ((100, 0.002), (1_000_000, 0.102)):
        links.add("a", HUB, nbytes, seconds, 0.0)
    links.add(HUB, "a", 100, 0.004, 0.0)

    there, back = links.facts()

    assert there == LinkFacts(source=HUB, target="a", bytes_per_s=None, latency_s=0.002)
    assert (back.source, back.target) == ("a", HUB)
    assert back.bytes_per_s == pytest.approx(1e7, rel=0.01)
    assert back.latency_s == pytest.approx(0.001, rel=0.01)


def test_directions_in_which_devices_do_not_reach_each_other_are_closed() -> None:
    links = _heard(7e6, 0.014, [100])

    known, unknown = links.facts([("a", "b"), ("b", "a")])

    assert (known.source, known.is_open) == ("a", False)
    assert known.latency_s == pytest.approx(0.014, rel=0.01)
    assert unknown == LinkFacts(source="b", target="a", is_open=False)


def test_those_who_watch_are_told_the_same() -> None:
    links = _heard(7e6, 0.014, [100, 300_000])

    (told,) = links.statuses()

    known = links.get("a", "b")
    assert known is not None
    assert (told.source, told.target) == ("a", "b")
    assert (told.bytes_per_s, told.seconds) == (known.bytes_per_s, known.latency_s)


def test_a_device_that_left_is_forgotten_with_all_its_links() -> None:
    links = LinkEstimates()
    for source, target in (("a", "b"), ("b", "a"), ("b", "c"), (HUB, "a")):
        links.add(source, target, 1000, 0.01, 0.0)

    links.forget("a")

    assert [(link.source, link.target) for link in links.facts()] == [("b", "c")]
    assert links.get("a", "b") is None


def test_memory_does_not_grow_with_messages() -> None:
    links = LinkEstimates()
    for turn in range(20_000):
        links.add("a", "b", turn * 37 % 5_000_000, 0.01 + turn % 7, float(turn))

    kept = [len(known.samples) for known in links._links["a", "b"].values()]

    assert len(kept) <= 12
    assert max(kept) == 16


def test_a_device_that_names_others_without_end_makes_nothing_grow() -> None:
    links = LinkEstimates()
    links.add("b", "a", 100, 0.01, 0.0)
    for turn in range(1000):
        links.add("a", f"stranger{turn}", 100, 0.01, float(turn))

    told = {(link.source, link.target) for link in links.facts()}

    assert len(told) == 257
    assert ("a", "stranger999") in told
    assert ("a", "stranger0") not in told
    assert ("b", "a") in told
