"""The command `hyps-manager`."""

import sys
from typing import TYPE_CHECKING

import click

from hyps.terminal import NBYTES, TIMEOUT, HypsCommand, log_format_option, log_in, metrics_option, say

if TYPE_CHECKING:
    from hyps.formats.plan import Plan

_EXAMPLES = """\b
Examples:
  hyps-manager plan/
  hyps-manager plan/ --bind tcp://10.0.0.1:5757 --token-file token --insecure-lab
  hyps-manager plan/ --fixed --via-hub --keep all
  hyps-manager plan/ --batch 8 --batch-wait 5ms
"""
_TERMINATED = 143


@click.command(cls=HypsCommand, epilog=_EXAMPLES)
@click.argument("plan", type=click.Path())
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
    help="How long the plan's workers are waited for once one is there, before others take their part.",
)
@click.option(
    "--patience",
    type=TIMEOUT,
    default="30s",
    show_default=True,
    help="How long requests wait while no worker can take them.",
)
@metrics_option
@click.option(
    "--trace", type=click.Path(), default="", help="Write a trace of all requests there, which ui.perfetto.dev opens."
)
@log_format_option
@click.option("--insecure-lab", is_flag=True, help="Let other machines connect, without encryption or keys.")
def manager(
    plan: str,
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
    metrics: str,
    trace: str,
    log_format: str,
    insecure_lab: bool,
) -> None:
    """Schedule requests for the plan in the folder PLAN over the workers that join, until SIGTERM.

    Workers join with `hyps-worker --manager ADDRESS --device NAME`; clients connect as they do to a worker. SIGTERM
    lets accepted requests finish; a second one stops at once.
    """
    log_in(log_format)
    from hyps.core.manager_options import ManagerOptions
    from hyps.managing import Serving, serve

    if insecure_lab:
        say("warning: whoever reaches this machine can use this manager and read what it is sent (--insecure-lab)")
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
