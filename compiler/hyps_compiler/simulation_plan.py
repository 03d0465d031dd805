"""A plan on a cluster as the simulation takes it: what runs where and for how long is as the plan says.

Tensors go straight from the partition that makes them to those that need them, as workers send them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hyps.core.switching import best_variant
from hyps.errors import PlanError, UsageError, printable
from hyps.formats.cluster import Cluster
from hyps.formats.cluster import Link as ClusterLink
from hyps.formats.plan import Plan, Variant
from hyps_compiler.simulation_links import merged
from hyps_compiler.simulation_memory import Memory, decide_memory, hosts_of, tensor_nbytes
from hyps_compiler.simulation_system import REQUEST, Dataflow, Device, Down, Link, Partition, Step, System, Tensor

_HOW_TO_KNOW = "compile it with `hypsc compile MODEL -o PLAN --cluster C`, which measures, or takes --profile"


_STANDSTILL_BYTES_PER_S = 1e-9
"""What a link that does not move counts as where variants are chosen."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What happens to a cluster in the course of time, and how its variants are chosen."""

    rates: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """By the name of a link's direction, `camera to server`: from when on it moves how many bytes per second."""
    downs: Mapping[str, tuple[Down, ...]] = field(default_factory=dict)
    """By the name of a device or a link's direction."""
    variant: str | None = None
    """None: the plan's first."""
    switches: bool = False
    """Whether each request takes the variant that is best at the bandwidth of its beginning."""
    load_bytes_per_s: float = 100e6
    """How fast devices read the partitions that they do not keep."""


def plan_system(plan: Plan, cluster: Cluster | None, conditions: Conditions) -> System:
    """Return the system of a plan on a cluster; without one, of a plan for one device.

    Raises:
        PlanError: the plan does not say how long its partitions take, or how large a tensor is.
        UsageError: the plan names a device that the cluster has not, the conditions name what is not there, or there
            is nothing to switch between.
        InfeasibleError: a device cannot hold one of its partitions.
    """
    variants = _chosen(plan, conditions)
    names = _device_names(plan, variants, cluster)
    links = _links(cluster, names, conditions)
    _refuse_unknown(conditions, names, links)
    limits = {device.name: device.memory_bytes for device in cluster.devices} if cluster else {}
    memories = {
        name: decide_memory(plan, variants, name, nbytes) for name in names if (nbytes := limits.get(name)) is not None
    }
    entry = plan.entry or (cluster.entry if cluster and len(names) > 1 else names[0])
    if entry not in names:
        raise _unknown_device(entry, "requests arise", names)
    return System(
        devices=tuple(
            Device(name, merged(conditions.downs.get(name, ())), memories[name].room if name in memories else None)
            for name in names
        ),
        links=links,
        dataflows=tuple(_dataflow(plan, variant, names, memories, cluster, conditions) for variant in variants),
        entry=names.index(entry),
        choose=_chooser(plan, variants, cluster, names, links) if conditions.switches else None,
    )


def _chosen(plan: Plan, conditions: Conditions) -> tuple[Variant, ...]:
    if conditions.switches:
        if len(plan.variants) < 2:
            raise UsageError("the plan has one variant only, so that there is nothing to switch between")
        return plan.variants
    found = [v for v in plan.variants if conditions.variant in (None, v.name)]
    if not found:
        names = ", ".join(f"`{printable(v.name, 40)}`" for v in plan.variants)
        raise UsageError(f"the plan has no variant `{printable(conditions.variant or '')}`", f"it has {names}")
    return (found[0],)


def _device_names(plan: Plan, variants: Sequence[Variant], cluster: Cluster | None) -> list[str]:
    """Return the devices: the cluster's, or the only one of a plan that needs none."""
    used = list(dict.fromkeys(name for v in variants for part in plan.partitions for name in hosts_of(v, part.id)))
    if plan.entry is not None and plan.entry not in used:
        used.append(plan.entry)
    if len(used) == 1 and (cluster is None or plan.entry is None):
        return used
    if cluster is None:
        shown = ", ".join(f"`{printable(name, 40)}`" for name in used[:8])
        raise UsageError(f"the plan needs several devices: {shown}", "say what joins them: --cluster cluster.toml")
    names = [device.name for device in cluster.devices]
    for variant in variants:
        for part in plan.partitions:
            for name in hosts_of(variant, part.id):
                if name not in names:
                    raise _unknown_device(name, f"partition `{printable(part.id)}` runs", names)
    return names


def _unknown_device(name: str, what: str, names: Sequence[str]) -> UsageError:
    known = ", ".join(f"`{printable(n, 40)}`" for n in names)
    return UsageError(
        f"by the plan {what} on `{printable(name)}`, which is no device of the cluster", f"it has {known}"
    )


# Links.


def _links(cluster: Cluster | None, names: Sequence[str], conditions: Conditions) -> tuple[Link, ...]:
    if cluster is None or len(names) == 1:
        return ()
    return tuple(link for told in cluster.links for link in _directions(told, names, conditions))


