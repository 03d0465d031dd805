"""The emulated clusters: a slow device that asks, a server with a core of its own, and the link between them."""

from dataclasses import dataclass

from testbed import Layout, Machine, Wire

DEVICE, SERVER = "device", "server"
_MBIT = 1e6 / 8


@dataclass(frozen=True, slots=True)
class Pair:
    """One cluster of two tiers."""

    name: str
    cpu_fraction: float
    """How much of a core the device has; the server has a whole one."""
    bytes_per_s: float
    """Of the link, in each direction."""

    @property
    def layout(self) -> Layout:
        """What is built; both machines have their own core, so that neither slows the other."""
        machines = {DEVICE: Machine(self.cpu_fraction, core=0), SERVER: Machine(core=1)}
        return Layout(machines, (Wire(DEVICE, SERVER, self.bytes_per_s),))


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("camera", 0.25, 57 * _MBIT),
        Pair("gateway", 0.5, 200 * _MBIT),
        Pair("sensor", 0.125, 20 * _MBIT),
    )
}
