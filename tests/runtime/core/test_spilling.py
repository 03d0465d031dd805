"""What leaves memory is what is needed last, everything is there when it is needed, and the room is kept."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from hyps.core.residency import Task, live_activations
from hyps.core.spilling import Forecast, Held, forecast, forecast_spills, leaving, next_use, uses_of

ROOMY = 10**9


@dataclass(frozen=True)
class Flow:
    """Random partitions: each uses some of what was made before."""

    tasks: tuple[Task, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nbytes: dict[str, int]

    def live(self) -> dict[str, int]:
        return live_activations(self.tasks, self.inputs, self.outputs, self.nbytes)

    def own(self, task: Task) -> int:
        """Return what the partition cannot do without, and the request's inputs that are still to be used."""
        uses, place = uses_of(self.tasks, self.outputs), self.tasks.index(task)
        pinned = [name for name in self.inputs if next_use(uses.get(name, ()), place) is not None]
        return self.total({*task.inputs, *task.outputs, *pinned})

    def total(self, names: set[str]) -> int:
        return sum(self.nbytes[name] for name in names)


@st.composite
def flows(draw: st.DrawFn, largest: int = 50) -> Flow:
    names = ["x", "z"]
    tasks = []
    for index in range(draw(st.integers(1, 10))):
        used = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        made = tuple(f"t{index}.{part}" for part in range(draw(st.integers(1, 2))))
        tasks.append(Task(f"p{index}", tuple(used), made, draw(st.integers(0, 20)), draw(st.integers(0, 5))))
        names += made
    outputs = draw(st.lists(st.sampled_from(names[2:]), min_size=1, max_size=3, unique=True))
    return Flow(tuple(tasks), ("x", "z"), tuple(outputs), {name: draw(st.integers(1, largest)) for name in names})


def rooms(flow: Flow, room_nbytes: int) -> dict[str, int]:
    return {task.id: room_nbytes for task in flow.tasks}


def foreseen(flow: Flow, room_nbytes: int) -> Forecast:
    return forecast(flow.tasks, flow.inputs, flow.outputs, flow.nbytes, rooms(flow, room_nbytes))


@given(flow=flows(), room_nbytes=st.integers(0, 400))
def test_every_input_is_there_when_it_is_needed_and_came_from_the_file_only_if_it_was_written(
    flow: Flow, room_nbytes: int
) -> None:
    found = foreseen(flow, room_nbytes)

    here, written, read_nbytes = set(flow.inputs), set[str](), 0
    for place, task in enumerate(flow.tasks):
        passage = found.passages[task.id]
        assert here.issuperset(passage.leaving)
        assert not set(passage.leaving) & {*task.inputs, *flow.inputs}
        here -= set(passage.leaving)
        written |= set(passage.leaving)
        assert written.issuperset(passage.returning)
        here |= set(passage.returning)
        read_nbytes += flow.total(set(passage.returning))
        assert here.issuperset(task.inputs)
        here |= set(task.outputs)
        here = {name for name in here if _is_needed(flow, name, place) or name in task.outputs}
    here |= set(found.last_returning)
    assert here.issuperset(flow.outputs)
    assert found.written_nbytes == flow.total(written)
    assert found.read_nbytes == read_nbytes + flow.total(set(found.last_returning))


@given(flow=flows(), room_nbytes=st.integers(0, 400))
def test_the_room_is_kept_wherever_what_a_partition_itself_needs_fits(flow: Flow, room_nbytes: int) -> None:
    found = foreseen(flow, room_nbytes)

    for task in flow.tasks[:-1]:
        assert found.live_nbytes[task.id] <= max(room_nbytes, flow.own(task))
    assert found.is_feasible == all(live <= room_nbytes for live in found.live_nbytes.values())


@given(flow=flows())
def test_with_room_for_all_nothing_leaves_and_what_is_alive_is_what_it_was(flow: Flow) -> None:
    found = foreseen(flow, ROOMY)

    assert found.written_nbytes == found.read_nbytes == 0
    assert dict(found.live_nbytes) == flow.live()
    assert forecast_spills(flow.tasks, flow.inputs, flow.outputs, flow.nbytes, flow.live(), ROOMY) is None
    assert forecast_spills(flow.tasks, flow.inputs, flow.outputs, flow.nbytes, flow.live(), None) is None


@given(flow=flows(), smaller=st.integers(0, 200), more=st.integers(1, 100))
def test_what_is_feasible_stays_so_with_more_room(flow: Flow, smaller: int, more: int) -> None:
    if foreseen(flow, smaller).is_feasible:
        assert foreseen(flow, smaller + more).is_feasible


