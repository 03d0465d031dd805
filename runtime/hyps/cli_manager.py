"""The command `hyps-manager`."""

import sys
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from hyps.errors import UsageError
from hyps.terminal import NBYTES, TIMEOUT, HypsCommand, log_format_option, log_in, metrics_option, say

if TYPE_CHECKING:
    from hyps.core.manager_options import ManagerOptions
    from hyps.formats.plan import Plan
    from hyps.grouping import Grouping

_EXAMPLES = """\b
Examples:
  hyps-manager plan/
  hyps-manager plan/ --bind tcp://10.0.0.1:5757 --token-file token --insecure-lab
  hyps-manager plan/ --fixed --via-hub --keep all
  hyps-manager plan/ --batch 8 --batch-wait 5ms
  hyps-manager --manager tcp://10.0.0.1:5757 --device rack-2 --bind tcp://10.0.2.1:5757 --insecure-lab
"""
_TERMINATED = 143
_GROUP_GATHER_S = 1.0
_GROUP_ONLY = frozenset({"device", "upper_token_file", "data_bind", "no_listen", "cache", "cache_size"})
_PLAN_ONLY = frozenset({"fixed", "keep", "max_requests", "batch", "batch_wait", "buffer", "metrics", "trace"})


@click.command(cls=HypsCommand, epilog=_EXAMPLES)
@click.argument("plan", type=click.Path(), required=False)
@click.option(
    "--bind",
    default="tcp://127.0.0.1:5757",
    show_default=True,
    help="Address for clients and workers: tcp:// or ipc://.",
)
@click.option("--token-file", type=click.Path(), help="A file with the word that workers must know to join.")
@click.option("--fixed", is_flag=True, help="Use the plan's first placement and no other, whoever joins or leaves.")
@click.option("--via-hub", is_flag=True, help="Send every tensor between workers over this manager.")
@click.option(
    "--keep",
    metavar="all|none|TENSOR,...",
    help="Tensors that the hub keeps while their request is at work; what the plan says if not given.",
)
@click.option(
    "--max-requests", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Accepted at one time."
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="Compute requests together, up to so many rows; they must be alike but for their first dimension.",
)
@click.option(
    "--batch-wait",
    type=TIMEOUT,
    default="5ms",
    show_default=True,
    help="Longest that a request waits for others to be computed with.",
)
@click.option("--buffer", type=NBYTES, help="Most memory for requests and their tensors; 256MiB or room for four.")
@click.option(
    "--gather",
    type=TIMEOUT,
    default="10s",
    show_default=True,
    help="How long the plan's workers are waited for once one is there, before others take their part; 1s in a group.",
)
@click.option(
    "--patience",
    type=TIMEOUT,
    default="30s",
    show_default=True,
    help="How long requests wait while no worker can take them.",
)
@click.option(
    "--manager",
    "upper",
    metavar="ADDRESS",
    help="Be a group: join the manager there as one device, and give what it gives to workers of one's own.",
)
@click.option("--device", default="", help="What a group is called by the manager above it.")
@click.option("--upper-token-file", type=click.Path(), help="A file with the word that the manager above asks for.")
@click.option(
    "--data-bind",
    metavar="ADDRESS",
    help="Where the other workers of the manager above come to; a free port where that is safe, as for `hyps-worker`.",
)
@click.option("--no-listen", is_flag=True, help="Let no such worker come: all tensors go over the hub above.")
@click.option(
    "--cache", type=click.Path(), help="A group's folder for fetched partitions; ~/.cache/hyps/partitions if not given."
)
@click.option(
    "--cache-size",
    type=NBYTES,
    default="16GB",
    show_default=True,
    help="Most that the cache may hold; what was not used for longest goes first.",
)
@metrics_option
@click.option(
    "--trace", type=click.Path(), default="", help="Write a trace of all requests there, which ui.perfetto.dev opens."
)
@log_format_option
@click.option("--insecure-lab", is_flag=True, help="Let other machines connect, without encryption or keys.")
@click.pass_context
def manager(
    ctx: click.Context,
    plan: str | None,
    bind: str,
    token_file: str | None,
    fixed: bool,
    via_hub: bool,
    keep: str | None,
    max_requests: int,
    batch: int,
    batch_wait: float,
    buffer: int | None,
    gather: float,
    patience: float,
    upper: str | None,
    device: str,
    upper_token_file: str | None,
    data_bind: str | None,
    no_listen: bool,
    cache: str | None,
    cache_size: int | None,
    metrics: str,
    trace: str,
    log_format: str,
    insecure_lab: bool,
) -> None:
    """Schedule requests for the plan in the folder PLAN over the workers that join, until SIGTERM.

    Workers join with `hyps-worker --manager ADDRESS --device NAME`; clients connect as they do to a worker. SIGTERM
    lets accepted requests finish; a second one stops at once.

    With --manager there is no PLAN: workers that join here are one device, a group, to the manager above, which gives
    it partitions, and their files, as it does to a worker.
    """
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    _check_options(given, plan, upper, device)
    log_in(log_format, device)
    from hyps.core.manager_options import ManagerOptions

    if insecure_lab:
        say("warning: whoever reaches this machine can use this manager and read what it is sent (--insecure-lab)")
    if upper is not None:
        from hyps.grouping import Grouping
        from hyps.joining import Joining

        joining = Joining(None, upper_token_file, data_bind, not no_listen, insecure_lab, cache, cache_size)
        below = ManagerOptions(
            is_via_hub=via_hub, gather_s=gather if "gather" in given else _GROUP_GATHER_S, patience_s=patience
        )
        _serve_group(Grouping(upper, device, bind, joining, token_file), below)
        return
    assert plan is not None, "checked with the options"
    from hyps.managing import Serving, serve

    options = ManagerOptions(
        is_fixed=fixed,
        is_via_hub=via_hub,
        keep=kept_tensors(keep),
        max_requests=max_requests,
        buffer_nbytes=buffer,
        batch_rows=batch,
        batch_wait_s=batch_wait,
        gather_s=gather,
        patience_s=patience,
        wants_spans=bool(trace),
    )
    serving = Serving(bind, token_file, metrics, insecure_lab, trace)
    if not serve(plan, serving, options, on_ready=_announce):
        say("stopped at once; accepted requests were given up")
        sys.exit(_TERMINATED)


