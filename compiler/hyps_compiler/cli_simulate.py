"""`hypsc simulate`: a plan on a cluster under a load, in virtual time."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyps.errors import UsageError
from hyps.terminal import HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import PATH, print_json, require_compiler

if TYPE_CHECKING:
    from hyps.formats.cluster import Cluster
    from hyps_compiler.simulation_result import Simulated
    from hyps_compiler.simulation_system import Load

_TRACE_HELP = "A CSV file with lines such as `1.5, camera to server, 57Mbit/s`: the bandwidth from then on."
_MOST_REQUESTS = 10_000_000


@click.command(cls=HypsCommand)
@click.argument("plan", type=PATH)
@click.option("--cluster", type=PATH, help="The cluster.toml: what joins the plan's devices, and their memory.")
@click.option("--variant", help="The plan's variant; default: the first.")
@click.option("--switch", is_flag=True, help="Each request takes the variant that is best at that moment's bandwidth.")
@click.option(
    "--requests", type=click.IntRange(1, _MOST_REQUESTS), default=1000, show_default=True, help="How many requests."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests that arrive in a second.")
@click.option("--even", is_flag=True, help="With --rate: at even intervals, not at random moments.")
@click.option("--in-flight", type=click.IntRange(1, 100_000), help="Requests at once; with --rate the most of them.")
@click.option("--queue", type=click.IntRange(0), help="Most requests that wait to be let in; others are refused.")
@click.option("--bandwidth-trace", type=PATH, help=_TRACE_HELP)
@click.option("--down", "downs", multiple=True, help="A device or link that fails, such as server:2s-3s; may repeat.")
@click.option("--jitter", type=click.FloatRange(0, 3), default=0.0, show_default=True, help="Spread of computing.")
@click.option("--load-rate", default="100MB/s", show_default=True, help="At which swapped partitions load.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of all that is random.")
@click.option("--trace", type=PATH, help="Write the first requests as a trace that ui.perfetto.dev opens.")
@click.option("--gantt", type=PATH, help="Write the first requests as a picture, an SVG file.")
@click.option("--traced", type=click.IntRange(1), default=500, show_default=True, help="Of how many requests, at most.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def simulate(
    plan: Path,
    cluster: Path | None,
    variant: str | None,
    switch: bool,
    requests: int,
    rate: float | None,
    even: bool,
    in_flight: int | None,
    queue: int | None,
    bandwidth_trace: Path | None,
    downs: tuple[str, ...],
    jitter: float,
    load_rate: str,
    seed: int,
    trace: Path | None,
    gantt: Path | None,
    traced: int,
    force: bool,
    as_json: bool,
) -> None:
    """Play requests through PLAN on a cluster, in virtual time.

    Shows how long they take, how many are answered in a second, and how busy devices and links are. Without `--rate`
    and `--in-flight` requests arrive as the cluster file says, or one at a time. `--jitter 0.1` varies computing times
    by about a tenth. The same seed gives the same result.

    \b
    Examples:
      hypsc simulate plan/ --cluster cluster.toml
      hypsc simulate plan/ --cluster cluster.toml --rate 20 --trace trace.json
      hypsc simulate plan/ --cluster cluster.toml --bandwidth-trace walk.csv --switch
      hypsc simulate plan/ --cluster cluster.toml --in-flight 8 --down server:2s-3s
    """
    require_compiler()
    from hyps.adapters.plan_files import read_plan
    from hyps.formats.quantities import parse_bytes_per_s
    from hyps_compiler import simulation, simulation_report
    from hyps_compiler.clusters import read_cluster
    from hyps_compiler.gantt import CHARTED
    from hyps_compiler.simulation_plan import Conditions, plan_system
    from hyps_compiler.trace_bandwidth import parse_downs, read_trace

    if switch and variant is not None:
        raise UsageError("--switch and --variant cannot be given together", "leave one out")
    _check_files(trace, gantt, force)
    told = read_plan(plan)
    site = None if cluster is None else read_cluster(cluster)
    load = _load(rate, even, in_flight, queue, site)
    conditions = Conditions(
        rates=read_trace(bandwidth_trace) if bandwidth_trace else {},
        downs=parse_downs(downs),
        variant=variant,
        switches=switch,
        load_bytes_per_s=parse_bytes_per_s(load_rate),
    )
    system = plan_system(told, site, conditions)
    with progress("simulating", quiet=verbosity() < 0 or as_json):
        simulated = simulation.simulate(
            system, load, requests, seed=seed, jitter=jitter, traced=traced if trace or gantt else CHARTED
        )
    if as_json:
        print_json(simulation_report.simulated_json(told, load, simulated, seed))
    elif verbosity() >= 0:
        click.echo(simulation_report.show_simulated(told, load, simulated))
    _write_files(trace, gantt, simulated)


def _load(rate: float | None, even: bool, in_flight: int | None, queue: int | None, site: "Cluster | None") -> "Load":
    """Return how requests arrive.

    Raises:
        UsageError: options that do not go together.
    """
    from hyps_compiler.simulation_system import Closed, Open

    if rate is None and in_flight is None and site is not None and site.arrival_rps:
        rate = site.arrival_rps
    if rate is None and (even or queue is not None):
        raise UsageError(f"--{'even' if even else 'queue'} is about requests that arrive", "give --rate as well")
    if queue is not None and in_flight is None:
        raise UsageError("--queue is about requests that wait to be let in", "give --in-flight as well")
    return Closed(in_flight or 1) if rate is None else Open(rate, not even, in_flight, queue)


def _check_files(trace: Path | None, gantt: Path | None, force: bool) -> None:
    from hyps_compiler.output import check_output_file

    for path in (trace, gantt):
        if path is not None:
            check_output_file(path, force=force)


def _write_files(trace: Path | None, gantt: Path | None, simulated: "Simulated") -> None:
    from hyps.errors import printable
    from hyps_compiler.gantt import svg_gantt
    from hyps_compiler.output import output_file
    from hyps_compiler.trace_events import trace_json

    for path, content in (
        (trace, trace_json(simulated) if trace else b""),
        (gantt, svg_gantt(simulated).encode() if gantt else b""),
    ):
        if path is not None:
            with output_file(path) as beside:
                beside.write_bytes(content)
            say(f"wrote {printable(str(path))}")