def _directions(told: ClusterLink, names: Sequence[str], conditions: Conditions) -> list[Link]:
    first, second = told.between
    made = []
    for source, target, rate in ((first, second, told.up_bytes_per_s), (second, first, told.down_bytes_per_s)):
        name = f"{source} to {target}"
        steps = tuple(
            Step(from_s, 1 / value + told.serialize_s_per_byte if value else float("inf"))
            for from_s, value in conditions.rates.get(name, ())
        )
        made.append(
            Link(
                name,
                names.index(source),
                names.index(target),
                1 / rate + told.serialize_s_per_byte,
                told.latency_s,
                told.message_s,
                steps,
                merged(conditions.downs.get(name, ())),
            )
        )
    return made


def _refuse_unknown(conditions: Conditions, names: Sequence[str], links: Sequence[Link]) -> None:
    known_links = [link.name for link in links]
    for name in conditions.rates:
        if name not in known_links:
            raise UsageError(f"the cluster has no link `{printable(name)}`", _known("it has", known_links))
    for name in conditions.downs:
        if name not in (*names, *known_links):
            raise UsageError(
                f"`{printable(name)}` is neither a device nor a link", _known("there are", [*names, *known_links])
            )


def _known(start: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"`{printable(name, 60)}`" for name in names[:8])
    return f"{start} {shown}{', ...' if len(names) > 8 else ''}" if names else "the plan is simulated on one device"


# Partitions and tensors.


def _dataflow(
    plan: Plan,
    variant: Variant,
    names: Sequence[str],
    memories: Mapping[str, Memory],
    cluster: Cluster | None,
    conditions: Conditions,
) -> Dataflow:
    partitions = []
    for part in plan.partitions:
        seconds = variant.prediction.partition_s.get(part.id)
        if seconds is None:
            raise PlanError(
                f"the plan does not say how long partition `{printable(part.id)}` takes in variant "
                f"`{printable(variant.name)}`",
                _HOW_TO_KNOW,
                "E_NO_TIMES",
            )
        first, *_ = hosts = hosts_of(variant, part.id)
        kept = memories[first].kept if first in memories else None
        partitions.append(
            Partition(
                part.id,
                tuple((names.index(h), seconds * _slower(cluster, first, h, part.id)) for h in hosts),
                kept is not None and part.id not in kept,
                part.weight_bytes / conditions.load_bytes_per_s,
            )
        )
    return Dataflow(variant.name, tuple(partitions), _tensors(plan))


def _slower(cluster: Cluster | None, first: str, other: str, partition: str) -> float:
    """Return how many times as long another device takes."""
    if first == other or cluster is None:
        return 1.0
    one, two = cluster.device(first), cluster.device(other)
    if one.profile is not None or two.profile is not None:
        raise PlanError(
            f"the plan does not say how long partition `{printable(partition)}` takes on `{printable(other)}`, "
            "which has a profile of its own",
            "give the device a `speed` in the cluster file",
            "E_NO_TIMES",
        )
    return one.speed * (1 - one.load) / (two.speed * (1 - two.load))


def _tensors(plan: Plan) -> tuple[Tensor, ...]:
    outputs = {tensor.name for tensor in plan.model.outputs}
    users: dict[str, list[int]] = {}
    for index, part in enumerate(plan.partitions):
        for name in part.inputs:
            users.setdefault(name, []).append(index)
    made = [(REQUEST, tensor.name) for tensor in plan.model.inputs]
    made += [(index, name) for index, part in enumerate(plan.partitions) for name in part.outputs]
    return tuple(
        Tensor(name, tensor_nbytes(plan, name), producer, tuple(dict.fromkeys(users.get(name, ()))), name in outputs)
        for producer, name in made
        if name in users or name in outputs
    )


# Switching.


def _chooser(
    plan: Plan, variants: Sequence[Variant], cluster: Cluster | None, names: Sequence[str], links: Sequence[Link]
) -> Callable[[float], int]:
    """Return what chooses a variant by the bandwidth from the entry to the other device at a moment."""
    entry = plan.entry or names[0]
    others = sorted({h for v in variants for part in plan.partitions for h in hosts_of(v, part.id)} - {entry})
    found = [link for link in links if others and link.name == f"{entry} to {others[0]}"]
    if len(others) != 1 or cluster is None or not found:
        raise UsageError(
            "variants are switched by the bandwidth between two devices, and no link joins just two that the plan uses",
            "leave --switch out",
        )
    link, load = found[0], cluster.device(others[0]).load
    serialize_s = next(k.serialize_s_per_byte for k in cluster.links if set(k.between) == {entry, others[0]})
    place = {variant.name: index for index, variant in enumerate(variants)}

    def choose(now: float) -> int:
        wire_s = link.s_per_byte_at(now) - serialize_s
        rate = max(1 / wire_s, _STANDSTILL_BYTES_PER_S)
        if plan.regimes:
            best = best_variant(plan.regimes, rate, load=load)
            return 0 if best is None else place[best]
        return next((i for i, v in enumerate(variants) if _suits(v, rate)), 0)

    return choose


def _suits(variant: Variant, bytes_per_s: float) -> bool:
    if variant.bytes_per_s is None:
        return False
    low, high = variant.bytes_per_s
    return low <= bytes_per_s and (high is None or bytes_per_s < high)
