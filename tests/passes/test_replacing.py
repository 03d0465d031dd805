import itertools
import math

import numpy as np
import pytest
from msgspec.structs import replace

from hyps.errors import InfeasibleError
from hyps.formats.replanning import AIMS, HUB, Aim, Answer, DeviceFacts, LinkFacts, PartitionFacts, Question
from hyps_passes.replacing import place_again
from hyps_passes.replacing_problem import pose
from replanning_fixtures import all_rows, best_by_force, chain, random_question, score_of_answer, without

WORKS = (0.1, 0.2, 0.1, 0.3, 0.2, 0.1)


def _row(answer: Answer) -> list[str]:
    """Return the devices in the order in which the partitions p0, p1, ... use them."""
    return [device for device, _ in itertools.groupby(answer.placement[f"p{i}"] for i in range(len(answer.placement)))]


def _share(answer: Answer, device: str) -> float:
    return sum(work for i, work in enumerate(WORKS) if answer.placement[f"p{i}"] == device)


# A cluster that changes: six partitions, three devices, each with room for three of them


def _scenario(speeds: dict[str, float], aim: Aim, current: dict[str, tuple[str, ...]] | None = None) -> Question:
    return chain(WORKS, speeds, aim=aim, memory_bytes=85 * 10**6, current=current)


def _placed(answer: Answer) -> dict[str, tuple[str, ...]]:
    return {part: (device,) for part, device in answer.placement.items()}


@pytest.mark.parametrize("aim", ["latency", "throughput"])
def test_three_equal_devices_share_the_work_where_throughput_is_wanted(aim: Aim) -> None:
    question = _scenario({"a": 1, "b": 1, "c": 1}, aim)

    answer = place_again(question)

    assert score_of_answer(question, answer) == pytest.approx(best_by_force(question))
    assert answer.prediction.lower_bound_s == pytest.approx(best_by_force(question))
    assert answer.prediction.bound_over == "consecutive pipelines"
    assert len(_row(answer)) == (2 if aim == "latency" else 3)


@pytest.mark.parametrize("aim", ["latency", "throughput"])
def test_a_device_disappears_and_the_others_take_its_partitions(aim: Aim) -> None:
    before = place_again(_scenario({"a": 1, "b": 1, "c": 1}, "throughput"))
    question = without(_scenario({"a": 1, "b": 1, "c": 1}, aim, _placed(before)), "b")

    answer = place_again(question)

    assert sorted(_row(answer)) == ["a", "c"]
    assert score_of_answer(question, answer) == pytest.approx(best_by_force(question))
    assert answer.moved_bytes == 2 * 10**7  # b's two alone; the others stay where they are


@pytest.mark.parametrize("aim", ["latency", "throughput"])
def test_a_device_that_became_four_times_slower_is_given_less(aim: Aim) -> None:
    before = place_again(_scenario({"a": 1, "b": 1, "c": 1}, aim))
    question = _scenario({"a": 0.25, "b": 1, "c": 1}, aim, _placed(before))

    answer = place_again(question)

    assert score_of_answer(question, answer) == pytest.approx(best_by_force(question))
    assert _share(answer, "a") <= 0.1
    assert not answer.is_kept


@pytest.mark.parametrize("aim", ["latency", "throughput"])
def test_a_fast_device_that_joins_is_given_most(aim: Aim) -> None:
    before = place_again(_scenario({"a": 1, "b": 1, "c": 1}, aim))
    question = _scenario({"a": 1, "b": 1, "c": 1, "new": 4}, aim, _placed(before))

    answer = place_again(question)

    assert score_of_answer(question, answer) == pytest.approx(best_by_force(question))
    assert _share(answer, "new") == max(_share(answer, device) for device in ("a", "b", "c", "new"))
    assert score_of_answer(question, answer) < score_of_answer(question, before)


def test_a_small_gain_is_not_worth_moving() -> None:
    before = place_again(_scenario({"a": 1, "b": 1, "c": 1}, "latency"))
    question = _scenario({"a": 1, "b": 1, "c": 1, "new": 1.05}, "latency", _placed(before))

    kept, moved = place_again(replace(question, keep_within=0.05)), place_again(question)

    assert kept.is_kept
    assert kept.moved_bytes == 0
    assert kept.placement == before.placement
    assert "new" in moved.placement.values()


# Against brute force


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("seed", range(25))
def test_rows_of_stages_are_the_best_there_are(seed: int, aim: Aim) -> None:
    rng = np.random.default_rng(seed)
    question = random_question(rng, partitions=5, devices=3, aim=aim, is_chain=True)
    best = best_by_force(question)

    try:
        answer = place_again(question)
    except InfeasibleError:
        assert best == math.inf
        return

    score = score_of_answer(question, answer)
    assert score <= best * (1 + 1e-9)  # what is no row of stages may be better, where memory or links forbid rows
    if answer.prediction.lower_bound_s is not None:
        assert answer.prediction.lower_bound_s <= best * (1 + 1e-9)
        assert score == pytest.approx(answer.prediction.lower_bound_s)


