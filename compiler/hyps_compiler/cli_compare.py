"""`hypsc compare`: every strategy side by side on one cluster."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyps.terminal import TIMEOUT, HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import (
    OBJECTIVE_NAMES,
    PATH,
    SHAPES_HELP,
    converting_options,
    max_tensor_option,
    parse_shapes,
    print_json,
    require_compiler,
    timeout_option,
)
from hyps_compiler.converting import Converting

if TYPE_CHECKING:
    from hyps_passes.problem import Problem


@click.command(cls=HypsCommand)
@click.argument("model")
@click.option("--cluster", required=True, type=PATH, help="A cluster.toml: devices, links, constraints.")
@click.option("--profile", type=PATH, help="From `hypsc profile`, of a device of speed 1; default: measured now.")
@click.option(
    "--objective", type=click.Choice(OBJECTIVE_NAMES), default="latency", show_default=True, help="What to score by."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Requests computed and sent together."
)
@click.option("--parallel", "general", is_flag=True, help="Let `exact` run branches side by side on several devices.")
@click.option("--pareto", is_flag=True, help="Show what is best at some trade of all five objectives instead.")
@click.option("--time-limit", type=TIMEOUT, default="30s", show_default=True, help="Of each search that may take long.")
@click.option("--input", "shapes", multiple=True, help=SHAPES_HELP)
@converting_options
@max_tensor_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(
    model: str,
    cluster: Path,
    profile: Path | None,
    objective: str,
    batch: int,
    general: bool,
    pareto: bool,
    time_limit: float,
    shapes: tuple[str, ...],
    max_tensor: int,
    converting: Converting,
    as_json: bool,
) -> None:
    """Place MODEL on a cluster by every strategy and show what each is predicted to cost.

    Nothing is run on the cluster. The best is marked; gaps are to what is proven of all placements.

    \b
    Examples:
      hypsc compare model.onnx --cluster cluster.toml
      hypsc compare model.onnx --cluster cluster.toml --profile pi.json
      hypsc compare zoo:vgg16 --cluster cluster.toml --objective throughput --json
      hypsc compare zoo:vgg16 --cluster cluster.toml --pareto
    """
    require_compiler("onnx", "onnxruntime")
    from hyps_compiler.clusters import SiteRequest, load_problem
    from hyps_compiler.comparison import compare as compare_strategies
    from hyps_compiler.comparison import comparison_json, require_possible, show_comparison
    from hyps_compiler.placement import objective_of
    from hyps_passes.strategies.strategy import Settings

    wanted = objective_of(objective)
    request = SiteRequest(cluster, profile, (batch,), parse_shapes(shapes), max_tensor, converting)
    with progress("comparing", quiet=verbosity() < 0 or as_json) as bar:

        def step(text: str) -> None:
            bar.enter(text)
            if verbosity() > 0:
                say(text)

        problem = load_problem(model, request, step).problem
        if pareto:
            _show_pareto(problem, time_limit, as_json=as_json)
            return
        found = compare_strategies(problem, wanted, Settings(time_limit_s=time_limit, general=general), step)
        require_possible(problem, found, time_limit_s=time_limit)
    print_json(comparison_json(found)) if as_json else click.echo(show_comparison(found))


def _show_pareto(problem: "Problem", time_limit_s: float, *, as_json: bool) -> None:
    from hyps_compiler.pareto_report import front_json, require_points, show_front
    from hyps_passes.searches.pareto import front

    found = require_points(front(problem, time_limit_s=time_limit_s))
    print_json(front_json(problem, found)) if as_json else click.echo(show_front(problem, found))
