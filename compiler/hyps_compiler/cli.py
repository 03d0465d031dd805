"""`hypsc`: the compiler on the command line."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyps.adapters.guard import allowed_seconds, note_phase
from hyps.errors import DifferenceError, UsageError, printable
from hyps.terminal import COUNT, NBYTES, ContainedGroup, progress, say, verbosity
from hyps_compiler.cli_annotate import annotate
from hyps_compiler.cli_check import check
from hyps_compiler.cli_cluster import cluster
from hyps_compiler.cli_compare import compare
from hyps_compiler.cli_convert import convert
from hyps_compiler.cli_options import (
    PATH,
    SHAPES_HELP,
    converting_options,
    max_tensor_option,
    parse_shapes,
    print_json,
    require_compiler,
    timeout_option,
)
from hyps_compiler.cli_placement import placement_options, placement_request, refuse_own_cuts
from hyps_compiler.cli_profile import profile
from hyps_compiler.cli_quantize import quantize_options, verify_quantized
from hyps_compiler.cli_report import report
from hyps_compiler.cli_simulate import simulate
from hyps_compiler.cli_status import status
from hyps_compiler.converting import Converting

if TYPE_CHECKING:
    from hyps_compiler.partition import Request


_CUT_HELP = (
    "Where to cut: mandatory, pooling, strided, bottleneck, all, annotations (the model's own), or names of tensors or"
    " layers, behind which it is cut; joined by commas."
)


@click.group(cls=ContainedGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Cut trained neural networks (ONNX) into partitions that fit the devices there are.

    \b
    Examples:
      hypsc compile model.onnx -o plan/ --memory 256MB
      hypsc compile zoo:vgg16 -o plan/ --max-params 30M
      hypsc inspect plan/
      hypsc run plan/ -i image=photo.npy -o answer.npz
    """


@main.command(name="compile")
@click.argument("model")
@click.option("-o", "--output", required=True, type=PATH, help="The plan folder to make.")
@click.option("--max-params", type=COUNT, help="Most parameters one partition may hold, such as 30M.")
@click.option("--memory", type=NBYTES, help="Most memory one worker process may use, such as 256MB.")
@click.option("--cut", default="mandatory", show_default=True, help=_CUT_HELP)
@click.option("--configuration", metavar="NAME", help="With --cut annotations: which of the model's to follow.")
@click.option("--partitions", type=click.IntRange(min=1), help="Exactly so many partitions.")
@click.option(
    "--optimize",
    type=click.Choice(["none", "portable", "native"]),
    default="portable",
    show_default=True,
    help="Fusions that onnxruntime makes before the cut: for any CPU, or with layouts for this CPU family.",
)
@placement_options
@quantize_options
@click.option("--input", "shapes", multiple=True, help=SHAPES_HELP)
@click.option("--inputs", type=PATH, help="An .npz file with a request to verify on.")
@click.option("--no-verify", is_flag=True, help="Do not compare the plan with the model.")
@converting_options
@max_tensor_option
@click.option("--force", is_flag=True, help="Replace an existing plan folder.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the checks as JSON.")
def compile_command(
    model: str,
    output: Path,
    max_params: int | None,
    memory: int | None,
    cut: str,
    configuration: str | None,
    partitions: int | None,
    optimize: Any,
    shapes: tuple[str, ...],
    inputs: Path | None,
    no_verify: bool,
    max_tensor: int,
    converting: Converting,
    force: bool,
    as_json: bool,
    quantize: Any,
    calibration: Path | None,
    **placing: Any,
) -> None:
    """Cut MODEL into partitions and write a plan folder.

    MODEL is an ONNX file, zoo:NAME for a reference model, or anything that `hypsc convert` takes (of Keras, TensorFlow,
    PyTorch, scikit-learn), which is converted first and compared with its source. Without limits and with `--cut
    mandatory` the model is left whole. A layer that exceeds a limit by itself is divided in the way that costs least:
    rows, channels, heads, tiles of several layers, parts of a sum. With `--cluster` the search decides where it is cut
    and what runs where, and PLAN/devices/NAME holds what each device needs.

    \b
    Examples:
      hypsc compile model.onnx -o plan/ --memory 256MB
      hypsc compile model.onnx -o plan/ --cut pooling,bottleneck
      hypsc compile model.onnx -o plan/ --cut all --optimize native
      hypsc compile model.onnx -o plan/ --cluster cluster.toml --profile here.json
      hypsc compile model.onnx -o plan/ --quantize int8 --calibration requests/
    """
    require_compiler("onnx", "onnxruntime")
    own = {"--cut": cut not in ("mandatory", "annotations"), "--partitions": partitions, "--memory": memory}
    refuse_own_cuts(placing, {**own, "--optimize": optimize != "portable"}, is_told=cut == "annotations")
    from hyps_compiler import reporting
    from hyps_compiler.driver import Options, compile_model
    from hyps_compiler.output import check_apart
    from hyps_compiler.quantizing_options import quantize_request

    check_apart(output, model, inputs, calibration, placing["cluster"], placing["profile"])
    options = Options(
        request=replace(_request(max_params, memory, cut, partitions), configuration=configuration),
        optimization=optimize,
        shapes=parse_shapes(shapes),
        feeds=_read_npz(inputs) if inputs else None,
        verify=not no_verify,
        force=force,
        max_tensor_nbytes=max_tensor,
        converting=converting,
        quantization=quantize_request(quantize, calibration, has_cluster=placing["cluster"] is not None),
    )
    with progress("compiling", quiet=verbosity() < 0 or as_json) as bar:

        def step(text: str) -> None:
            bar.enter(text)
            if verbosity() > 0:
                say(text)

        placement = placement_request(model, placing, options.shapes, max_tensor, converting, step)
        compiled = compile_model(model, output, replace(options, placement=placement), step)
    if as_json:
        print_json(reporting.compiled_json(compiled))
    elif verbosity() >= 0:
        click.echo(reporting.show_compiled(compiled))


