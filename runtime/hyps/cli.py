"""The command `hyps-worker`."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from hyps.errors import UsageError
from hyps.formats.quantities import format_nbytes
from hyps.terminal import NBYTES, TIMEOUT, HypsCommand, log_format_option, log_in, metrics_option, say

if TYPE_CHECKING:
    from hyps.engine import Engine
    from hyps.joining import Joining
    from hyps.node import NodeOptions

_EXAMPLES = """\b
Examples:
  hyps-worker plan/
  hyps-worker plan/ --memory 256MB --threads 2
  hyps-worker plan/ --bind ipc:///run/user/1000/hyps
  hyps-worker --manager tcp://10.0.0.1:5757 --device pi-1 --token-file token --insecure-lab
  hyps-worker plan/devices/pi-1 --manager tcp://10.0.0.1:5757 --device pi-1
"""
_BIND = "tcp://127.0.0.1:5757"
_TERMINATED = 143
_NODE_ONLY = frozenset({"token_file", "data_bind", "no_listen", "cache", "cache_size", "connect_timeout"})


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
@click.argument("plan", type=click.Path(), required=False)
@click.option(
    "--bind", default=_BIND, show_default=True, help="Address to serve on: tcp:// or ipc://; not with --manager."
)
@click.option("--manager", metavar="ADDRESS", help="Join the manager there, and take the partitions it gives.")
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
@click.option("--device", default="", help="What this device is called, for clients or in the manager's cluster.")
@click.option("--token-file", type=click.Path(), help="A file with the word that the manager asks for.")
@click.option(
    "--data-bind",
    metavar="ADDRESS",
    help="Where other workers come to; a free port where the manager is reached, if only this machine or, with "
    "--insecure-lab, a network reaches that.",
)
@click.option("--no-listen", is_flag=True, help="Let no worker come: all tensors go over the manager's hub.")
@click.option(
    "--cache", type=click.Path(), help="Folder for fetched partitions; ~/.cache/hyps/partitions if not given."
)
@click.option(
    "--cache-size",
    type=NBYTES,
    default="16GB",
    show_default=True,
    help="Most that the cache may hold; what was not used for longest goes first.",
)
@click.option(
    "--connect-timeout", type=TIMEOUT, help="How long to look for the manager at first; for ever if not given."
)
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
@click.pass_context
def worker(
    ctx: click.Context,
    plan: str | None,
    bind: str,
    manager: str | None,
    memory: int | None,
    threads: int | None,
    timeout: float,
    device: str,
    token_file: str | None,
    data_bind: str | None,
    no_listen: bool,
    cache: str | None,
    cache_size: int | None,
    connect_timeout: float | None,
    as_json: bool,
    metrics: str,
    log_format: str,
    insecure_lab: bool,
) -> None:
    """Serve the plan in the folder PLAN, or be one of a manager's workers, until SIGTERM.

    With --manager the partitions are the manager's to give; their files are looked for in PLAN first, then in the
    cache, and fetched otherwise. Partitions that do not fit the memory are loaded for their turn and released. SIGTERM
    lets accepted requests finish; a second one stops at once.
    """
    _check_options(ctx)
    log_in(log_format, device)
    from hyps.dependencies import check_safe

    check_safe("onnxruntime")
    if insecure_lab:
        say("warning: whoever reaches this machine can use this worker and read what it is sent (--insecure-lab)")
    if manager is not None:
        from hyps.joining import Joining
        from hyps.node import NodeOptions

        joining = Joining(plan, token_file, data_bind, not no_listen, insecure_lab, cache, cache_size, threads)
        node_options = NodeOptions(
            manager, device, memory_bytes=memory, timeout_s=timeout, connect_timeout_s=connect_timeout
        )
        _join(joining, node_options)
        return
    assert plan is not None, "checked with the options"
    from hyps.engine import Options
    from hyps.worker import StuckError, serve

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
        _stop_at_once()


def _check_options(ctx: click.Context) -> None:
    """Refuse options that contradict each other or belong to the other way of running.

    Raises:
        UsageError: names them.
    """
    params = ctx.params
    if params["as_json"]:
        raise UsageError("--json is for --doctor only", "leave it out, or look at this machine with --doctor --json")
    given = {name for name in params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    if params["manager"] is None:
        if params["plan"] is None:
            raise UsageError("there is neither a plan nor a manager", "give a plan folder, or `--manager ADDRESS`")
        strange = sorted(given & _NODE_ONLY)
        if strange:
            raise UsageError(f"`{_option(strange[0])}` is for workers of a manager", "give `--manager ADDRESS` as well")
        return
    if not params["device"]:
        raise UsageError("a worker of a manager needs a name", "give `--device NAME`, as in the cluster file")
    if "bind" in given:
        raise UsageError("`--bind` is for clients, who go to the manager", "use `--data-bind` for other workers")
    if params["metrics"]:
        raise UsageError("`--metrics` is the manager's where there is one", "give it to `hyps-manager`")
    if params["no_listen"] and params["data_bind"]:
        raise UsageError("`--no-listen` and `--data-bind` contradict each other", "leave one of them out")


def _option(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")


def _join(joining: "Joining", options: "NodeOptions") -> None:
    from hyps.joining import join
    from hyps.node import NodeStuckError

    try:
        is_whole = join(joining, options, say)
    except NodeStuckError as error:
        say(f"{error.message}: starting anew")
        sys.stderr.flush()
        os.execv(sys.executable, sys.orig_argv)
    if not is_whole:
        _stop_at_once()
    say("left the manager")


def _stop_at_once() -> NoReturn:
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