@pytest.mark.parametrize("seed", range(20))
def test_replicas_are_as_good_as_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    question = random_question(rng, partitions=3, devices=3, aim="throughput", is_chain=True)
    best = best_by_force(question)

    try:
        answer = place_again(question)
    except InfeasibleError:
        assert best == math.inf
        return

    assert score_of_answer(question, answer) <= best * (1 + 1e-9)


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("seed", range(15))
def test_limits_are_kept_and_nothing_is_lost(seed: int, aim: Aim) -> None:
    rng = np.random.default_rng(200 + seed)
    question = random_question(rng, partitions=8, devices=4, aim=aim, is_chain=False)

    try:
        answer = place_again(question)
    except InfeasibleError:
        assert math.isinf(best_by_force(replace(question, allow_replicas=False)))
        return

    devices = {device.name: device for device in question.devices}
    assert list(answer.placement) == [part.id for part in question.partitions]
    for part, name in answer.placement.items():
        for device in (name, *answer.replicas.get(part, ())):
            assert part not in devices[device].refused
    for name, nbytes in answer.prediction.memory_bytes.items():
        assert nbytes <= (devices[name].memory_bytes or math.inf)


@pytest.mark.parametrize("seed", range(10))
def test_what_runs_now_is_never_made_worse(seed: int) -> None:
    rng = np.random.default_rng(300 + seed)
    question = replace(random_question(rng, partitions=8, devices=4, aim="latency", is_chain=False), time_limit_s=0.01)
    question = replace(question, devices=tuple(replace(d, memory_bytes=None, refused=()) for d in question.devices))
    names = [device.name for device in question.devices]
    anything = {part.id: (names[int(rng.integers(len(names)))],) for part in question.partitions}
    now = place_again(replace(question, current=anything, keep_within=10.0))

    answer = place_again(replace(question, current=anything))

    assert now.is_kept
    assert score_of_answer(question, answer) <= score_of_answer(question, now) * (1 + 1e-9)


def test_a_solver_that_is_installed_betters_what_does_not_run_in_rows() -> None:
    pytest.importorskip("ortools")
    question = random_question(np.random.default_rng(0), partitions=8, devices=3, aim="throughput", is_chain=False)
    question = replace(question, allow_replicas=False, devices=tuple(replace(d, refused=()) for d in question.devices))

    plain = place_again(question)
    solved = place_again(replace(question, time_limit_s=10.0))

    assert score_of_answer(question, solved) < score_of_answer(question, plain)
    assert "mixed-integer program" in solved.reason


def test_where_nothing_can_go_on_the_first_good_placement_is_taken() -> None:
    question = random_question(np.random.default_rng(0), partitions=8, devices=3, aim="throughput", is_chain=False)
    gone = {part.id: ("gone",) for part in question.partitions}

    answer = place_again(replace(question, current=gone, time_limit_s=60.0))

    assert answer.search_s < 5.0
    assert "mixed-integer program" not in answer.reason


# Partitions that can run side by side


def _shards(devices: int, *, bytes_per_s: float) -> Question:
    """Return a layer in four H-partitions of a second each, what comes before, and the merge behind."""
    shards = tuple(
        PartitionFacts(id=f"shard{i}", inputs=("x",), outputs=(f"part{i}",), macs=2 * 10**9) for i in range(4)
    )
    names = [HUB, *(f"d{i}" for i in range(devices))]
    return Question(
        number=1,
        partitions=(
            PartitionFacts(id="first", inputs=("image",), outputs=("x",), macs=10**8),
            *shards,
            PartitionFacts(id="merge", inputs=tuple(f"part{i}" for i in range(4)), outputs=("y",), macs=10**6),
        ),
        tensor_bytes={"image": 100_000, "x": 100_000, "y": 4000, **{f"part{i}": 4000 for i in range(4)}},
        model_inputs=("image",),
        model_outputs=("y",),
        devices=tuple(DeviceFacts(name=name, macs_per_s=2e9) for name in names[1:]),
        links=tuple(
            LinkFacts(source=a, target=b, bytes_per_s=bytes_per_s, latency_s=0.001)
            for a, b in itertools.permutations(names, 2)
        ),
    )


@pytest.mark.parametrize(("devices", "most_each"), [(1, 4), (2, 2), (4, 1)])
def test_shards_of_a_layer_are_spread_where_links_are_fast(devices: int, most_each: int) -> None:
    answer = place_again(_shards(devices, bytes_per_s=12.5e6))

    homes = [answer.placement[f"shard{i}"] for i in range(4)]
    assert max(homes.count(device) for device in homes) == most_each
    assert answer.prediction.latency_s == pytest.approx(most_each + 0.05, abs=0.08)


def test_shards_of_a_layer_stay_together_where_links_are_slow() -> None:
    answer = place_again(_shards(4, bytes_per_s=20_000))

    assert len(set(answer.placement.values())) == 1


