"""`python -m hyps_models NAME -o FILE.onnx`: writes a reference model to a file."""

import sys
from pathlib import Path

import click

from hyps_models.zoo import MODELS, UnknownModelError, names, save

_EPILOG = """\b
Examples:
  python -m hyps_models vgg16 -o vgg16.onnx
  python -m hyps_models encoder-small -o encoder.onnx --seed 7
  python -m hyps_models --list
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write, whole or not at all."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random weights.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *given: _list(*given),
    help="List the models.",
)
def main(name: str, output: Path, seed: int) -> None:
    """Write the reference model NAME to a file; the same seed gives the same file."""
    try:
        save(name, output, seed)
    except UnknownModelError as error:
        _fail(error.message, error.hint, 2)
    except OSError as error:
        _fail(f"cannot write `{output}`: {error.strerror or error}", "choose another file with `-o`", 1)


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    for name in names():
        reference = MODELS[name]
        click.echo(f"{name:<14} {reference.parameters:>11,} parameters  {reference.summary}")
    context.exit()


def _fail(message: str, hint: str, exit_status: int) -> None:
    click.echo(f"error: {message}\nhint: {hint}", err=True)
    sys.exit(exit_status)


if __name__ == "__main__":
    main(prog_name="python -m hyps_models")
