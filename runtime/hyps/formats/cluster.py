"""The cluster: devices, the links between them, and what a placement on them must keep, as `cluster.toml` has them."""

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from hyps.errors import ClusterError, UsageError, printable
from hyps.formats.quantities import parse_bytes_per_s, parse_nbytes, parse_seconds

Tier = Literal["device", "edge", "cloud"]

TIERS: tuple[Tier, ...] = ("device", "edge", "cloud")
"""From where requests arise to where the most power is."""

_MAX_NBYTES = 2**20
_HINT = "docs/cluster.md describes the file; `hypsc cluster` writes one"
_Quantity = str | int | float
_Number = TypeVar("_Number", int, float)


class Device(Struct, frozen=True, kw_only=True):
    """One device."""

    name: str
    tier: Tier = "device"
    memory_bytes: int | None = None
    """What its worker may use; null: no limit."""
    speed: float = 1.0
    """How fast it is, against the profile that the search is given: 0.25 takes four times as long."""
    profile: str | None = None
    """A profile measured on it, instead of `speed`; a path, relative to the cluster file."""
    threads: int | None = None
    load: float = 0.0
    """The part of its power that others use: 0.5 makes everything take twice as long."""
    active_w: float = 0.0
    """Power while it computes, in watts; all devices 0: energy is not told."""
    idle_w: float = 0.0
    joules_per_byte: float = 0.0
    """Of what it sends."""
    is_trusted: bool = True
    """Whether it may see private tensors."""
    max_share: float = 1.0
    """The largest part of the model's weights that it may hold."""
    endpoint: str | None = None
    """Where its worker serves."""


class Link(Struct, frozen=True, kw_only=True):
    """The way between two devices, in both directions."""

    between: tuple[str, str]
    up_bytes_per_s: float
    """From the first to the second."""
    down_bytes_per_s: float
    latency_s: float = 0.0
    """One way."""
    message_s: float = 0.0
    """What each tensor costs, whatever its size."""
    serialize_s_per_byte: float = 0.0
    """What making and reading a message costs beside the wire."""
    max_bytes: int | None = None
    """Most bytes that one request may send in one direction."""


class Constraints(Struct, frozen=True, kw_only=True):
    """What a placement must keep; null is no constraint."""

    deadline_s: float | None = None
    joules: float | None = None
    """Of one request."""
    wire_bytes: int | None = None
    """Over all links, of one request."""
    throughput_rps: float | None = None
    """The least that is enough."""
    is_private: bool = False
    """Whether the request's tensors must stay on trusted devices."""
    private_until: str | None = None
    """The last layer of those whose tensors must stay on trusted devices as well."""
    pins: dict[str, str] = {}
    """Layer to the device that must run it."""
    bans: dict[str, tuple[str, ...]] = {}
    """Layer to devices that must not run it."""


class Cluster(Struct, frozen=True, kw_only=True):
    """What there is."""

    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    entry: str
    """The device at which requests arise and answers are wanted."""
    arrival_rps: float = 0.0
    """Requests that arrive in a second, at random moments; 0: one at a time."""
    constraints: Constraints = Constraints()

    def device(self, name: str) -> Device:
        """Return the device of that name."""
        return next(device for device in self.devices if device.name == name)


