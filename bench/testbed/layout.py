"""What a testbed consists of, as plain values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hyps.errors import UsageError, printable

SWITCH = "switch"
"""A wire's end that is no machine: whoever has a wire to it reaches whoever else has one."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")
_MOST_MACHINES = 250
_LEAST_PERIOD_S = 2e-3
_MOST_DELAY_S = 10.0
_LEAST_PACED_FRACTION = 0.06  # the kernel keeps a twentieth of a core for those that a pacer would starve


@dataclass(frozen=True, slots=True)
class Machine:
    """One device to be."""

    cpu_fraction: float | None = None
    """How much of one core's time it has; above 1: of several cores. None: all there is."""
    memory_bytes: int | None = None
    """The most memory its processes may have together, page cache included; None: all there is."""
    core: int | None = None
    """The core that it is pinned to. With one, the device is slow evenly (`testbed.pacer` tells why that matters);
    without, it has a quota, which slows long work and leaves short work as fast as ever."""
    period_s: float = 0.1
    """Of the quota. Work that takes much less processor time than its part of a period is not slowed; with 10 ms, work
    of 25 ms and more is slowed by its factor whether the device rested before or not, and none to 20 % more."""

    @property
    def is_paced(self) -> bool:
        """Whether a pacer takes a part of its core's time away."""
        return self.core is not None and self.cpu_fraction is not None and self.cpu_fraction < 1


@dataclass(frozen=True, slots=True)
class Wire:
    """A link between two machines, or between a machine and the switch."""

    a: str
    b: str
    up_bytes_per_s: float | None = None
    """From `a` to `b`, headers of Ethernet, IP and TCP included, which take 4 % of it. None: not limited."""
    down_bytes_per_s: float | None = None
    """From `b` to `a`; None: as much as up."""
    delay_s: float = 0.0
    """What every packet takes in either direction beside its rate."""

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """Bytes per second from `a` to `b` and from `b` to `a`; None: not limited."""
        down = self.up_bytes_per_s if self.down_bytes_per_s is None else self.down_bytes_per_s
        return self.up_bytes_per_s, down


@dataclass(frozen=True, slots=True)
class Layout:
    """Machines and the wires between them; machines without a common wire or switch do not reach each other."""

    machines: Mapping[str, Machine]
    wires: tuple[Wire, ...] = ()
    is_forwarding: bool = False
    """Whether machines hand on packets for others, so that those that wires join over others reach each other too."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UsageError: a name, a figure or a wire is impossible.
        """
        for problem in (*self._machine_problems(), *self._wire_problems()):
            raise UsageError(problem)

    def address(self, name: str) -> str:
        """Return the one address of a machine, the same on all its wires."""
        return f"10.203.0.{1 + list(self.machines).index(name)}"

    def cores(self) -> tuple[int, ...]:
        """Return the cores that machines are pinned to, one for each such machine."""
        return tuple(machine.core for machine in self.machines.values() if machine.core is not None)

    def _machine_problems(self) -> list[str]:
        problems = []
        if not 1 <= len(self.machines) <= _MOST_MACHINES:
            problems.append(f"a testbed has 1 to {_MOST_MACHINES} machines, not {len(self.machines)}")
        for name, machine in self.machines.items():
            if not _NAME.fullmatch(name) or name == SWITCH:
                problems.append(f"`{printable(name)}` cannot name a machine")
            if machine.cpu_fraction is not None and machine.cpu_fraction <= 0:
                problems.append(f"machine `{name}` has a cpu_fraction of {machine.cpu_fraction}, not above 0")
            if not _LEAST_PERIOD_S <= machine.period_s <= 1:
                problems.append(
                    f"machine `{name}` has a period of {machine.period_s} s, not from {_LEAST_PERIOD_S} to 1"
                )
            if machine.is_paced and (machine.cpu_fraction or 1) < _LEAST_PACED_FRACTION:
                problems.append(f"machine `{name}` cannot have less than {_LEAST_PACED_FRACTION} of its core")
        paced = [machine.core for machine in self.machines.values() if machine.is_paced]
        shared = [name for name, machine in self.machines.items() if self._shares(machine) and machine.core in paced]
        if shared:
            problems.append(f"machine `{shared[0]}` shares its core, and of a paced core there is no second share")
        return problems

    def _shares(self, machine: Machine) -> bool:
        return machine.core is not None and self.cores().count(machine.core) > 1

    def _wire_problems(self) -> list[str]:
        problems, seen = [], set()
        for wire in self.wires:
            ends = frozenset((wire.a, wire.b))
            unknown = [end for end in (wire.a, wire.b) if end not in self.machines and end != SWITCH]
            if unknown:
                problems.append(f"a wire ends at `{printable(unknown[0])}`, which is no machine")
            if len(ends) == 1 or ends in seen:
                problems.append(f"there is one wire at most between `{wire.a}` and `{wire.b}`, and none to itself")
            if any(rate is not None and rate <= 0 for rate in wire.rates):
                problems.append(f"the wire between `{wire.a}` and `{wire.b}` has a rate that is not above 0")
            if not 0 <= wire.delay_s <= _MOST_DELAY_S:
                problems.append(f"the wire between `{wire.a}` and `{wire.b}` has a delay of {wire.delay_s} s")
            seen.add(ends)
        return problems
