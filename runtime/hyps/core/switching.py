"""Which variant of a plan is best under the conditions of the moment: looked up, never searched."""

from collections.abc import Sequence

from hyps.formats.plan import Regime


def best_variant(regimes: Sequence[Regime], bytes_per_s: float, *, batch: int = 1, load: float = 0.0) -> str | None:
    """Return the variant that answers first; None where the plan has no regimes.

    The regimes of a batch are the lower envelope of what all cuts cost, so the least of them is the best cut there is
    (`Regime`). Between batches that were measured the next larger one counts, beyond them the largest.

    Args:
        regimes: the plan's.
        bytes_per_s: bandwidth of the link between the two devices.
        batch: requests that are computed together.
        load: the part of the server's power that others use, from 0 to below 1.

    Raises:
        ValueError: a figure is out of its range.
    """
    if bytes_per_s <= 0 or batch < 1 or not 0 <= load < 1:
        raise ValueError(f"bandwidth {bytes_per_s:g}, batch {batch} or load {load:g} is out of range")
    batches = sorted({regime.batch for regime in regimes})
    if not batches:
        return None
    nearest = next((known for known in batches if known >= batch), batches[-1])
    mine = [regime for regime in regimes if regime.batch == nearest]
    return min(mine, key=lambda r: (regime_s(r, bytes_per_s, load=load), r.variant)).variant


def regime_s(regime: Regime, bytes_per_s: float, *, load: float = 0.0) -> float:
    """Return the seconds that a request takes with the regime's variant."""
    return regime.fixed_s + regime.wire_bytes / bytes_per_s + regime.server_s / (1 - load)
