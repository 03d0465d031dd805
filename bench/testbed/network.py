"""The commands that lay the wires of a layout between namespaces; pure, so that they can be read before they run."""

from collections.abc import Iterator, Mapping

from testbed.layout import SWITCH, Layout, Wire

_MTU_NBYTES = 1600
"""A bucket must hold one whole packet; a larger one would let short messages through for nothing."""
_REFILL_S = 500e-6
"""What the bucket holds at high rates, in seconds: the kernel's timers wake late. A bulk transfer has 95 % of the rate
(the rest is headers) from 10 Mbit/s to 1 Gbit/s; with 50 microseconds it has 75 % at 200 Mbit/s."""
_QUEUE_S = 0.4
_MOST_BUNDLED_NBYTES = 65_536
_QUEUE_PACKETS = 10_000
"""Of a device that a relay reads: it may be late, and a packet lost to that would be none that a wire loses."""
_SUBNET = "10.203.0.0/24"
_BRIDGE = "br0"


def namespaces_of(layout: Layout) -> tuple[str, ...]:
    """Return what needs a namespace: the machines, and the switch where a wire ends at it."""
    has_switch = any(SWITCH in (wire.a, wire.b) for wire in layout.wires)
    return (*layout.machines, SWITCH) if has_switch else tuple(layout.machines)


def card_of(index: int) -> str:
    """Return what the wire of that index in its layout is called at both ends."""
    return f"wire{index}"


def wiring(layout: Layout, namespace: Mapping[str, str]) -> list[list[str]]:
    """Return commands that give machines their addresses and lay the wires, in order.

    Every machine has one address, on its loopback, and a route to each neighbour over their own wire. A wire with a
    delay is two TAP devices, which `testbed.relay` joins.

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
        card = card_of(index)
        commands += _cards(card, namespace[wire.a], namespace[wire.b], wire)
        for here, there, rate in ((wire.a, wire.b, wire.rates[0]), (wire.b, wire.a, wire.rates[1])):
            commands += _end(layout, namespace[here], card, here, there)
            if rate is not None:
                commands.append(_shape(namespace[here], card, rate))
                if here != SWITCH:
                    commands.append(_bundle(namespace[here], card, rate))
    if layout.is_forwarding:
        for name in layout.machines:
            commands += _far_routes(layout, namespace[name], name)
    return commands


def _cards(card: str, first: str, second: str, wire: Wire) -> Iterator[list[str]]:
    """Yield the commands that make both ends of a wire."""
    if not wire.delay_s:
        yield ["ip", "-n", first, "link", "add", card, "type", "veth", "peer", "name", card, "netns", second]
        return
    for namespace in (first, second):
        yield ["ip", "-n", namespace, "tuntap", "add", "dev", card, "mode", "tap", "vnet_hdr"]
        yield ["ip", "-n", namespace, "link", "set", card, "txqueuelen", str(_QUEUE_PACKETS)]


def _end(layout: Layout, namespace: str, card: str, here: str, there: str) -> Iterator[list[str]]:
    yield ["ip", "-n", namespace, "link", "set", card, "up"]
    if here == SWITCH:
        yield ["ip", "-n", namespace, "link", "set", card, "master", _BRIDGE]
    else:
        target = _SUBNET if there == SWITCH else layout.address(there)
        yield ["ip", "-n", namespace, "route", "add", target, "dev", card, "src", layout.address(here)]


def _far_routes(layout: Layout, namespace: str, here: str) -> Iterator[list[str]]:
    """Yield the commands that let a machine hand packets on, and reach those that are neighbours of neighbours."""
    forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
    yield ["nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", forward]
    for there, (neighbour, card) in _ways(layout, here).items():
        if neighbour != there:
            way = ["via", layout.address(neighbour), "dev", card, "onlink", "src", layout.address(here)]
            yield ["ip", "-n", namespace, "route", "add", layout.address(there), *way]


def _ways(layout: Layout, here: str) -> dict[str, tuple[str, str]]:
    """Return over which neighbour, and which card, the fewest wires lead to every other machine."""
    neighbours: dict[str, dict[str, str]] = {name: {} for name in layout.machines}
    for index, wire in enumerate(layout.wires):
        if SWITCH not in (wire.a, wire.b):
            neighbours[wire.a][wire.b] = neighbours[wire.b][wire.a] = card_of(index)
    found = {name: (name, card) for name, card in neighbours[here].items()}
    todo = list(found)
    for name in todo:
        for beyond in neighbours[name]:
            if beyond not in found and beyond != here:
                found[beyond] = found[name]
                todo.append(beyond)
    return found


def _bundle(namespace: str, card: str, bytes_per_s: float) -> list[str]:
    """Let TCP hand on as many packets at once as the bucket holds; tbf cuts what is larger into single ones.

    For those the sender would pay, of its own processor time, what no network card makes it pay.
    """
    nbytes = min(_MOST_BUNDLED_NBYTES, int(0.9 * _bucket_nbytes(bytes_per_s)))  # the headers of each count as well
    return ["ip", "-n", namespace, "link", "set", card, "gso_max_size", str(nbytes)]


def _bucket_nbytes(bytes_per_s: float) -> int:
    return max(_MTU_NBYTES, int(bytes_per_s * _REFILL_S))


def _shape(namespace: str, card: str, bytes_per_s: float) -> list[str]:
    bucket_nbytes = _bucket_nbytes(bytes_per_s)
    shape = ["tbf", "rate", f"{int(bytes_per_s * 8)}bit", "burst", f"{bucket_nbytes}b", "latency", f"{_QUEUE_S}s"]
    return ["tc", "-n", namespace, "qdisc", "add", "dev", card, "root", *shape]
