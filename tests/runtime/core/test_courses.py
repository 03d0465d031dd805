"""Courses: along their routes every partition gets all it reads, once per device, and the hub all outputs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster_fixtures import CHAIN
from graph_fixtures import cut_graphs
from hyps.core.courses import MAX_COURSES, Flow, WholeCourse, lay_course, parts_to_run, sends_to_begin, spread
from hyps.core.residency import Task
from hyps.formats.node_messages import HUB
from hyps_passes.graph import MODEL, CutGraph

DEVICES = ("d0", "d1", "d2")


def flow_of(graph: CutGraph) -> Flow:
    """Return each layer of a random graph as a partition; what only the model's inputs feed is an input."""
    tasks = []
    for layer in graph.layers:
        reads = tuple(value.name for value in graph.values if layer.index in value.consumers)
        makes = tuple(value.name for value in graph.values if value.producer == layer.index)
        tasks.append(Task(layer.name, reads, makes))
    inputs = [value.name for value in graph.values if value.producer == MODEL]
    outputs = [value.name for value in graph.values if value.is_output]
    return Flow(tasks, inputs, outputs, {value.name: value.nbytes or 0 for value in graph.values})


@st.composite
def flows(draw: st.DrawFn) -> tuple[Flow, dict[str, str]]:
    flow = flow_of(draw(cut_graphs(all_cross=True)))
    return flow, {task.id: draw(st.sampled_from(DEVICES)) for task in flow.tasks}


def deliveries(
    flow: Flow, course: WholeCourse, placement: dict[str, str], held: set[str], needed: set[str]
) -> Counter[tuple[str, str]]:
    """Follow a request along its routes; return how often each device got each tensor from elsewhere."""
    got: Counter[tuple[str, str]] = Counter()
    here: dict[str, set[str]] = {device: set() for device in (*DEVICES, HUB)}
    here[HUB] |= held
    for tensor, device in sends_to_begin(flow, course, sorted(held), needed):
        got[tensor, device] += 1
        here[device].add(tensor)
    routes = {device: {r.tensor: r.devices for r in part.routes} for device, part in course.parts.items()}
    for task in flow.tasks:
        device = placement[task.id]
        if not set(task.inputs) <= here[device]:
            assert task.id not in needed, f"{task.id} lacks {set(task.inputs) - here[device]}"
            continue
        for name in task.outputs:
            here[device].add(name)
            for target in routes[device].get(name, ()):
                assert target != device
                got[name, target] += 1
                here[target].add(name)
                if target == HUB:
                    for reader in course.from_hub.get(name, ()):
                        got[name, reader] += 1
                        here[reader].add(name)
    assert set(flow.outputs) <= here[HUB]
    return got


@given(flows(), st.booleans(), st.sets(st.tuples(st.sampled_from(DEVICES), st.sampled_from(DEVICES))), st.data())
def test_every_reader_gets_each_tensor_once_and_the_hub_all_outputs(
    drawn: tuple[Flow, dict[str, str]], is_via_hub: bool, closed: set[tuple[str, str]], data: st.DataObject
) -> None:
    flow, placement = drawn
    made = sorted(flow.producer)
    kept = data.draw(st.sets(st.sampled_from(made))) if made else set()
    course = lay_course(flow, 1, placement, kept=kept, closed=closed, is_via_hub=is_via_hub)
    got = deliveries(flow, course, placement, set(flow.inputs), set(placement))
    assert not got or max(got.values()) == 1
    for name, readers in flow.readers.items():
        own = placement.get(flow.producer.get(name, ""), HUB)
        for part in readers:
            assert placement[part] == own or got[name, placement[part]] == 1
    for name in (*kept, *flow.outputs):
        assert name in flow.inputs or got[name, HUB] == 1
    for source, target in course.pairs:
        assert not is_via_hub
        assert (source, target) not in closed


@given(flows(), st.data())
def test_what_the_hub_holds_is_not_made_again(drawn: tuple[Flow, dict[str, str]], data: st.DataObject) -> None:
    flow, placement = drawn
    made = sorted(flow.producer)
    held = set(flow.inputs) | (data.draw(st.sets(st.sampled_from(made))) if made else set())
    course = lay_course(flow, 1, placement)
    needed = parts_to_run(flow, held)
    deliveries(flow, course, placement, held, set(needed))
    for part in needed:
        assert any(name not in held for name in flow.task[part].outputs)
    if set(flow.outputs) <= held:
        assert not needed


def test_replicas_are_used_in_turn() -> None:
    placement = {"p0": "a", "p1": "b", "p2": "c"}
    ways = spread(placement, {"p1": ("d",), "p2": ("e", "f")}, lambda _part, _device: True)
    assert len(ways) == 6
    assert Counter(way["p1"] for way in ways) == {"b": 3, "d": 3}
    assert Counter(way["p2"] for way in ways) == {"c": 2, "e": 2, "f": 2}


def test_a_replica_takes_the_place_of_a_device_that_is_gone() -> None:
    ways = spread({"p0": "a", "p1": "b"}, {"p1": ("c",)}, lambda _part, device: device != "b")
    assert ways == [{"p0": "a", "p1": "c"}]
    assert spread({"p0": "a", "p1": "b"}, {}, lambda _part, device: device != "b") == []


def test_courses_stay_few_however_many_replicas_there_are() -> None:
    replicas = {"p0": tuple("bcde"), "p1": tuple("ghijklm")}
    ways = spread({"p0": "a", "p1": "f"}, replicas, lambda _part, _device: True)
    assert len(ways) == 8 <= MAX_COURSES
    assert {way["p1"] for way in ways} == set("fghijklm")


def test_a_partition_that_reads_nothing_hears_of_the_request() -> None:
    tasks = [Task("made", (), ("c",)), *(Task(name, reads, makes) for name, reads, makes in CHAIN)]
    flow = Flow(tasks, ("x",), ("y", "c"), {})
    course = lay_course(flow, 1, {"made": "z", "p0": "a", "p1": "b", "p2": "b"})
    assert course.from_hub["x"] == ("a", "z")
    sends = sends_to_begin(flow, course, ["x"], parts_to_run(flow, ["x"]))
    assert sends == [("x", "a"), ("x", "z")]