@given(flow=flows(largest=1), room_nbytes=st.integers(1, 12), seed=st.integers(0, 9))
def test_of_equal_tensors_no_choice_reads_fewer_back(flow: Flow, room_nbytes: int, seed: int) -> None:
    assert foreseen(flow, room_nbytes).read_nbytes <= _read_by_chance(flow, room_nbytes, Random(seed))


@given(
    held=st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=2),
        st.builds(Held, st.integers(0, 50), st.integers(0, 9), st.booleans()),
    ),
    needed=st.sets(st.text("abcdefgh", min_size=1, max_size=2)),
    room_nbytes=st.integers(0, 300),
)
def test_no_more_leaves_than_must(held: dict[str, Held], needed: set[str], room_nbytes: int) -> None:
    gone = leaving(held, needed, room_nbytes)

    left = sum(one.nbytes for key, one in held.items() if key not in gone)
    assert all(held[key].may_leave and key not in needed for key in gone)
    assert all(left + held[key].nbytes > room_nbytes for key in gone)
    if left > room_nbytes:
        assert all(not held[key].may_leave or key in needed or not held[key].nbytes for key in set(held) - set(gone))


def test_the_farthest_next_use_goes_first() -> None:
    held = {"near": Held(10, 3), "far": Held(10, 9), "middle": Held(10, 5)}

    assert leaving(held, set(), 20) == ["far"]
    assert leaving(held, set(), 10) == ["far", "middle"]
    assert leaving(held, {"far"}, 10) == ["middle", "near"]


def test_a_small_tensor_stays_when_a_larger_one_has_to_go_anyway() -> None:
    assert leaving({"small": Held(1, 9), "large": Held(50, 5), "now": Held(10, 1)}, {"now"}, 11) == ["large"]


def test_of_two_ways_the_one_that_moves_fewer_bytes_is_taken() -> None:
    light, heavy = _skipping(weight=1), _skipping(weight=4)

    assert light.foreseen(45).room_nbytes["p2"] == 45 - 5  # all weights stay
    assert light.foreseen(45).written_nbytes == light.foreseen(45).read_nbytes == 10
    assert heavy.foreseen(45).room_nbytes["p2"] == 45 - 4  # all would leave no room for the largest pair


def test_where_one_partition_needs_more_than_there_is_it_shows_what_it_needs_alone() -> None:
    tight = _skipping(weight=1)

    assert tight.foreseen(41).is_feasible
    assert not tight.foreseen(40).is_feasible
    assert tight.foreseen(40).live_nbytes["p2"] == 40


@dataclass(frozen=True)
class Skipping:
    """Two large tensors in a row beside a small one that is used again behind them."""

    flow: Flow

    def foreseen(self, available_nbytes: int) -> Forecast:
        flow = self.flow
        found = forecast_spills(flow.tasks, flow.inputs, flow.outputs, flow.nbytes, flow.live(), available_nbytes)
        assert found is not None
        return found


def _skipping(weight: int) -> Skipping:
    steps = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), weight) for i in range(4)]
    sizes = {"t0": 10, "t1": 10, "t2": 20, "t3": 20, "t4": 10, "y": 10}
    return Skipping(Flow((*steps, Task("join", ("t1", "t4"), ("y",), weight)), ("t0",), ("y",), sizes))


def _is_needed(flow: Flow, name: str, place: int) -> bool:
    later = {used for task in flow.tasks[place + 1 :] for used in task.inputs}
    return name in later or name in flow.outputs


def _read_by_chance(flow: Flow, room: int, random: Random) -> int:
    """Return how many tensors of size 1 come back when chance says what leaves."""
    here, read = set(flow.inputs), 0
    for place, task in enumerate(flow.tasks):
        absent = set(task.inputs) - here
        read += len(absent)
        free = sorted(here - set(task.inputs) - set(flow.inputs))
        random.shuffle(free)
        over = len(here) + len(absent) + len(task.outputs) - room
        here = (here | absent) - set(free[: max(0, over)])
        here = {name for name in here | set(task.outputs) if _is_needed(flow, name, place)}
    return read + len(set(flow.outputs) - here)


def test_places_of_use_ascend() -> None:
    tasks = [Task("a", ("x",), ("s",)), Task("b", ("s", "s"), ("y",)), Task("c", ("s",), ("w",))]

    uses = uses_of(tasks, ["w", "s"])

    assert uses == {"x": (0,), "s": (1, 2, 3), "w": (3,)}
    assert all(before < after for places in uses.values() for before, after in pairwise(places))
    assert [next_use(uses["s"], place) for place in range(5)] == [1, 1, 2, 3, None]
