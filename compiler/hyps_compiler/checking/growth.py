"""What has changed since an earlier plan: which layer grew, which partitions appeared, disappeared or grew."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from hyps_compiler.checking.facts import Layer, PartitionFacts, PlanFacts, layers_of

_MOST_ALIGNED = 2000
"""Layers that are aligned by what they are; of more, renamed ones are paired in their order."""

_NOTABLE_NBYTES, _NOTABLE_SHARE = 4096, 0.03
"""A layer that grew by less has not done anything that a limit is about."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """The layer that made a figure what it is."""

    layer: Layer
    before: Layer | None = None
    """What it was in the previous plan; None where it is new, or there is no previous plan."""
    is_new: bool = False
    """There is a previous plan and it is not in it."""

    @property
    def has_grown(self) -> bool:
        """Whether it is notably larger than in the previous plan, or new and of notable size.

        A partition holds its own copies of shapes and other small constants, so that dividing a model otherwise adds
        some bytes to layers in which nothing has changed.
        """
        if self.before is None and not self.is_new:
            return False
        least = self.before.weight_bytes * _NOTABLE_SHARE if self.before else 0
        return self.rise_bytes >= _NOTABLE_NBYTES and self.rise_bytes > least

    @property
    def rise_bytes(self) -> int:
        """By how much its weights are larger than before; all of them where nothing is known from before."""
        return self.layer.weight_bytes - (self.before.weight_bytes if self.before else 0)


@dataclass(frozen=True, slots=True)
class PartitionChange:
    """One partition that is not what it was."""

    change: Literal["appeared", "disappeared", "grew", "shrank"]
    id: str
    """In the new plan; of one that disappeared, in the previous."""
    before_bytes: int = 0
    after_bytes: int = 0


def match_layers(new: Sequence[Layer], old: Sequence[Layer]) -> dict[str, Layer]:
    """Return which old layer each new one was, by the new one's name; new layers without an old one are not in it.

    1. Layers of one name are one layer.
    2. Of the others, those of one kind and size that stand in the same order.
    3. Of the rest, those of one kind between the same neighbours, in their order.
    """
    by_name = {layer.name: layer for layer in old}
    found = {layer.name: by_name[layer.name] for layer in new if layer.name in by_name}
    _align(new, old, found)
    place = {layer.name: index for index, layer in enumerate(old)}
    taken = {layer.name for layer in found.values()}
    gaps: dict[tuple[int, str], list[Layer]] = {}
    anchor = -1
    for layer in old:
        anchor = place[layer.name] if layer.name in taken else anchor
        if layer.name not in taken:
            gaps.setdefault((anchor, layer.kind), []).append(layer)
    anchor = -1
    for layer in new:
        if layer.name in found:
            anchor = place[found[layer.name].name]
        elif waiting := gaps.get((anchor, layer.kind)):
            found[layer.name] = waiting.pop(0)
    return found


def culprit(layers: Sequence[Layer], plan: PlanFacts, previous: PlanFacts | None) -> Culprit | None:
    """Return the layer among `layers` that grew most since the previous plan, or the largest where none has grown.

    None where there are no layers.
    """
    whole = layers_of(plan.partitions)
    return grown_most([whole.get(layer.name, layer) for layer in layers], list(whole.values()), previous)


def grown_most(among: Sequence[Layer], whole: Sequence[Layer], previous: PlanFacts | None) -> Culprit | None:
    """Return the layer of `among`, a part of `whole`, that grew most, or the largest where none has grown."""
    if not among:
        return None
    largest = max(among, key=lambda layer: layer.weight_bytes)
    if previous is None:
        return Culprit(largest)
    was = match_layers(whole, list(layers_of(previous.partitions).values()))
    known = [Culprit(layer, was.get(layer.name), layer.name not in was) for layer in among]
    grown = [found for found in known if found.has_grown]
    return max(grown, key=lambda found: found.rise_bytes, default=Culprit(largest, was.get(largest.name)))


def partition_changes(plan: PlanFacts, previous: PlanFacts) -> list[PartitionChange]:
    """Return the partitions that appeared, disappeared, or hold more or less weights than before.

    A partition is the one of the previous plan with which it shares most layers, of those that are left.
    """
    was = match_layers(list(layers_of(plan.partitions).values()), list(layers_of(previous.partitions).values()))
    paired = _pairs(plan.partitions, previous.partitions, {new: old.name for new, old in was.items()})
    changes = []
    for part in plan.partitions:
        before = paired.get(part.id)
        if before is None:
            changes.append(PartitionChange("appeared", part.id, after_bytes=part.weight_bytes))
        elif part.weight_bytes != before.weight_bytes:
            word: Literal["grew", "shrank"] = "grew" if part.weight_bytes > before.weight_bytes else "shrank"
            changes.append(PartitionChange(word, part.id, before.weight_bytes, part.weight_bytes))
    kept = {before.id for before in paired.values()}
    gone = [part for part in previous.partitions if part.id not in kept]
    return changes + [PartitionChange("disappeared", part.id, before_bytes=part.weight_bytes) for part in gone]


def _align(new: Sequence[Layer], old: Sequence[Layer], found: dict[str, Layer]) -> None:
    """Add the pairs of layers that differ in nothing but their names."""
    taken = {layer.name for layer in found.values()}
    left_new = [layer for layer in new if layer.name not in found]
    left_old = [layer for layer in old if layer.name not in taken]
    if max(len(left_new), len(left_old)) > _MOST_ALIGNED:
        return
    key: Callable[[Layer], tuple[str, int]] = lambda layer: (layer.kind, layer.weight_bytes)  # noqa: E731
    matcher = SequenceMatcher(None, [key(layer) for layer in left_old], [key(layer) for layer in left_new], False)
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            found[left_new[block.b + offset].name] = left_old[block.a + offset]


def _pairs(
    new: Iterable[PartitionFacts], old: Sequence[PartitionFacts], old_name: Mapping[str, str]
) -> dict[str, PartitionFacts]:
    """Return the old partition of each new one that has one, each old one once; parts of a layer keep their order."""
    holders: dict[str, list[int]] = {}
    for index, part in enumerate(old):
        for layer in part.layers:
            holders.setdefault(layer.name, []).append(index)
    taken: set[int] = set()
    found = {}
    for part in new:
        shared: dict[int, int] = {}
        for layer in part.layers:
            for index in holders.get(old_name.get(layer.name, ""), ()):
                if index not in taken:
                    shared[index] = shared.get(index, 0) + 1
        if shared:
            best = min(shared, key=lambda index: (-shared[index], index))
            taken.add(best)
            found[part.id] = old[best]
    return found
