"""`hypsc report`: a plan as one HTML page."""

from pathlib import Path

import click

from hyps.terminal import HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import (
    PATH,
    SHAPES_HELP,
    converting_options,
    max_tensor_option,
    parse_shapes,
    require_compiler,
    timeout_option,
)
from hyps_compiler.converting import Converting


@click.command(cls=HypsCommand)
@click.argument("plan", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The HTML file to write.")
@click.option("--model", help="The model that the plan was made from: shows its layers.")
@click.option("--profile", "profiles", multiple=True, type=PATH, help="From `hypsc profile`: shows times; may repeat.")
@click.option("--cluster", type=PATH, help="A cluster.toml: shows split points, schedule and load on its devices.")
@click.option("--run", "is_run", is_flag=True, help="Run one request here, and show its times and memory.")
@click.option("--no-map", is_flag=True, help="Do not simulate batch sizes and rates, which takes longest.")
@click.option("--input", "shapes", multiple=True, help=SHAPES_HELP)
@converting_options
@max_tensor_option
@click.option("--force", is_flag=True, help="Replace an existing file.")
@timeout_option
def report(
    plan: Path,
    output: Path,
    model: str | None,
    profiles: tuple[Path, ...],
    cluster: Path | None,
    is_run: bool,
    no_map: bool,
    shapes: tuple[str, ...],
    max_tensor: int,
    converting: Converting,
    force: bool,
) -> None:
    """Write what is known of PLAN as one HTML page that needs nothing else.

    The page shows the partitions, memory against the budget and, where the options tell of them, layers, what every
    split point would cost, a schedule, and latency by batch size and rate. It loads nothing from anywhere.

    \b
    Examples:
      hypsc report plan/ -o report.html
      hypsc report plan/ -o report.html --model model.onnx --profile here.json
      hypsc report plan/ -o report.html --model model.onnx --profile here.json --cluster cluster.toml
      hypsc report plan/ -o report.html --run
    """
    require_compiler("onnx", "onnxruntime")
    from hyps.errors import printable
    from hyps.formats.quantities import format_nbytes
    from hyps_compiler.output import check_apart, check_output_file, output_file
    from hyps_compiler.report.gather import gather
    from hyps_compiler.report.page import page_of
    from hyps_compiler.report.sources import Wanted, read_sources

    # a page in the plan's folder harms nobody
    of_plan = [file for file in plan.rglob("*") if file.is_file() and file.suffix != ".html"]
    check_apart(output, model, *profiles, cluster, *of_plan)
    check_output_file(output, force=force)
    wanted = Wanted(plan, model, profiles, cluster, parse_shapes(shapes), max_tensor, is_run, converting)
    with progress("reporting", quiet=verbosity() < 0) as bar:

        def step(text: str) -> None:
            bar.enter(text)
            if verbosity() > 0:
                say(text)

        page = page_of(gather(read_sources(wanted, step), step, has_map=not no_map))
    with output_file(output) as beside:
        beside.write_bytes(page)
    say(f"wrote {printable(str(output))}, {format_nbytes(len(page))}")
