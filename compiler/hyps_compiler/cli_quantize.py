"""What `hypsc compile` can be told about quantization, and `hypsc verify` of a plan that was quantized."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hyps.terminal import progress, verbosity
from hyps_compiler.cli_options import PATH, print_json
from hyps_compiler.converting import Converting

_Command = TypeVar("_Command", bound=Callable[..., Any])

_QUANTIZE_HELP = "Compute in 8 bits, or store weights in 16: lossy; the plan says what it loses."


def quantize_options(command: _Command) -> _Command:
    """Give a command the options of quantization."""
    command = click.option("--calibration", type=PATH, help="Requests for --quantize: an .npz file, or a folder.")(
        command
    )
    return click.option("--quantize", type=click.Choice(["int8", "fp16"]), help=_QUANTIZE_HELP)(command)


def verify_quantized(
    plan: Path,
    model: str,
    request: Mapping[str, Any] | None,
    samples: int,
    *,
    max_tensor_nbytes: int,
    converting: Converting,
    as_json: bool,
) -> int:
    """Compare a quantized plan with the unquantized model, say what was found, and return the exit status."""
    from hyps_compiler import quantizing_report
    from hyps_compiler.quantized_verification import verify_loss

    with progress("verifying", quiet=verbosity() < 0 or as_json) as bar:
        found = verify_loss(
            plan,
            model,
            request,
            samples,
            max_tensor_nbytes=max_tensor_nbytes,
            converting=converting,
            step=bar.enter,
        )
    if as_json:
        print_json(quantizing_report.loss_json(found))
        return found.exit_status
    if verbosity() >= 0:
        click.echo(quantizing_report.show_loss(found))
    found.check()
    return 0
