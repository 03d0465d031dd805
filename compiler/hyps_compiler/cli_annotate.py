"""`hypsc annotate`: a plan written back into its model, for other tools."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hyps.terminal import HypsCommand, progress, verbosity
from hyps_compiler.cli_options import PATH, converting_options, max_tensor_option, print_json, require_compiler
from hyps_compiler.converting import Converting

FORMATS = ("onnx", "olive")
"""Those of `hyps_compiler.interop.annotating.WRITERS`, known here without onnx."""


@click.command(cls=HypsCommand)
@click.argument("model")
@click.option("--plan", required=True, type=PATH, help="The plan folder that was made from it.")
@click.option("-o", "--output", required=True, type=PATH, help="The ONNX file to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="onnx",
    show_default=True,
    help="Device configurations of ONNX (IR version 11), or Olive's `split_assignments`.",
)
@converting_options
@max_tensor_option
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def annotate(
    model: str,
    plan: Path,
    output: Path,
    form: Any,
    converting: Converting,
    max_tensor: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write the borders and the placement of PLAN into a copy of its MODEL.

    Each variant of the plan becomes a device configuration, each V-partition a pipeline stage; H-partitions become
    divided weights. onnxruntime computes with such a model what it computed before. `hypsc compile --cut annotations`
    cuts it at the same borders again.

    \b
    Examples:
      hypsc annotate model.onnx --plan plan/ -o annotated.onnx
      hypsc annotate model.onnx --plan plan/ -o for-olive.onnx --format olive
    """
    require_compiler("onnx", "onnxruntime")
    from hyps_compiler.interop.annotating import annotate_model, show_annotated

    with progress("annotating", quiet=verbosity() < 0 or as_json):
        annotated = annotate_model(
            model, plan, output, form, force=force, max_tensor_nbytes=max_tensor, converting=converting
        )
    if as_json:
        print_json({**asdict(annotated), "path": str(annotated.path)})
    elif verbosity() >= 0:
        click.echo(show_annotated(annotated))
