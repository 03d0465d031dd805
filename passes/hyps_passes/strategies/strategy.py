"""What a strategy is: problem in, placement or refusal out."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # a command's `--help` lists strategies, and must not wait for numpy
    from hyps_passes.found import Found
    from hyps_passes.objectives import Objective
    from hyps_passes.problem import Problem


@dataclass(frozen=True, slots=True)
class Settings:
    """What strategies may be told beside the problem."""

    time_limit_s: float = 30.0
    """Of each search that may take long."""
    general: bool = False
    """Whether `exact` also looks for branches that run side by side."""
    required: frozenset[str] = frozenset()
    """Machines that must compute, for `scission`."""
    first_cut: int = 0
    """The fewest tasks that stay before the first cut, for `scission`: later activations tell less of the input."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A strategy has no placement for a problem."""

    reason: str
    """Why, in one sentence."""


class Place(Protocol):
    """A strategy's rule: the function `place` of its module."""

    def __call__(self, problem: "Problem", objective: "Objective", settings: Settings) -> "Found | Refusal":
        """Return its placement, judged by the one cost model, or why it has none."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One published way to place a model."""

    name: str
    summary: str
    """What it does, in a phrase."""
    paper: str
    module: str
    """Of this package; it holds the rule and says where it departs from the paper."""

    @property
    def place(self) -> Place:
        """The rule, its module loaded now."""
        return cast("Place", importlib.import_module(f"hyps_passes.strategies.{self.module}").place)