@main.command()
@click.argument("target", metavar="MODEL|PLAN")
@click.option(
    "--max-params", type=COUNT, help="Most parameters one partition may hold: shows the mandatory split points."
)
@click.option("--memory", type=NBYTES, help="Most memory one worker process may use: shows the mandatory split points.")
@click.option("--input", "shapes", multiple=True, help=SHAPES_HELP)
@converting_options
@max_tensor_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(
    target: str,
    max_params: int | None,
    memory: int | None,
    shapes: tuple[str, ...],
    max_tensor: int,
    converting: Converting,
    as_json: bool,
) -> None:
    """Show the layers and split points of a model, or the partitions of a plan.

    \b
    Examples:
      hypsc inspect model.onnx
      hypsc inspect zoo:vgg16 --max-params 30M
      hypsc inspect plan/ --json
    """
    require_compiler("onnx", "onnxruntime")
    import msgspec

    from hyps.adapters.plan_files import read_plan
    from hyps_compiler import inspection

    if _is_plan(Path(target)):
        plan = read_plan(Path(target))
        print_json(msgspec.to_builtins(plan)) if as_json else click.echo(inspection.show_plan(plan))
        return
    with progress("inspecting", quiet=verbosity() < 0 or as_json):
        request = _request(max_params, memory, "mandatory", None)
        view = inspection.inspect_model(
            target, request, parse_shapes(shapes), max_tensor_nbytes=max_tensor, converting=converting
        )
    print_json(msgspec.to_builtins(view)) if as_json else click.echo(inspection.show_model(view))


@main.command()
@click.argument("plan", type=PATH)
@click.option("--model", required=True, help="The model that the plan was made from.")
@click.option("--inputs", type=PATH, help="An .npz file with a request.")
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Random requests to compare.")
@click.option("--reduce", "reduce_to", type=PATH, help="If they differ, write a minimal reproduction there.")
@click.option("--force", is_flag=True, help="Replace an existing reproduction.")
@converting_options
@max_tensor_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def verify(
    plan: Path,
    model: str,
    inputs: Path | None,
    samples: int,
    reduce_to: Path | None,
    force: bool,
    max_tensor: int,
    converting: Converting,
    as_json: bool,
) -> int:
    """Compare PLAN with its model on every border and on the outputs.

    Where they differ it names the first border that does, the partitions that are wrong by themselves, and the layer
    and node at which that begins; the exit status is then 4. A plan with --quantize is compared on the outputs alone,
    and may lose twice what it was measured to lose on average.

    \b
    Examples:
      hypsc verify plan/ --model model.onnx
      hypsc verify plan/ --model model.onnx --samples 10 --json
      hypsc verify plan/ --model model.onnx --reduce difference/
    """
    require_compiler("onnx", "onnxruntime")
    from hyps.adapters.plan_files import read_plan
    from hyps_compiler import findings
    from hyps_compiler.verification import verify_folder

    request = _read_npz(inputs) if inputs else None
    if read_plan(plan).quantization is not None:
        if reduce_to is not None:
            raise UsageError("--reduce is about what a plan computes wrongly, not about what quantization loses")
        return verify_quantized(
            plan, model, request, samples, max_tensor_nbytes=max_tensor, converting=converting, as_json=as_json
        )
    with progress("verifying", quiet=verbosity() < 0 or as_json) as bar:
        verification = verify_folder(
            plan,
            model,
            request,
            samples,
            reduce_to=reduce_to,
            force=force,
            max_tensor_nbytes=max_tensor,
            converting=converting,
            step=bar.enter,
        )
    if as_json:  # one document, whether they agree or not
        print_json(findings.verified_json(verification))
        return _say_difference(verification.difference())
    if verbosity() >= 0:
        click.echo(findings.show_verified(verification))
    verification.check()
    return 0


