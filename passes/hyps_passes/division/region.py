"""What is divided: the nodes, the axis, and whether pieces hand on what the next one needs too."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that are divided together, so that nothing is merged between them.

    Backward from the last node every value is divided along the axis that the rules tell; a value from outside the
    region is cut by a `Slice`, a constant when the plan is made.
    """

    name: str
    """For people: a layer's name, or `first..last` of several."""
    nodes: tuple[str, ...]
    """Names of the nodes, in running order; those that compute from constants alone come along by themselves."""
    axis: int | None
    """Of the last node's first output, counted from the end; None: the last node's sum is divided, its pieces added."""
    carry: bool = False
    """Whether each piece hands the overlap to the next one, instead of both computing it: nothing is computed twice,
    but the pieces run one after another. Without it they are independent."""
