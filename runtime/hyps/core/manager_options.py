"""How a manager works; all that its state machine needs to know beside the plan and what happens."""

from collections.abc import Callable
from dataclasses import dataclass

from hyps.formats.replanning import Aim

DEFAULT_BUFFER_NBYTES = 256 * 2**20
ALL_TENSORS = "all"


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """`ManagerState(plan, options, new_secret)` is made of them; seconds are of the clock that events come with."""

    is_fixed: bool = False
    """Whether the plan's first placement is the only one."""
    is_via_hub: bool = False
    """Whether every tensor between devices goes over the hub."""
    keep: str | tuple[str, ...] | None = None
    """Tensors between partitions that the hub keeps while their request lives: `ALL_TENSORS`, or their names; None:
    what the plan's variant says."""
    max_requests: int = 256
    """Accepted and not ended yet, of all clients together."""
    buffer_nbytes: int | None = None
    """Of all tensors that the hub has at once; None: room for some requests."""
    batch_rows: int = 1
    """Most rows of requests computed together; 1: each request alone."""
    batch_wait_s: float = 0.005
    """Longest that a request waits for others to be computed with."""
    gather_s: float = 10.0
    """How long the devices of the plan's first placement are waited for once a device is there."""
    patience_s: float = 30.0
    """How long requests wait while there is no placement that they could take and none is prepared."""
    beat_s: float = 0.5
    silent_beats: int = 3
    """A node that is not heard of for so many beats is lost."""
    loading_silence_s: float = 20.0
    """The same for a node that has something to load, which may keep its interpreter."""
    least_lease_s: float = 5.0
    """A work item may run for this long, or for ten times what it takes otherwise."""
    unknown_lease_s: float = 600.0
    """The same where nothing is known of what it takes."""
    stall_s: float = 10.0
    """A piece of work of which nothing is heard for so long, beside what its tensors need on a slow link, is begun
    anew if its devices are idle; after six times as long in any case."""
    max_attempts: int = 3
    """After so many attempts that ended with a lost device a request fails."""
    settle_s: float = 5.0
    """How long a device that the placement does not use, or a slow one, is watched before it is planned with."""
    replan_pause_s: float = 30.0
    """Between two searches that nothing but a better placement calls for."""
    slow_factor: float = 2.0
    """A partition that takes so many times what was predicted is slow."""
    gain: float = 0.15
    """By which part a new placement must be better than one that still works."""
    answer_wait_s: float = 60.0
    """How long an answer waits for a client that reads nothing."""
    search_s: float = 2.0
    """Given to a search for a placement."""
    aim: Aim | None = None
    """What a new placement is to be good at; None: what the plan was made for."""
    wants_spans: bool = False
    """Whether nodes shall trace what they do."""
    is_relay: bool = False
    """Whether it is a group's: its requests come from a manager above, which bounds them, and have no client."""
    no_planner: str = ""
    """What is missing to search for placements, in a sentence; empty: nothing."""


NewSecret = Callable[[], str]
"""Makes a secret that nobody can guess; a simulation counts."""
