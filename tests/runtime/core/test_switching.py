import pytest

from hyps.core.switching import best_variant
from hyps.formats.plan import Regime

LOCAL = Regime(variant="local", batch=1, fixed_s=0.1, wire_bytes=0, server_s=0, corners=())
SPLIT = Regime(variant="split", batch=1, fixed_s=0.05, wire_bytes=1e5, server_s=0.01, corners=())
REMOTE = Regime(variant="remote", batch=1, fixed_s=0.0, wire_bytes=6e5, server_s=0.03, corners=())


@pytest.mark.parametrize(
    ("rate", "load", "variant"),
    [(1e6, 0.0, "local"), (5e6, 0.0, "split"), (1e9, 0.0, "remote"), (1e9, 0.5, "remote"), (1e9, 0.6, "split")],
)
def test_the_variant_that_answers_first_is_chosen(rate: float, load: float, variant: str) -> None:
    assert best_variant((LOCAL, SPLIT, REMOTE), rate, load=load) == variant


def test_the_next_larger_batch_counts() -> None:
    eight = Regime(variant="split", batch=8, fixed_s=0.2, wire_bytes=0, server_s=0, corners=())
    assert best_variant((LOCAL, eight), 1e6, batch=2) == "split"
    assert best_variant((LOCAL, eight), 1e6, batch=100) == "split"
    assert best_variant((LOCAL, eight), 1e6, batch=1) == "local"


def test_a_plan_without_regimes_has_no_choice() -> None:
    assert best_variant((), 1e6) is None


@pytest.mark.parametrize(("rate", "batch", "load"), [(0.0, 1, 0.0), (1.0, 0, 0.0), (1.0, 1, 1.0), (1.0, 1, -0.1)])
def test_impossible_conditions_are_refused(rate: float, batch: int, load: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        best_variant((LOCAL,), rate, batch=batch, load=load)
