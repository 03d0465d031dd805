from hypothesis import given
from hypothesis import strategies as st

from hyps.adapters.arena import Lifetime, lay_out


@st.composite
def lifetimes(draw: st.DrawFn) -> dict[str, Lifetime]:
    count = draw(st.integers(0, 24))
    drawn = {}
    for index in range(count):
        first = draw(st.integers(0, 12))
        drawn[f"t{index}"] = Lifetime(draw(st.integers(1, 5000)), first, first + draw(st.integers(0, 6)))
    return drawn


@given(lifetimes())
def test_tensors_that_live_together_never_share_bytes(tensors: dict[str, Lifetime]) -> None:
    layout = lay_out(tensors)

    for name, one in tensors.items():
        start, end = layout.offsets[name], layout.offsets[name] + one.nbytes
        assert start % 64 == 0
        assert start >= 0
        assert end <= layout.nbytes
        for other, two in tensors.items():
            if other != name and one.first <= two.last and two.first <= one.last:
                assert end <= layout.offsets[other] or layout.offsets[other] + two.nbytes <= start


@given(lifetimes())
def test_the_block_is_no_larger_than_all_tensors_and_no_smaller_than_those_alive_at_once(
    tensors: dict[str, Lifetime],
) -> None:
    total = lay_out(tensors).nbytes

    alive = [sum(t.nbytes for t in tensors.values() if t.first <= step <= t.last) for step in range(20)]
    assert max(alive) <= total <= sum(-(-t.nbytes // 64) * 64 for t in tensors.values())


def test_a_chain_needs_room_for_two_neighbours_only() -> None:
    chain = {f"t{step}": Lifetime(6400, step, step + 1) for step in range(50)}

    assert lay_out(chain).nbytes == 2 * 6400
