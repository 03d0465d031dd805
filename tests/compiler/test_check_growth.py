"""What changed since the previous plan: layers by name, by what they are, by where they stand; partitions by layers."""

from hypothesis import given
from hypothesis import strategies as st

from check_fixtures import layer, partition, plan
from hyps_compiler.checking.growth import PartitionChange, grown_most, match_layers, partition_changes


def names(new: list[tuple[str, str, int]], old: list[tuple[str, str, int]]) -> dict[str, str]:
    made = [[layer(name, nbytes, kind) for name, kind, nbytes in told] for told in (new, old)]
    return {name: was.name for name, was in match_layers(*made).items()}


def test_layers_of_one_name_are_one() -> None:
    new, old = [("a", "Conv", 1), ("b", "Gemm", 2)], [("b", "Conv", 9), ("a", "Gemm", 9)]
    assert names(new, old) == {"a": "a", "b": "b"}


def test_renamed_layers_are_found_by_what_they_are() -> None:
    new = [("n0", "Conv", 1), ("n1", "Conv", 7), ("n2", "Gemm", 30), ("n3", "Gemm", 4)]
    old = [("o0", "Conv", 1), ("o2", "Gemm", 30), ("o3", "Gemm", 4)]
    assert names(new, old) == {"n0": "o0", "n2": "o2", "n3": "o3"}


def test_a_renamed_layer_that_grew_is_found_between_its_neighbours() -> None:
    new = [("a", "Conv", 1), ("fc_wide", "Gemm", 60), ("z", "Gemm", 5)]
    old = [("a", "Conv", 1), ("fc", "Gemm", 30), ("z", "Gemm", 5)]
    assert names(new, old)["fc_wide"] == "fc"


def test_another_kind_is_another_layer() -> None:
    assert names([("n", "Conv", 60)], [("o", "Gemm", 30)]) == {}


def test_the_layer_that_grew_most_did_it_not_the_largest() -> None:
    now = [layer("big", 1_000_000), layer("small", 90_000), layer("other", 20_000)]
    was = plan(partition(0, layer("big", 990_000), layer("small", 10_000), layer("other", 20_000)))
    found = grown_most(now, now, was)
    assert found is not None
    assert (found.layer.name, found.rise_bytes, found.has_grown) == ("small", 80_000, True)


def test_partitions_that_appeared_disappeared_and_grew() -> None:
    old = plan(partition(0, layer("a", 10)), partition(1, layer("b", 20)), partition(2, layer("gone", 5, "LSTM")))
    new = plan(partition(0, layer("new", 7, "Conv")), partition(1, layer("a", 10)), partition(2, layer("b", 25)))
    assert partition_changes(new, old) == [
        PartitionChange("appeared", "p000", after_bytes=7),
        PartitionChange("grew", "p002", 20, 25),
        PartitionChange("disappeared", "p002", before_bytes=5),
    ]


def test_parts_of_a_layer_keep_their_order() -> None:
    old = plan(partition(0, layer("fc", 10)), partition(1, layer("fc", 20)))
    new = plan(partition(0, layer("fc", 10)), partition(1, layer("fc", 21)), partition(2, layer("fc", 3)))
    assert partition_changes(new, old) == [
        PartitionChange("grew", "p001", 20, 21),
        PartitionChange("appeared", "p002", after_bytes=3),
    ]


LAYERS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["Conv", "Gemm"]), st.integers(0, 3)), max_size=8
)


@given(LAYERS, LAYERS)
def test_each_layer_has_one_old_one_at_most_and_of_its_own_name_first(
    new: list[tuple[str, str, int]], old: list[tuple[str, str, int]]
) -> None:
    new, old = (
        list({name: (name, k, n) for name, k, n in new}.values()),
        list({n: (n, k, b) for n, k, b in old}.values()),
    )
    found = names(new, old)
    assert len(set(found.values())) == len(found)
    shared = {name for name, *_ in new} & {name for name, *_ in old}
    assert all(found[name] == name for name in shared)
    kinds = {name: kind for name, kind, _ in old}
    assert all(kinds[found[name]] == kind for name, kind, _ in new if name in found and name not in shared)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_plan_has_not_changed_against_itself(sizes: list[list[int]]) -> None:
    parts = [
        partition(number, *(layer(f"l{number}.{index}", nbytes) for index, nbytes in enumerate(told)))
        for number, told in enumerate(sizes)
    ]
    assert partition_changes(plan(*parts), plan(*parts)) == []
