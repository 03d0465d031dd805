"""`hypsc profile`: what a model costs on this device, and what the way to a worker costs."""

import os
from pathlib import Path

import click

from hyps.adapters.guard import note_phase
from hyps.errors import OutputError, UsageError, printable
from hyps.formats.quantities import format_nbytes
from hyps.terminal import NBYTES, HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import (
    BATCHES,
    PATH,
    converting_options,
    max_tensor_option,
    parse_shapes,
    print_json,
    require_compiler,
    timeout_option,
)
from hyps_compiler.converting import Converting

_QUICK_REPEATS, _QUICK_BORDERS = 3, 20

_SHAPES_HELP = "Shape of an input with open dimensions, as NAME:1x3x224x224; the profile holds for these sizes."


@click.command(cls=HypsCommand)
@click.argument("model", required=False, metavar="[MODEL|PROFILE]")
@click.option("-o", "--output", type=PATH, help="The profile to write, a JSON file.")
@click.option("--device", default="", help="Name of the device in the profile; default: local.")
@click.option("--batch", "batches", default="1", show_default=True, type=BATCHES, help="Such as 1,4,16.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one partition; default: one per core.")
@click.option("--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Runs of each piece.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Most borders measured; the rest modelled.",
)
@click.option("--quick", is_flag=True, help=f"{_QUICK_REPEATS} runs at {_QUICK_BORDERS} borders: rough, and fast.")
@click.option("--memory", type=NBYTES, help="Most memory to use; less than the model takes: layer by layer.")
@click.option(
    "--connect", "peers", multiple=True, metavar="ENDPOINT", help="Measure the link to a running worker; may repeat."
)
@click.option("--scale", type=float, help="Write the profile of a device of so many times the speed, such as 0.25.")
@click.option("--input", "shapes", multiple=True, help=_SHAPES_HELP)
@converting_options
@max_tensor_option
@click.option("--force", is_flag=True, help="Replace an existing file.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def profile(
    model: str | None,
    output: Path | None,
    device: str,
    batches: tuple[int, ...],
    threads: int | None,
    repeats: int,
    layers: int,
    quick: bool,
    memory: int | None,
    peers: tuple[str, ...],
    scale: float | None,
    shapes: tuple[str, ...],
    max_tensor: int,
    converting: Converting,
    force: bool,
    as_json: bool,
) -> None:
    """Measure what the layers of MODEL, and cuts between them, cost on this device.

    Pieces of the model run as a worker would run them, in turns, so that figures can be compared. A device that cannot
    hold the whole model is measured layer by layer. With `--connect` the link from here to a worker is measured, alone
    or for the profile. Instead of MODEL a PROFILE that was written before (.json) can be given links, or be scaled.

    \b
    Examples:
      hypsc profile model.onnx -o pi4.json --device pi4
      hypsc profile zoo:resnet50 -o server.json --batch 1,4,16 --threads 2
      hypsc profile --connect tcp://192.168.1.7:5757
      hypsc profile server.json -o slow.json --scale 0.25 --device slow
    """
    require_compiler("onnx", "onnxruntime")
    import msgspec

    from hyps.formats.profiles import Profile, encode_profile
    from hyps_compiler.output import check_apart
    from hyps_compiler.profiling import ProfileOptions, make_profile, measure_links
    from hyps_compiler.profiling_report import show_link, show_profile

    if model is None and (not peers or output is not None or scale is not None):
        raise UsageError("no model is given", "name a model, or --connect alone to measure a link")
    given = {"--batch": batches != (1,), "--threads": threads, "--memory": memory, "--input": shapes, "--quick": quick}
    if model is not None and model.endswith(".json") and any(given.values()):
        option = next(name for name, value in given.items() if value)
        raise UsageError(f"{option} is about a model, and `{printable(model)}` is a profile", "leave it out")
    if output is not None and model is not None and not model.endswith(".json"):  # a profile may be written anew
        check_apart(output, model)
    _refuse_existing(output, force)
    options = ProfileOptions(
        device=device,
        batches=batches,
        threads=threads,
        repeats=_QUICK_REPEATS if quick else repeats,
        borders=_QUICK_BORDERS if quick else layers,
        memory_bytes=memory,
        peers=peers,
        scale=scale,
        shapes=parse_shapes(shapes),
        max_tensor_nbytes=max_tensor,
        converting=converting,
    )
    with progress("profiling", quiet=verbosity() < 0 or as_json) as bar:
        made = measure_links(peers, bar.enter) if model is None else make_profile(model, options, bar.enter)
    if output is not None and isinstance(made, Profile):
        _write(output, encode_profile(made))
    if as_json:
        print_json(msgspec.to_builtins(made, str_keys=True))
    elif verbosity() >= 0:
        click.echo(show_profile(made) if isinstance(made, Profile) else "\n".join(map(show_link, made)))
    if output is not None:
        say(f"wrote {printable(str(output))}, {format_nbytes(output.stat().st_size)}")


def _refuse_existing(output: Path | None, force: bool) -> None:
    if output is not None and output.exists() and not (force and output.is_file()):
        hint = "add --force to replace it" if output.is_file() else "give another name"
        raise OutputError(f"`{printable(str(output))}` exists", hint, code="E_EXISTS")


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    note_phase("writing the profile")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        reason = error.strerror or "the system refuses"
        raise OutputError(f"`{printable(str(path))}` cannot be written: {printable(reason)}") from error
    finally:
        beside.unlink(missing_ok=True)