def _check_options(given: set[str], plan: str | None, upper: str | None, device: str) -> None:
    """Refuse options that contradict each other or belong to the other way of running.

    Raises:
        UsageError: names them.
    """
    if upper is None:
        if plan is None:
            raise UsageError(
                "there is neither a plan nor a manager above", "give a plan folder, or `--manager ADDRESS`"
            )
        strange = sorted(given & _GROUP_ONLY)
        if strange:
            raise UsageError(f"`{_option(strange[0])}` is for groups", "give `--manager ADDRESS` instead of a plan")
        return
    if plan is not None:
        raise UsageError("a group gets its plan from the manager above", "leave the plan or `--manager` out")
    if not device:
        raise UsageError("a group needs a name", "give `--device NAME`, as in the cluster file")
    strange = sorted(given & _PLAN_ONLY)
    if strange:
        raise UsageError(f"`{_option(strange[0])}` is the manager's above", "give it there")


def _option(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")


def _serve_group(grouping: "Grouping", below: "ManagerOptions") -> None:
    from hyps.grouping import serve_group

    def announce(address: str) -> None:
        say(f"serving at {address}: workers for `{grouping.device}`")

    if not serve_group(grouping, below, announce, say):
        say("stopped at once; what was under way was given up")
        sys.exit(_TERMINATED)
    say("left the manager")


def kept_tensors(text: str | None) -> str | tuple[str, ...] | None:
    """Return what `--keep` names: `all`, the tensors, none of them, or None where it was not given.

    >>> kept_tensors("all"), kept_tensors("a,b"), kept_tensors("none"), kept_tensors(None)
    ('all', ('a', 'b'), (), None)
    """
    if text is None or text == "all":
        return text
    return () if text == "none" else tuple(name for name in text.split(",") if name)


def _announce(plan: "Plan", address: str) -> None:
    devices = sorted(set(plan.variants[0].placement.values()))
    shown = ", ".join(f"`{name}`" for name in devices[:8]) + (", ..." if len(devices) > 8 else "")
    say(f"serving at {address}: {len(plan.partitions)} partitions for {shown}")
