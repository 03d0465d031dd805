"""What is drawn for one rehearsal: how large it is, how the network is, and which faults it has."""

import dataclasses
import random
from collections.abc import Collection
from dataclasses import dataclass

from hyps_compiler.rehearsal.network import Weather

FAULTS = (
    "cut",
    "one-way-cut",
    "broken-link",
    "slow-link",
    "node-crash",
    "node-crash-at-effect",
    "manager-crash",
    "manager-crash-at-effect",
    "pause",
    "freeze",
    "slow-node",
    "hang",
    "no-load",
    "other-memory",
    "failing-item",
    "late-replan",
    "failed-replan",
    "cancel",
    "client-leaves",
    "deadline",
    "drain",
    "late-node",
    "duplicate-node",
)
"""Every kind of fault. Each rehearsal has some of them only, or some would hide what others show."""

_CALM = frozenset(("cancel", "client-leaves", "deadline", "drain", "failed-replan", "late-node", "late-replan"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One rehearsal; equal options and seeds are the same rehearsal."""

    seed: int
    devices: int
    spare_devices: int
    """Nodes that join and that the plan does not name."""
    clients: int
    requests: int
    """Of each client."""
    think_s: float
    """Between two requests of a client, about."""
    fault_s: float
    """How long there are faults."""
    heal_s: float
    """After which, without faults, everything has ended and works."""
    weather: Weather
    faults: frozenset[str]
    rates: dict[str, float]
    """How many of each fault there are in a second."""
    is_checked_always: bool
    """Whether state machines are looked through after each step; else after some."""
    batch: int
    """Requests that may go as one."""
    batch_wait_s: float
    is_via_hub: bool
    is_fixed: bool
    """Whether there is only the plan's own placement."""
    is_netless: bool
    """Whether the manager does without its last net, which begins stalled work anew: it hides what is lost."""
    max_requests: int
    max_nbytes: int
    """Of all requests in flight."""
    buffer_nbytes: int
    """Of tensors at one node."""

    @property
    def is_calm(self) -> bool:
        """Whether no link and no process fails, so that nothing needs a second attempt and deadlines are kept."""
        return self.faults <= _CALM

    def without(self, names: Collection[str]) -> "Options":
        """Return the same rehearsal without some faults."""
        return dataclasses.replace(self, faults=self.faults - frozenset(names))

    def expanded(self) -> str:
        """Return all that was drawn, a line each."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "rates":
                continue
            if field.name == "faults":
                value = ", ".join(f"{name} {self.rates[name]:.2g}/s" for name in sorted(value)) or "none"
            lines.append(f"{field.name:>16}  {value}")
        return "\n".join(lines)


def draw_options(seed: int) -> Options:
    """Return what `seed` stands for."""
    rng = random.Random(f"options {seed}")
    chance = rng.choice((0.0, 0.1, 0.2, 0.35, 0.5))
    faults = frozenset(name for name in FAULTS if rng.random() < chance)
    if rng.random() < 0.15:
        faults = frozenset(name for name in sorted(_CALM) if rng.random() < 0.5)
    delay_s = rng.choice((0.0002, 0.001, 0.005, 0.03, 0.2))
    fault_s = rng.choice((1.0, 2.0, 2.0, 5.0, 5.0, 10.0, 30.0))
    requests = rng.choice((3, 10, 20, 40))
    return Options(
        seed=seed,
        devices=rng.choice((1, 2, 2, 3, 3, 4, 5)),
        spare_devices=rng.choice((0, 0, 0, 1, 2)),
        clients=rng.choice((1, 1, 2, 3)),
        requests=requests,
        think_s=rng.choice((0.0, 0.02, fault_s / requests, fault_s / requests)),
        fault_s=fault_s,
        heal_s=60.0,
        weather=Weather(
            delay_s=delay_s,
            jitter=rng.choice((0.0, 1.0, 20.0) if delay_s < 0.02 else (0.0, 1.0)),
            bytes_per_s=rng.choice((1e6, 1e7, 1e9)),
            silence_s=rng.choice((1.0, 3.0)),
            drops_on_loss=rng.choice((0.0, 0.5, 1.0)),
        ),
        faults=faults,
        rates={name: rng.choice((0.5, 2.0, 6.0)) / fault_s for name in FAULTS},
        is_checked_always=rng.random() < 0.3,
        batch=rng.choice((1, 1, 2, 4)),
        batch_wait_s=rng.choice((0.0, 0.005, 0.1)),
        is_via_hub=rng.random() < 0.2,
        is_fixed=rng.random() < 0.2,
        is_netless=rng.random() < 0.5,
        max_requests=rng.choice((1, 2, 8, 64)),
        max_nbytes=rng.choice((1_000_000, 100_000_000)),
        buffer_nbytes=rng.choice((400_000, 1_000_000, 100_000_000)),
    )