@main.command()
@click.argument("plan", required=False, type=PATH)
@click.option("-i", "--input", "inputs", multiple=True, help="NAME=file.npy, a .npz file, or an image; may repeat.")
@click.option("-o", "--output", type=PATH, help="An .npz file for the outputs.")
@click.option("--memory", type=NBYTES, help="Most memory this process may use; default: what the plan was made for.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of onnxruntime.")
@click.option(
    "--connect", metavar="ENDPOINT", help="Send to a running worker or manager, such as tcp://127.0.0.1:5757."
)
@click.option("--explain", is_flag=True, help="Show where time and memory go, partition by partition.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print outputs' shapes and times as JSON.")
def run(
    plan: Path | None,
    inputs: tuple[str, ...],
    output: Path | None,
    memory: int | None,
    threads: int | None,
    connect: str | None,
    explain: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Run one request, or a batch, through PLAN, a running worker or a manager.

    An array with one dimension more than its input is a batch of requests. Without `-i` a random request is made. With
    --connect many requests of a batch are under way at once, and --timeout is the deadline of each.

    \b
    Examples:
      hypsc run plan/ -i image=photo.npy -o answer.npz
      hypsc run plan/ -i cat.jpg
      hypsc run plan/ --memory 128MB --explain
      hypsc run --connect tcp://127.0.0.1:5757 -i batch.npz -o answers.npz
    """
    require_compiler("onnxruntime")
    from hyps_compiler.running import run_plan, show_answers

    if (plan is None) == (connect is None):
        raise UsageError("give a plan folder or --connect, not both or neither", "see `hypsc run --help`")
    if connect is not None and (memory is not None or threads is not None):
        raise UsageError("--memory and --threads are the worker's own, not --connect's", "give them to `hyps-worker`")
    if connect is not None and explain:
        raise UsageError("--explain is for a plan that is run here, not for --connect", "give the plan's folder")
    note_phase("running the plan")
    answers = run_plan(
        plan,
        connect,
        inputs,
        output,
        memory_bytes=memory,
        threads=threads,
        force=force,
        timeout_s=allowed_seconds(),
        explain=explain,
    )
    print_json(answers.summary()) if as_json else click.echo(show_answers(answers))
    if output is not None and not as_json and verbosity() >= 0:
        click.echo(f"\nwrote: {printable(str(output))}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(as_json: bool) -> int:
    """Show what this machine can do, what is installed, and what is in the way.

    The exit status is 1 where a package is older than it may be, or one that every command needs is missing.

    \b
    Examples:
      hypsc doctor
      hypsc doctor --json
    """
    from hyps import doctor as checks

    diagnosis = checks.examine()
    print_json(checks.as_json(diagnosis)) if as_json else click.echo(checks.show(diagnosis))
    return diagnosis.exit_status


main.add_command(annotate)
main.add_command(check)
main.add_command(cluster)
main.add_command(compare)
main.add_command(convert)
main.add_command(profile)
main.add_command(report)
main.add_command(simulate)
main.add_command(status)


def _request(max_params: int | None, memory: int | None, cut: str, partitions: int | None) -> "Request":
    from hyps_compiler.partition import Request, parse_cuts

    cuts, tensors = parse_cuts(cut.split(","))
    return Request(max_params=max_params, memory_bytes=memory, cuts=cuts, tensors=tensors, partitions=partitions)


def _say_difference(error: DifferenceError | None) -> int:
    """Say on stderr what differs, and return the exit status."""
    if error is None:
        return 0
    click.echo(f"error: {printable(error.message, 1000)} [{error.code}]\nhint: {error.hint}", err=True)
    return error.exit_status


def _is_plan(folder: Path) -> bool:
    try:
        return (folder / "plan.json").exists()
    except OSError:  # a name that the system cannot have; whoever opens it says so
        return False


def _read_npz(path: Path) -> dict[str, Any]:
    from hyps_compiler.arrays import read_npz

    return read_npz(path)


if __name__ == "__main__":
    sys.exit(main())
