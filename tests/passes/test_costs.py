"""Costs against figures worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from graph_fixtures import cut_graphs, value
from graph_fixtures import layer as made_layer
from hyps.formats.profiles import Profile
from hyps_passes.costs import at_batch, profile_costs
from hyps_passes.graph import MODEL, CutGraph
from hyps_passes.signatures import layer_signature
from profile_fixtures import border, layer, profile

GRAPH = CutGraph(
    tuple(made_layer(index) for index in range(4)),
    (
        value("image", MODEL, [0], 40),
        value("skip", 0, [1, 3], 100),
        value("inner", 1, [2], 200),
        value("late", 2, [3], 300),
        value("answer", 3, [], 8, is_output=True),
    ),
)
"""Layer 0, then 1 and 2 beside a bypass, then 3."""


def signatures(graph: CutGraph) -> list[str]:
    return [layer_signature(graph, each) for each in graph.layers]


@pytest.fixture
def measured() -> Profile:
    marks = signatures(GRAPH)
    layers = [layer(f"layer{i}", {1: 0.1 * (i + 1), 4: 0.2 * (i + 1)}, signature=marks[i]) for i in range(4)]
    borders = [
        border("layer0", ("skip",), ("layer0",), {1: 0.02, 4: 0.04}, {1: 0.03, 4: 0.06}),
        border("layer1", ("inner", "skip"), ("layer1", "layer0"), {1: 0.05, 4: 0.1}, {1: 0.01, 4: 0.02}),
        border("layer2", ("late", "skip"), ("layer2", "layer0"), {1: 0.02, 4: 0.04}, {1: 0.07, 4: 0.14}),
    ]
    return profile(layers, borders, {1: 0.001, 4: 0.002})


def test_measured_layers_cost_what_was_measured(measured: Profile) -> None:
    costs = profile_costs(GRAPH, measured, 1)

    assert costs.layer_s == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (costs.session_s, costs.modelled) == (0.001, 0)


def test_a_tensor_alone_costs_its_border_and_others_what_is_left(measured: Profile) -> None:
    costs = profile_costs(GRAPH, measured, 1)

    assert costs.export_s == pytest.approx(
        {"image": 0, "skip": 0.02, "inner": 0.03, "late": 0.0, "answer": 0}, abs=2e-5
    )
    # behind layer 1 the border costs less than `skip` alone, and nothing costs less than 0
    assert costs.import_s == pytest.approx(
        {"image": 0, "skip": 0.03, "inner": 0.0, "late": 0.04, "answer": 0}, abs=5e-5
    )


def test_between_batches_seconds_are_interpolated(measured: Profile) -> None:
    costs = profile_costs(GRAPH, measured, 2)

    assert costs.layer_s == pytest.approx([0.1 + 0.1 / 3, 0.2 + 0.2 / 3, 0.4, 0.4 + 0.4 / 3])
    assert costs.export_s["skip"] == pytest.approx(0.02 + 0.02 / 3)
    assert costs.session_s == pytest.approx(0.001 + 0.001 / 3)


@pytest.mark.parametrize(
    ("seconds", "batch", "expected"),
    [
        ({1: 2.0}, 1, 2.0),
        ({1: 2.0}, 8, 16.0),
        ({4: 8.0}, 1, 2.0),
        ({1: 2.0, 4: 5.0, 8: 5.0}, 6, 5.0),
        ({1: 2.0, 4: 5.0, 8: 7.0}, 16, 11.0),
        ({1: 5.0, 4: 2.0}, 8, 5.0),
        ({2: 1.0, 4: 9.0}, 1, 0.0),
    ],
)
def test_seconds_at_another_batch(seconds: dict[int, float], batch: int, expected: float) -> None:
    assert at_batch(seconds, batch) == pytest.approx(expected)


def test_a_model_compiled_anew_finds_its_layers_by_signature(measured: Profile) -> None:
    renamed = replace(
        measured,
        layers=tuple(replace(each, name=f"old{i}") for i, each in enumerate(measured.layers)),
        borders=tuple(
            replace(
                each,
                after=each.after.replace("layer", "old"),
                producers=tuple(name.replace("layer", "old") for name in each.producers),
                tensors=tuple(f"old {name}" for name in each.tensors),
            )
            for each in measured.borders
        ),
    )

    costs = profile_costs(GRAPH, renamed, 1)

    assert costs.layer_s == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert costs.modelled == 0
    assert costs.export_s["skip"] == pytest.approx(0.02)
    assert costs.import_s["late"] == pytest.approx(0.04, abs=5e-5)


def test_equal_layers_of_other_names_cost_what_they_do_at_the_mean(measured: Profile) -> None:
    mark = signatures(GRAPH)[1]
    twins = (layer("x", {1: 0.5, 4: 1.0}, signature=mark), layer("y", {1: 0.7, 4: 1.0}, signature=mark))

    costs = profile_costs(GRAPH, replace(measured, layers=twins, borders=()), 1)

    assert costs.layer_s[1] == pytest.approx(0.6)
    assert costs.modelled == 3


def test_what_was_not_measured_is_modelled_and_counted(measured: Profile) -> None:
    bare = replace(measured, layers=(), borders=())

    costs = profile_costs(GRAPH, bare, 2)

    # 1 s + 1 ms a byte: two requests of what goes in and out
    assert costs.layer_s == pytest.approx([1 + 2 * 0.14, 1 + 2 * 0.3, 1 + 2 * 0.5, 1 + 2 * 0.408])
    assert costs.modelled == 4
    assert costs.export_s["inner"] == pytest.approx(2 * 200 * 2e-3)
    assert costs.import_s["inner"] == pytest.approx(2 * 200 * 3e-3)


def test_layers_that_the_profile_modelled_count_as_modelled(measured: Profile) -> None:
    partly = replace(measured, layers=(replace(measured.layers[0], source="modelled"), *measured.layers[1:]))

    assert profile_costs(GRAPH, partly, 1).modelled == 1


def test_a_layer_of_the_same_name_but_other_work_is_not_taken_for_it(measured: Profile) -> None:
    other = replace(measured, layers=(replace(measured.layers[0], signature="other"), *measured.layers[1:]))

    costs = profile_costs(GRAPH, other, 1)

    assert costs.layer_s[0] == pytest.approx(1.14)
    assert costs.modelled == 1


def test_a_batch_below_one_is_refused(measured: Profile) -> None:
    with pytest.raises(ValueError, match="batch 0"):
        profile_costs(GRAPH, measured, 0)


@settings(max_examples=80, deadline=None)
@given(cut_graphs(all_cross=True), st.integers(0, 10**6))
def test_borders_of_known_values_are_explained(graph: CutGraph, seed: int) -> None:
    """Whatever each value costs, the sums over the borders come out as they went in."""
    truth = {v.name: (seed * (place + 3)) % 97 / 1e4 for place, v in enumerate(graph.values)}
    borders = [
        border(
            graph.layers[index].name,
            [v.name for v in graph.borders[index]],
            [graph.layers[v.producer].name for v in graph.borders[index]],
            {1: sum(truth[v.name] for v in graph.borders[index])},
            {1: 0.0},
        )
        for index in graph.legal_borders()
    ]
    marks = signatures(graph)
    layers = [layer(each.name, {1: 0.1}, signature=marks[each.index]) for each in graph.layers]

    costs = profile_costs(graph, profile(layers, borders, {1: 0.0}), 1)

    for index in graph.legal_borders():
        wanted = sum(truth[v.name] for v in graph.borders[index])
        assert sum(costs.export_s[v.name] for v in graph.borders[index]) == pytest.approx(wanted, abs=3e-4)
    assert all(seconds >= 0 for seconds in costs.export_s.values())
