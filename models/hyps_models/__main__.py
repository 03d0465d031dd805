"""`python -m hyps_models NAME -o FILE.onnx`: writes a reference model to a file."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from hyps_models.zoo import MODELS, UnknownModelError, names, save

_EPILOG = """\b
Examples:
  python -m hyps_models vgg16 -o vgg16.onnx
  python -m hyps_models encoder-small -o encoder.onnx --seed 7
  python -m hyps_models --list
"""


def _list(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        for name in names():
            reference = MODELS[name]
            click.echo(f"{name:<17} {reference.parameters:>11,} parameters  {reference.summary}")
        context.exit()


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write; it is replaced.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random weights.")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the models and exit."
)
def main(name: str, output: Path, seed: int) -> None:
    """Write the reference model NAME to a file, whole or not at all; the same seed gives the same file."""
    try:
        save(name, output, seed)
    except UnknownModelError as error:
        _fail(error.message, error.hint, exit_status=2)
    except OSError as error:
        shown = repr(str(output)[:120])[1:-1]
        _fail(f"cannot write `{shown}`: {(error.strerror or str(error)).lower()}", "choose another file with `-o`")


def _fail(message: str, hint: str, exit_status: int = 1) -> NoReturn:
    click.echo(f"error: {message}\nhint: {hint}", err=True)
    sys.exit(exit_status)


if __name__ == "__main__":
    main(prog_name="python -m hyps_models")