class _DeviceEntry(Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    tier: str = "device"
    memory: _Quantity | None = None
    speed: float | None = None
    profile: str | None = None
    threads: int | None = None
    load: float | None = None
    active_w: float | None = None
    idle_w: float | None = None
    joules_per_byte: float | None = None
    trusted: bool | None = None
    max_share: float | None = None
    endpoint: str | None = None


class _LinkEntry(Struct, frozen=True, forbid_unknown_fields=True):
    between: tuple[str, ...] = ()
    up: _Quantity | None = None
    down: _Quantity | None = None
    latency: _Quantity | None = None
    message: _Quantity | None = None
    serialize: float | None = None
    max_bytes: _Quantity | None = None


class _ConstraintsEntry(Struct, frozen=True, forbid_unknown_fields=True):
    deadline: _Quantity | None = None
    energy: float | None = None
    bytes: _Quantity | None = None
    throughput: float | None = None
    private: bool = False
    private_until: str | None = None
    pins: dict[str, str] = {}
    bans: dict[str, str | tuple[str, ...]] = {}


class _Defaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What devices and links have that do not say; a link between all devices that have none where `up` is given."""

    memory: _Quantity | None = None
    speed: float = 1.0
    threads: int | None = None
    load: float = 0.0
    active_w: float = 0.0
    idle_w: float = 0.0
    joules_per_byte: float = 0.0
    trusted: bool = True
    max_share: float = 1.0
    up: _Quantity | None = None
    down: _Quantity | None = None
    latency: _Quantity = 0.0
    message: _Quantity = 0.0
    serialize: float = 0.0


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[_DeviceEntry, ...] = ()
    links: tuple[_LinkEntry, ...] = ()
    entry: str | None = None
    arrival: float = 0.0
    defaults: _Defaults = _Defaults()
    constraints: _ConstraintsEntry = _ConstraintsEntry()


def decode_cluster(text: str, shown: str = "cluster.toml") -> Cluster:
    """Return the cluster that a TOML file holds, with defaults in place of what it leaves out.

    Args:
        text: the file.
        shown: what messages call it.

    Raises:
        ClusterError: no TOML, an unknown key, or wrong in itself; says the first problem and how many more there are.
    """
    if len(text) > _MAX_NBYTES:
        raise ClusterError(f"`{printable(shown)}` has {len(text)} characters, more than the {_MAX_NBYTES} allowed")
    try:
        told = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        reason = printable(str(error).replace("Object contains unknown field", "unknown key"), 200)
        raise ClusterError(f"`{printable(shown)}` is no cluster: {reason}", _HINT) from error
    reader = _Reader(told)
    cluster = reader.read()
    problems = [*reader.problems, *(cluster_problems(cluster) if cluster else ())]
    if problems or cluster is None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ClusterError(f"`{printable(shown)}` is wrong: {problems[0]}{more}", _HINT)
    return cluster


def cluster_problems(cluster: Cluster) -> list[str]:
    """Return what is wrong in the cluster, one phrase each; empty when all holds.

    Devices have names of their own; links join two of them, each pair once; every device can be reached from the entry
    and back; figures are such as can be.
    """
    names = [device.name for device in cluster.devices]
    problems = [f"device `{printable(name)}` stands twice" for name, n in sorted(Counter(names).items()) if n > 1]
    if any(not name for name in names):
        problems.append("a device has no name")
    if cluster.entry not in names:
        problems.append(f"`entry` is `{printable(cluster.entry)}`, which is no device")
    problems += _link_problems(cluster, set(names))
    problems += [problem for device in cluster.devices for problem in _device_problems(device)]
    problems += _constraint_problems(cluster, set(names))
    if not problems:
        far = sorted(set(names) - _reachable(cluster))
        problems += [f"no link leads to device `{printable(name)}` from `{printable(cluster.entry)}`" for name in far]
    return problems


class _Reader:
    """Turns what people write into figures, and collects what it cannot read."""

    def __init__(self, told: _File) -> None:
        self.told = told
        self.problems: list[str] = []

    def read(self) -> Cluster | None:
        if not self.told.devices:
            self.problems.append("it has no `[[devices]]`")
            return None
        devices = tuple(self._device(entry) for entry in self.told.devices)
        links = [link for index, entry in enumerate(self.told.links) for link in self._link(index, entry)]
        links += self._default_links([device.name for device in devices], links)
        return Cluster(
            devices=devices,
            links=tuple(links),
            entry=devices[0].name if self.told.entry is None else self.told.entry,
            arrival_rps=self.told.arrival,
            constraints=self._constraints(),
        )

    def _device(self, entry: _DeviceEntry) -> Device:
        base, where = self.told.defaults, f"device `{printable(entry.name)}`"
        if entry.tier not in TIERS:
            self.problems.append(f"{where} has the tier `{printable(entry.tier)}`, which is none of {', '.join(TIERS)}")
        if entry.speed is not None and entry.profile is not None:
            self.problems.append(f"{where} has both `speed` and `profile`; a profile tells the speed")
        memory = base.memory if entry.memory is None else entry.memory
        return Device(
            name=entry.name,
            tier=entry.tier if entry.tier in TIERS else "device",
            memory_bytes=None if memory is None else self._read(parse_nbytes, memory, f"`memory` of {where}", 1),
            speed=_or(entry.speed, 1.0 if entry.profile is not None else base.speed),
            profile=entry.profile,
            threads=base.threads if entry.threads is None else entry.threads,
            load=_or(entry.load, base.load),
            active_w=_or(entry.active_w, base.active_w),
            idle_w=_or(entry.idle_w, base.idle_w),
            joules_per_byte=_or(entry.joules_per_byte, base.joules_per_byte),
            is_trusted=base.trusted if entry.trusted is None else entry.trusted,
            max_share=_or(entry.max_share, base.max_share),
            endpoint=entry.endpoint,
        )

    def _link(self, index: int, entry: _LinkEntry) -> Iterator[Link]:
        where = f"link {index + 1}"
        if len(entry.between) != 2:
            self.problems.append(f"{where} has no `between` with the names of two devices")
            return
        source, target = entry.between
        where = f"the link between `{printable(source)}` and `{printable(target)}`"
        up = self.told.defaults.up if entry.up is None else entry.up
        if up is None:
            self.problems.append(f'{where} has no `up`, such as "57Mbit/s", and the defaults have none')
            return
        down = entry.down if entry.down is not None else up if entry.up is not None else _either(self.told.defaults)
        yield self._made_link((source, target), where, up, down, entry)

    def _made_link(
        self, between: tuple[str, str], where: str, up: _Quantity, down: _Quantity | None, entry: _LinkEntry
    ) -> Link:
        base = self.told.defaults
        latency = base.latency if entry.latency is None else entry.latency
        message = base.message if entry.message is None else entry.message
        most = entry.max_bytes
        return Link(
            between=between,
            up_bytes_per_s=self._read(parse_bytes_per_s, up, f"`up` of {where}", 1.0),
            down_bytes_per_s=self._read(parse_bytes_per_s, up if down is None else down, f"`down` of {where}", 1.0),
            latency_s=self._read(parse_seconds, latency, f"`latency` of {where}", 0.0),
            message_s=self._read(parse_seconds, message, f"`message` of {where}", 0.0),
            serialize_s_per_byte=_or(entry.serialize, base.serialize),
            max_bytes=None if most is None else self._read(parse_nbytes, most, f"`max_bytes` of {where}", 1),
        )

    def _default_links(self, names: list[str], links: list[Link]) -> list[Link]:
        """Join all devices that no link joins, where the defaults say how."""
        if self.told.defaults.up is None:
            return []
        joined = {frozenset(link.between) for link in links}
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if frozenset((a, b)) not in joined]
        return [link for a, b in pairs if a != b for link in self._link(0, _LinkEntry(between=(a, b)))]

    def _constraints(self) -> Constraints:
        told = self.told.constraints
        deadline, nbytes = told.deadline, told.bytes
        bans = {layer: (names,) if isinstance(names, str) else names for layer, names in told.bans.items()}
        return Constraints(
            deadline_s=None if deadline is None else self._read(parse_seconds, deadline, "`deadline`", 1.0),
            joules=told.energy,
            wire_bytes=None if nbytes is None else self._read(parse_nbytes, nbytes, "`bytes`", 1),
            throughput_rps=told.throughput,
            is_private=told.private or told.private_until is not None,
            private_until=told.private_until,
            pins=told.pins,
            bans=bans,
        )

    def _read(self, parse: Callable[[str], _Number], text: _Quantity, where: str, otherwise: _Number) -> _Number:
        try:
            return parse(str(text))
        except UsageError as error:
            self.problems.append(
                f"{where}: {error.message}; {error.hint}" if error.hint else f"{where}: {error.message}"
            )
            return otherwise


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _either(base: _Defaults) -> _Quantity | None:
    return base.up if base.down is None else base.down


def _device_problems(device: Device) -> Iterator[str]:
    where = f"device `{printable(device.name)}`"
    if not 0 < device.speed < math.inf:
        yield f"{where} has the speed {device.speed:g}, which is not above zero"
    if not 0 <= device.load < 1:
        yield f"{where} has the load {device.load:g}, which is not from 0 to below 1"
    if not 0 < device.max_share <= 1:
        yield f"{where} has the max_share {device.max_share:g}, which is not above 0 and up to 1"
    if device.threads is not None and device.threads < 1:
        yield f"{where} has {device.threads} threads"
    if not all(0 <= value < math.inf for value in (device.active_w, device.idle_w, device.joules_per_byte)):
        yield f"{where} has a power or an energy below zero"
    elif device.idle_w > device.active_w:
        yield f"{where} has an idle_w of {device.idle_w:g} above its active_w of {device.active_w:g}"


def _link_problems(cluster: Cluster, names: set[str]) -> Iterator[str]:
    seen = set()
    for link in cluster.links:
        source, target = link.between
        shown = f"the link between `{printable(source)}` and `{printable(target)}`"
        for name in link.between:
            if name not in names:
                yield f"{shown} names `{printable(name)}`, which is no device"
        if source == target:
            yield f"{shown} joins a device with itself"
        if frozenset(link.between) in seen:
            yield f"{shown} stands twice"
        seen.add(frozenset(link.between))
        if not all(0 <= value < math.inf for value in (link.latency_s, link.message_s, link.serialize_s_per_byte)):
            yield f"{shown} has a time below zero"


def _constraint_problems(cluster: Cluster, names: set[str]) -> Iterator[str]:
    told = cluster.constraints
    for what, value in (("deadline", told.deadline_s), ("energy", told.joules), ("throughput", told.throughput_rps)):
        if value is not None and not 0 < value < math.inf:
            yield f"the constraint `{what}` is {value:g}, which is not above zero"
    if not 0 <= cluster.arrival_rps < math.inf:
        yield f"`arrival` is {cluster.arrival_rps:g}, which is no rate"
    for layer, device in told.pins.items():
        if device not in names:
            yield f"layer `{printable(layer)}` is pinned to `{printable(device)}`, which is no device"
    for layer, device in _banned(told.bans.items()):
        if device not in names:
            yield f"layer `{printable(layer)}` is banned from `{printable(device)}`, which is no device"
    if told.is_private and not cluster.device(cluster.entry).is_trusted if cluster.entry in names else False:
        yield f"requests are private and the entry `{printable(cluster.entry)}` is not trusted"


def _banned(bans: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, str]]:
    for layer, devices in bans:
        yield from ((layer, device) for device in devices)


def _reachable(cluster: Cluster) -> set[str]:
    found, todo = {cluster.entry}, [cluster.entry]
    while todo:
        name = todo.pop()
        for link in cluster.links:
            if name in link.between:
                other = link.between[link.between[0] == name]
                if other not in found:
                    found.add(other)
                    todo.append(other)
    return found
