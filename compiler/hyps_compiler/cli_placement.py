"""What `hypsc compile` can be told about a cluster."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hyps.errors import UsageError
from hyps.terminal import TIMEOUT
from hyps_compiler.cli_options import BATCHES, OBJECTIVE_NAMES, PATH
from hyps_compiler.converting import Converting
from hyps_passes.strategies import STRATEGIES

if TYPE_CHECKING:
    from hyps_compiler.placement import PlacementRequest

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--cluster", type=PATH, help="A cluster.toml: divide the model among its devices."),
    click.option("--profile", type=PATH, help="From `hypsc profile`, of a device of speed 1; default: measured now."),
    click.option(
        "--objective",
        type=click.Choice(OBJECTIVE_NAMES),
        help="What to make best on the cluster; default: latency.",
    ),
    click.option(
        "--strategy",
        type=click.Choice(list(STRATEGIES)),
        metavar="NAME",
        help=f"How to place layers: {', '.join(STRATEGIES)}; default: exact.",
    ),
    click.option(
        "--batch",
        "batches",
        type=BATCHES,
        help="Requests computed together; 1,8: placed for 1, --adaptive for 8 too.",
    ),
    click.option("--parallel", "general", is_flag=True, help="Also let branches run side by side on several devices."),
    click.option(
        "--replicas",
        "has_replicas",
        is_flag=True,
        help="With --objective throughput: also let several devices share the requests of one stage.",
    ),
    click.option("--time-limit", "time_limit_s", type=TIMEOUT, help="Of each search that may take long; default: 30s."),
    click.option(
        "--adaptive",
        is_flag=True,
        help="Of two devices: also hold what is best at other bandwidths, loads, batches; at more borders.",
    ),
)
_WITHOUT_CLUSTER = (
    "profile",
    "objective",
    "strategy",
    "batches",
    "general",
    "has_replicas",
    "time_limit_s",
    "adaptive",
)
_OF_THE_SEARCH = ("strategy", "general", "has_replicas", "time_limit_s", "adaptive")
_OPTION_OF = {"batches": "batch", "general": "parallel", "has_replicas": "replicas", "time_limit_s": "time-limit"}


def placement_options(command: _Command) -> _Command:
    """Give a command the options of a placement; it takes them as keywords."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def placement_request(
    model: str,
    told: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    max_tensor_nbytes: int,
    converting: Converting,
    step: Callable[[str], None],
) -> "PlacementRequest | None":
    """Return the placement that the options ask for; None without `--cluster`.

    Raises:
        UsageError: an option needs a cluster.
        HypsError: the cluster or a profile is wrong, or the model cannot be measured.
    """
    if told["cluster"] is None:
        for name in _WITHOUT_CLUSTER:
            if told[name]:
                raise UsageError(
                    f"--{_OPTION_OF.get(name, name)} is about a cluster", "give one with --cluster cluster.toml"
                )
        return None
    from hyps_compiler.clusters import SiteRequest, load_site
    from hyps_compiler.placement import PlacementRequest

    batches = told["batches"] or (1,)
    request = SiteRequest(told["cluster"], told["profile"], batches, shapes, max_tensor_nbytes, converting)
    return PlacementRequest(
        site=load_site(model, request, step),
        objective=told["objective"] or "latency",
        strategy=told["strategy"] or "exact",
        general=told["general"],
        time_limit_s=told["time_limit_s"] or 30.0,
        is_adaptive=told["adaptive"],
        batches=batches,
        has_replicas=told["has_replicas"],
    )


def refuse_own_cuts(told: Mapping[str, Any], given: Mapping[str, object], *, is_told: bool = False) -> None:
    """Refuse options that say where to cut together with a cluster, for which the search says it.

    `is_told` says that the model's annotations decide instead; then options of the search are refused.

    Raises:
        UsageError: one was given.
    """
    if told["cluster"] is not None:
        for name in _OF_THE_SEARCH:
            if is_told and told[name]:
                raise UsageError(
                    f"--{_OPTION_OF.get(name, name)} is about a search, and the model's annotations decide",
                    "leave it out, or --cut annotations",
                )
        for option, value in given.items():
            if value:
                raise UsageError(
                    f"{option} cannot be given with --cluster, whose search decides",
                    "leave it out, or write limits into the cluster file",
                )
