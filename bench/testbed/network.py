"""The commands that lay the wires of a layout between namespaces; pure, so that they can be read before they run."""

from collections.abc import Mapping

from testbed.layout import SWITCH, Layout

_MTU_NBYTES = 1600
"""A bucket must hold one whole packet; a larger one would let short messages through for nothing."""
_REFILL_S = 500e-6
"""What the bucket holds at high rates, in seconds: the kernel's timers wake late. A bulk transfer has 95 % of the rate
(the rest is headers) from 10 Mbit/s to 1 Gbit/s; with 50 microseconds it has 75 % at 200 Mbit/s."""
_QUEUE_S = 0.4
_SUBNET = "10.203.0.0/24"
_BRIDGE = "br0"


def namespaces_of(layout: Layout) -> tuple[str, ...]:
    """Return what needs a namespace: the machines, and the switch where a wire ends at it."""
    has_switch = any(SWITCH in (wire.a, wire.b) for wire in layout.wires)
    return (*layout.machines, SWITCH) if has_switch else tuple(layout.machines)


def wiring(layout: Layout, namespace: Mapping[str, str]) -> list[list[str]]:
    """Return commands that give machines their addresses and lay the wires, in order.

    Every machine has one address, on its loopback, and a route to each neighbour over their own wire.

    Args:
        layout: machines and wires.
        namespace: the existing network namespace of each machine, and of the switch where there is one.
    """
    commands = []
    for name in layout.machines:
        commands.append(["ip", "-n", namespace[name], "link", "set", "lo", "up"])
        commands.append(["ip", "-n", namespace[name], "addr", "add", f"{layout.address(name)}/32", "dev", "lo"])
    if SWITCH in namespace:
        commands.append(["ip", "-n", namespace[SWITCH], "link", "add", _BRIDGE, "type", "bridge"])
        commands.append(["ip", "-n", namespace[SWITCH], "link", "set", _BRIDGE, "up"])
    for index, wire in enumerate(layout.wires):
        card = f"wire{index}"
        first, second = namespace[wire.a], namespace[wire.b]
        pair = ["type", "veth", "peer", "name", card, "netns", second]
        commands.append(["ip", "-n", first, "link", "add", card, *pair])
        for here, there, rate in ((wire.a, wire.b, wire.rates[0]), (wire.b, wire.a, wire.rates[1])):
            commands += _end(layout, namespace[here], card, here, there)
            if rate is not None:
                commands.append(_shape(namespace[here], card, rate))
    return commands


def _end(layout: Layout, namespace: str, card: str, here: str, there: str) -> list[list[str]]:
    commands = [["ip", "-n", namespace, "link", "set", card, "up"]]
    if here == SWITCH:
        commands.append(["ip", "-n", namespace, "link", "set", card, "master", _BRIDGE])
    else:
        target = _SUBNET if there == SWITCH else layout.address(there)
        source = ["src", layout.address(here)]
        commands.append(["ip", "-n", namespace, "route", "add", target, "dev", card, *source])
    return commands


def _shape(namespace: str, card: str, bytes_per_s: float) -> list[str]:
    bucket_nbytes = max(_MTU_NBYTES, int(bytes_per_s * _REFILL_S))
    shape = ["tbf", "rate", f"{int(bytes_per_s * 8)}bit", "burst", f"{bucket_nbytes}b", "latency", f"{_QUEUE_S}s"]
    return ["tc", "-n", namespace, "qdisc", "add", "dev", card, "root", *shape]
