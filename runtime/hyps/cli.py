"""The command `hyps-worker`."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from hyps.errors import UsageError
from hyps.formats.quantities import format_nbytes
from hyps.terminal import NBYTES, TIMEOUT, HypsCommand, log_format_option, log_in, metrics_option, say

if TYPE_CHECKING:
    from hyps.engine import Engine

_EXAMPLES = """\b
Examples:
  hyps-worker plan/
  hyps-worker plan/ --memory 256MB --threads 2
  hyps-worker plan/ --bind ipc:///run/user/1000/hyps
"""
_TERMINATED = 143


def _show_doctor(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from hyps import doctor

        diagnosis = doctor.examine([""])
        if ctx.params["as_json"]:
            click.echo(json.dumps(doctor.as_json(diagnosis), indent=1, allow_nan=False))
        else:
            click.echo(doctor.show(diagnosis))
        ctx.exit(diagnosis.exit_status)


@click.command(cls=HypsCommand, epilog=_EXAMPLES)
@click.argument("plan", type=click.Path())
@click.option(
    "--bind", default="tcp://127.0.0.1:5757", show_default=True, help="Address to serve on: tcp:// or ipc://."
)
@click.option(
    "--memory",
    type=NBYTES,
    help="Most memory this process may have, like 256MB; what the plan was made for if not given.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads for one partition; one per core if not given.")
@click.option(
    "--timeout",
    type=TIMEOUT,
    default="10m",
    show_default=True,
    help="Longest that one request may be computed, such as 30s or 2h; it is refused after that.",
)
@click.option("--device", default="", help="What clients are told this device is called.")
@click.option(
    "--doctor",
    is_flag=True,
    expose_value=False,
    callback=_show_doctor,
    help="Show what this machine can do and what is in the way, and leave.",
)
@click.option("--json", "as_json", is_flag=True, is_eager=True, help="Print what --doctor shows as JSON.")
@metrics_option
@log_format_option
@click.option("--insecure-lab", is_flag=True, help="Let other machines connect, without encryption or keys.")
def worker(
    plan: str,
    bind: str,
    memory: int | None,
    threads: int | None,
    timeout: float,
    device: str,
    as_json: bool,
    metrics: str,
    log_format: str,
    insecure_lab: bool,
) -> None:
    """Serve the plan in the folder PLAN until SIGTERM.

    Partitions that do not fit the memory are loaded for their turn and released. SIGTERM lets accepted requests finish;
    a second one stops at once.
    """
    if as_json:
        raise UsageError("--json is for --doctor only", "leave it out, or look at this machine with --doctor --json")
    log_in(log_format, device)
    from hyps.dependencies import check_safe

    check_safe("onnxruntime")
    from hyps.engine import Options
    from hyps.worker import StuckError, serve

    if insecure_lab:
        say("warning: whoever reaches this machine can use this worker and read what it is sent (--insecure-lab)")
    options = Options(memory_bytes=memory, threads=threads, own_process=True, timeout_s=timeout)
    try:
        is_whole = serve(
            plan,
            bind,
            options=options,
            device=device,
            allow_remote=insecure_lab,
            on_ready=_announce,
            metrics_address=metrics,
        )
    except StuckError as error:
        say(f"{error.message}: starting anew")
        _start_anew(error.address)
    if not is_whole:
        say("stopped at once; accepted requests were given up")
        sys.stderr.flush()
        os._exit(_TERMINATED)  # onnxruntime may still be computing in its thread, which an ordinary exit would crash


def _start_anew(address: str) -> NoReturn:
    """Become a new process with the same number, options and address: nothing else ends a stuck thread."""
    sys.stderr.flush()
    own = len(sys.argv) - 1  # the interpreter's own arguments come before these
    os.execv(sys.executable, [*sys.orig_argv[: len(sys.orig_argv) - own], *_bound_to(address, sys.argv[1:])])


def _bound_to(address: str, args: Sequence[str]) -> list[str]:
    """Return the command's arguments with `address` in the place of any they had; what follows `--` is no option."""
    end = args.index("--") if "--" in args else len(args)
    kept: list[str] = []
    options = iter(args[:end])
    for option in options:
        if option == "--bind":
            next(options, None)
        elif not option.startswith("--bind="):
            kept.append(option)
    return [*kept, "--bind", address, *args[end:]]


def _announce(engine: "Engine", address: str) -> None:
    budget = "no memory limit" if engine.memory_bytes is None else f"memory {format_nbytes(engine.memory_bytes)}"
    say(f"serving at {address}: {len(engine.kept)} partitions kept loaded, {len(engine.swapped)} swapped, {budget}")
