"""What is kept loaded under a budget."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from form_fixtures import write_formed
from hyps.core.residency import (
    Residency,
    Task,
    by_weight,
    decide_residency,
    decide_with_read_ahead,
    has_room_for_speed,
    live_activations,
    loaded_nbytes,
    packable,
    tasks_of,
)
from hyps.errors import InfeasibleError
from plan_fixtures import mlp

_MB = 10**6


def chain(*weights: int, activation: int = 10) -> tuple[list[Task], dict[str, int]]:
    tasks = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), weight) for i, weight in enumerate(weights)]
    sizes = {f"t{i}": activation for i in range(len(weights) + 1)}
    return tasks, live_activations(tasks, ["t0"], [f"t{len(weights)}"], sizes)


def test_all_is_kept_without_a_budget() -> None:
    tasks, live = chain(400, 16, 8)
    residency = decide_residency(tasks, live, None, 0)
    assert residency.kept == {"p0", "p1", "p2"}
    assert residency.spare_nbytes is None


def test_all_is_kept_when_all_fits_exactly() -> None:
    tasks, live = chain(400, 16, 8)
    residency = decide_residency(tasks, live, 50 + 424 + 20, 50)
    assert residency.kept == {"p0", "p1", "p2"}
    assert residency.spare_nbytes == 0


def test_the_most_bytes_are_kept_beside_the_largest_other() -> None:
    tasks, live = chain(400, 16, 8, 8)
    assert decide_residency(tasks, live, 450, 0).kept == {"p0", "p1"}
    assert decide_residency(tasks, live, 428, 0).kept == {"p2"}


def test_a_partition_that_is_too_large_is_named_with_the_smallest_budget() -> None:
    tasks, live = chain(30 * _MB, 400 * _MB, activation=10 * _MB)
    with pytest.raises(InfeasibleError, match="`p1`") as refusal:
        decide_residency(tasks, live, 450 * _MB, 50 * _MB)
    assert "--memory 471MB" in refusal.value.hint  # 470 and what a start may take more
    assert decide_residency(tasks, live, 470 * _MB, 50 * _MB).kept == frozenset()


def tiles(count: int, nbytes: int, own: int = 0) -> list[Task]:
    """Return partitions with the same weights, and each with `own` bytes more."""
    shared = (("w", nbytes),)
    return [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), nbytes + own, 0, shared) for i in range(count)]


def test_weights_that_several_share_count_once() -> None:
    tasks = tiles(5, 100, own=1)
    assert loaded_nbytes(tasks) == 105
    live = dict.fromkeys((task.id for task in tasks), 10)
    residency = decide_residency(tasks, live, 115, 0)
    assert len(residency.kept) == 5
    assert residency.spare_nbytes == 0
    assert decide_residency(tasks, live, 114, 0).kept != residency.kept


def test_less_is_kept_where_then_each_is_read_while_another_runs() -> None:
    tasks, live = chain(100, 100, 100, 20, 100, 100, 100)
    plain = decide_residency(tasks, live, 260, 0)
    assert len(plain.kept) == 2
    roomy = decide_with_read_ahead(tasks, live, 260, 0)
    assert roomy.kept == {"p3"}
    assert roomy.spare_nbytes == 260 - 20 - 100 - 20
    assert roomy.limit_nbytes == 260


def test_what_is_kept_is_not_given_up_for_reading_much_more() -> None:
    tasks, live = chain(100, 100)
    plain = decide_residency(tasks, live, 2 * 100 + 20 - 1, 0)
    assert decide_with_read_ahead(tasks, live, 2 * 100 + 20 - 1, 0) == plain
    assert decide_with_read_ahead(tasks, live, None, 0) == decide_residency(tasks, live, None, 0)


def test_there_is_room_for_speed_where_weights_fit_twice_and_beside_what_runs() -> None:
    tasks, _ = chain(30 * _MB, 20 * _MB)
    all_of_them = frozenset({"p0", "p1"})
    assert has_room_for_speed(tasks, Residency(all_of_them, None), 10**12)
    assert not has_room_for_speed(tasks, Residency(frozenset({"p0"}), 0, 10**12), 0)
    assert has_room_for_speed(tasks, Residency(all_of_them, 0, 100 * _MB), 10 * _MB)
    assert not has_room_for_speed(tasks, Residency(all_of_them, 0, 100 * _MB - 1), 10 * _MB)
    assert not has_room_for_speed(tasks, Residency(all_of_them, 0, 100 * _MB), 20 * _MB)
    assert has_room_for_speed(tasks, Residency(all_of_them, 0, 117 * _MB), 20 * _MB)
    assert not has_room_for_speed(
        [Task("p0", (), (), 30 * _MB, table_nbytes=_MB)], Residency(frozenset({"p0"}), 0, 61 * _MB), 0
    )


def test_the_heaviest_are_loaded_first_and_laid_out_anew_while_there_is_room_for_both() -> None:
    tasks, _ = chain(10, 40, 15)
    residency = Residency(frozenset({"p0", "p1", "p2"}), 5, 85)
    assert by_weight(tasks, residency.kept) == ["p1", "p2", "p0"]
    assert packable(tasks, residency) == {"p0", "p1", "p2"}
    assert packable(tasks, Residency(residency.kept, 5, 79)) == {"p0", "p2"}
    assert packable(tasks, Residency(frozenset({"p0"}), 5, 20)) == {"p0"}
    assert packable(tiles(2, 10), Residency(frozenset({"p0", "p1"}), 5, 1000)) == set()
    assert packable(tasks, Residency(residency.kept, None)) == residency.kept


def test_a_plans_partitions_share_what_is_read_of_the_same_place(tmp_path: Path) -> None:
    plan = write_formed(mlp(16, 16, 16), tmp_path / "plan")
    assert [task.shared for task in tasks_of(plan)] == [(), ()]
    first, second = plan.partitions
    assert first.form is not None
    assert second.form is not None
    twin = replace(
        second,
        weights=first.weights,
        form=replace(second.form, weights=first.form.weights),
    )
    shared = [task.shared for task in tasks_of(replace(plan, partitions=(first, twin)))]
    assert shared[0] == shared[1]
    assert [nbytes for _, nbytes in shared[0]] == [16 * 16 * 4]


def test_of_tables_only_the_rows_of_a_run_count(tmp_path: Path) -> None:
    """Rows are there while it runs, whole tables where weights are laid out anew, which is therefore not done."""
    plan = write_formed(mlp(16, 16, 16), tmp_path / "plan")
    form = plan.partitions[0].form
    assert form is not None
    form = replace(form, weights=(replace(form.weights[0], looked_up_by=("t0",)),))
    changed = [replace(part, form=form, weights=plan.partitions[0].weights) for part in plan.partitions]
    rows = 200
    peaks = [replace(part, peak_memory_bytes=128 + rows + part.weight_bytes - 1024) for part in changed]

    tasks = tasks_of(replace(plan, partitions=tuple(peaks)))

    assert [(task.weight_nbytes, task.table_nbytes) for task in tasks] == [
        (part.weight_bytes - 1024, 1024) for part in peaks
    ]
    assert [task.scratch_nbytes for task in tasks] == [rows, rows]
    assert [task.shared for task in tasks] == [(), ()]
    assert packable(tasks, Residency(frozenset({"v0", "v1"}), 0, 10**9)) == set()


def test_live_activations_last_until_the_last_use() -> None:
    tasks = [
        Task("a", ("x",), ("s", "u")),
        Task("b", ("s",), ("v",)),
        Task("c", ("u", "v"), ("y", "unused")),
    ]
    sizes = {"x": 1, "s": 10, "u": 100, "v": 1000, "y": 10_000, "unused": 100_000}
    assert live_activations(tasks, ["x"], ["y", "x"], sizes) == {"a": 111, "b": 1111, "c": 111_101}


@given(
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    scratch=st.lists(st.integers(0, 300), min_size=12, max_size=12),
    budget=st.integers(0, 6000),
    base=st.integers(0, 500),
)
def test_whatever_is_kept_every_partition_runs_within_the_budget(
    weights: list[int], scratch: list[int], budget: int, base: int
) -> None:
    tasks = [Task(f"p{i}", (f"t{i}",), (f"t{i + 1}",), w, scratch[i]) for i, w in enumerate(weights)]
    live = live_activations(tasks, ["t0"], [f"t{len(tasks)}"], {f"t{i}": 7 for i in range(len(tasks) + 1)})
    need = {task.id: live[task.id] + task.scratch_nbytes for task in tasks}
    if base + max(task.weight_nbytes + need[task.id] for task in tasks) > budget:
        with pytest.raises(InfeasibleError):
            decide_residency(tasks, live, budget, base)
        return
    residency = decide_residency(tasks, live, budget, base)
    kept = sum(task.weight_nbytes for task in tasks if task.id in residency.kept)
    running = [need[t.id] + (0 if t.id in residency.kept else t.weight_nbytes) for t in tasks]
    assert base + kept + max(running) <= budget
    assert residency.spare_nbytes == budget - base - kept - max(running)
    if base + sum(weights) + max(need.values()) <= budget:
        assert len(residency.kept) == len(tasks)