# Refusals and what is assumed


def test_devices_too_small_for_all_at_once_take_turns_with_the_least_beyond_their_memory() -> None:
    question = chain(WORKS, {"a": 1, "b": 1}, memory_bytes=76 * 10**6)

    answer = place_again(question)

    homes = list(answer.placement.values())
    assert sorted({homes.count("a"), homes.count("b")}) == [3]
    assert "in turn" in answer.reason
    assert answer.prediction.lower_bound_s is None
    enough = replace(question, devices=tuple(replace(d, memory_bytes=80_400_000) for d in question.devices))
    assert "in turn" not in place_again(enough).reason


def test_too_little_memory_for_one_partition_says_how_much_would_do() -> None:
    question = chain(WORKS, {"a": 1, "b": 1}, memory_bytes=55 * 10**6)

    with pytest.raises(InfeasibleError, match=r"it would take .* on `a` \(it has 55\.0 MB\)") as refusal:
        place_again(question)

    assert "--memory" in refusal.value.hint


def test_a_deadline_that_cannot_be_met_says_what_could() -> None:
    question = replace(chain(WORKS, {"a": 1, "b": 1}), deadline_s=0.5)

    with pytest.raises(InfeasibleError, match=r"deadline of 500 ms; 1\.01 s would do"):
        place_again(question)

    assert place_again(replace(question, deadline_s=1.01)).placement


def test_no_device_and_none_that_can_load_a_partition_are_refused() -> None:
    question = chain(WORKS, {"a": 1, "b": 1})

    with pytest.raises(InfeasibleError, match="no device is there"):
        place_again(without(question, "a", "b"))
    with pytest.raises(InfeasibleError, match="can load partition `p3`"):
        place_again(replace(question, devices=tuple(replace(d, refused=("p3",)) for d in question.devices)))


def test_a_device_visited_twice_is_found_where_nothing_else_fits() -> None:
    question = chain(WORKS[:3], {"a": 1, "b": 1})
    devices = (replace(question.devices[0], refused=("p1",)), replace(question.devices[1], refused=("p0", "p2")))

    answer = place_again(replace(question, devices=devices))

    assert answer.placement == {"p0": "a", "p1": "b", "p2": "a"}


def test_what_is_not_known_is_assumed_and_said() -> None:
    question = replace(chain(WORKS, {"a": 1, "b": 1}), links=(), timings=())

    answer = place_again(question)

    assert answer.assumptions == (
        "nothing has timed `p0`, `p1`, `p2` and 3 more: multiply-accumulates stand in",
        "links of `a`, `b` are unmeasured: 12.5 MB/s, 1 ms",
    )


def test_a_link_is_taken_to_be_as_its_other_direction_or_as_those_of_its_ends() -> None:
    question = chain(WORKS, {"a": 1, "b": 1})
    known = (
        LinkFacts(source="a", target=HUB, bytes_per_s=5e6, latency_s=0.002),
        LinkFacts(source=HUB, target="b", bytes_per_s=2e6, latency_s=0.005),
    )

    posed = pose(replace(question, links=known))

    names = ["hub", "a", "b"]
    rates = {(names[c.source], names[c.target]): (1 / c.s_per_byte, c.latency_s) for c in posed.problem.channels}
    assert rates["hub", "a"] == pytest.approx((5e6, 0.002))
    assert rates["a", "b"] == pytest.approx((2e6, 0.005))
    assert posed.assumptions == ()


def test_devices_without_power_figures_are_placed_for_latency() -> None:
    answer = place_again(chain(WORKS, {"a": 1, "b": 2}, aim="energy"))

    assert set(answer.placement.values()) == {"b"}
    assert "latency stands for energy" in answer.assumptions[-1]


def test_devices_that_do_not_reach_each_other_hand_on_over_the_hub() -> None:
    question = replace(chain(WORKS, {"a": 1, "b": 1}, aim="throughput"), is_via_hub=True)

    answer = place_again(question)

    assert set(answer.prediction.link_bytes) == {f"{one} to hub" for one in "ab"} | {f"hub to {one}" for one in "ab"}
    assert score_of_answer(question, answer) == pytest.approx(best_by_force(question))


def test_more_devices_than_are_searched_exactly_are_used_all_the_same() -> None:
    speeds = {f"d{i}": 1.0 for i in range(14)}
    question = replace(chain((0.1,) * 14, speeds, aim="throughput", memory_bytes=65 * 10**6), time_limit_s=2.0)

    answer = place_again(question)

    assert len(set(answer.placement.values())) == 14
    assert answer.prediction.throughput_rps == pytest.approx(10.0)


def test_brute_force_tries_what_it_should() -> None:
    problem = pose(chain((0.1, 0.1), {"a": 1, "b": 1})).problem

    assert len(list(all_rows(problem, has_groups=False))) == 4
    assert len(list(all_rows(problem, has_groups=True))) == 6
