"""How a model itself says that it is to be divided, whatever the format in which it says it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """A node that cannot run in the stage it was given, since it needs what a later one makes."""

    node: str
    wanted: int
    stage: int
    """Where it runs instead."""


@dataclass(frozen=True, slots=True)
class WantedShards:
    """A node that is to be divided."""

    node: str
    outputs: tuple[str, ...]
    """What the node makes, and what follows from it alone, nearest first: fusion may leave any of them."""
    axis: int | None
    """Of its first output, counted from the end; None: parts of the sum that it computes."""
    count: int
    devices: tuple[int, ...] = ()
    """Of the parts, in their order; empty: not said."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where the model is to be cut, and more that was said about it."""

    origin: str
    """What says so, for messages: "configuration `two`"."""
    stage_of: Mapping[str, int]
    """The stage of every tensor that nodes of the graph compute from a request; no edge leads to a lower stage."""
    crossing: tuple[str, ...] = ()
    """Tensors that are used in other stages than made in."""
    moved: tuple[Moved, ...] = ()
    shards: tuple[WantedShards, ...] = ()
    num_devices: int | None = None
    """None: nothing is said of devices."""
    devices: tuple[str, ...] = ()
    """Their names; empty: they have none."""
    devices_of: Mapping[int, tuple[int, ...]] | None = None
    """Of each stage, the devices that its nodes name; one is right."""
