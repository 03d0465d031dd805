"""`hypsc`: the compiler on the command line."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyps.errors import DependencyError, UsageError, printable
from hyps.formats.quantities import format_nbytes
from hyps.terminal import COUNT, NBYTES, HypsGroup, progress, say, verbosity

if TYPE_CHECKING:
    from hyps_compiler.driver import Compiled
    from hyps_compiler.partition import Request
    from hyps_compiler.verify import Report

_SHAPES_HELP = "Shape of an input with open dimensions, as NAME:1x3x224x224; only for sizes, the plan keeps them open."
_CUT_HELP = "Where to cut: mandatory, pooling, strided, bottleneck, all, or tensor names; joined by commas."


@click.group(cls=HypsGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The plan folder to make.")
@click.option("--max-params", type=COUNT, help="Most parameters one partition may hold, such as 30M.")
@click.option("--memory", type=NBYTES, help="Most memory one worker process may use, such as 256MB.")
@click.option("--cut", default="mandatory", show_default=True, help=_CUT_HELP)
@click.option("--partitions", type=click.IntRange(min=1), help="Exactly so many partitions.")
@click.option(
    "--optimize",
    type=click.Choice(["none", "portable", "native"]),
    default="portable",
    show_default=True,
    help="Fusions that onnxruntime makes before the cut: for any CPU, or with layouts for this CPU family.",
)
@click.option("--input", "shapes", multiple=True, help=_SHAPES_HELP)
@click.option("--inputs", type=click.Path(path_type=Path), help="An .npz file with a request to verify on.")
@click.option("--no-verify", is_flag=True, help="Do not compare the plan with the model.")
@click.option("--force", is_flag=True, help="Replace an existing plan folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the checks as JSON.")
def compile_command(
    model: str,
    output: Path,
    max_params: int | None,
    memory: int | None,
    cut: str,
    partitions: int | None,
    optimize: Any,
    shapes: tuple[str, ...],
    inputs: Path | None,
    no_verify: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Cut MODEL into partitions and write a plan folder.

    MODEL is an ONNX file, a Keras model (.keras), a SavedModel folder, or zoo:NAME for a reference model. Without
    limits and with `--cut mandatory` the model is left whole.

    \b
    Examples:
      hypsc compile model.onnx -o plan/ --memory 256MB
      hypsc compile model.onnx -o plan/ --cut pooling,bottleneck
      hypsc compile model.onnx -o plan/ --cut all --optimize native
    """
    _require_compiler()
    from hyps_compiler.driver import Options, compile_model

    options = Options(
        request=_request(max_params, memory, cut, partitions),
        optimization=optimize,
        shapes=_parse_shapes(shapes),
        feeds=_read_npz(inputs) if inputs else None,
        verify=not no_verify,
        force=force,
    )
    with progress("compiling", quiet=verbosity() < 0 or as_json) as bar:

        def step(text: str) -> None:
            bar.label = text
            if verbosity() > 0:
                say(text)

        compiled = compile_model(model, output, options, step)
    if as_json:
        _print_json(_compiled_json(compiled))
    else:
        _show_compiled(compiled)


@main.command()
@click.argument("target", metavar="MODEL|PLAN")
@click.option(
    "--max-params", type=COUNT, help="Most parameters one partition may hold: shows the mandatory split points."
)
@click.option("--memory", type=NBYTES, help="Most memory one worker process may use: shows the mandatory split points.")
@click.option("--input", "shapes", multiple=True, help=_SHAPES_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(target: str, max_params: int | None, memory: int | None, shapes: tuple[str, ...], as_json: bool) -> None:
    """Show the layers and split points of a model, or the partitions of a plan.

    \b
    Examples:
      hypsc inspect model.onnx
      hypsc inspect zoo:vgg16 --max-params 30M
      hypsc inspect plan/ --json
    """
    _require_compiler()
    import msgspec

    from hyps.adapters.plan_files import read_plan
    from hyps_compiler import inspection

    if (Path(target) / "plan.json").exists():
        plan = read_plan(Path(target))
        _print_json(msgspec.to_builtins(plan)) if as_json else click.echo(inspection.show_plan(plan))
        return
    with progress("inspecting", quiet=verbosity() < 0 or as_json):
        view = inspection.inspect_model(target, _request(max_params, memory, "mandatory", None), _parse_shapes(shapes))
    _print_json(msgspec.to_builtins(view)) if as_json else click.echo(inspection.show_model(view))


@main.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model that the plan was made from.")
@click.option("--inputs", type=click.Path(path_type=Path), help="An .npz file with a request.")
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Random requests to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def verify(plan: Path, model: str, inputs: Path | None, samples: int, as_json: bool) -> None:
    """Compare PLAN with its model on every border and on the outputs.

    \b
    Examples:
      hypsc verify plan/ --model model.onnx
      hypsc verify plan/ --model model.onnx --samples 10 --json
    """
    _require_compiler()
    from hyps_compiler.verification import verify_folder

    with progress("verifying", quiet=verbosity() < 0 or as_json):
        report = verify_folder(plan, model, _read_npz(inputs) if inputs else None, samples)
    if as_json:
        _print_json(_report_json(report))
    else:
        click.echo(_show_report(report))
    report.check()


@main.command()
@click.argument("plan", required=False, type=click.Path(path_type=Path))
@click.option("-i", "--input", "inputs", multiple=True, help="NAME=file.npy, a .npz file, or an image; may repeat.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="An .npz file for the outputs.")
@click.option("--memory", type=NBYTES, help="Most memory this process may use; default: what the plan was made for.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of onnxruntime.")
@click.option("--connect", metavar="ENDPOINT", help="Send to a running worker, such as tcp://127.0.0.1:5757.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--json", "as_json", is_flag=True, help="Print outputs' shapes and times as JSON.")
def run(
    plan: Path | None,
    inputs: tuple[str, ...],
    output: Path | None,
    memory: int | None,
    threads: int | None,
    connect: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run one request, or a batch, through PLAN or a running worker.

    An array with one dimension more than its input is a batch of requests. Without `-i` a random request is made.

    \b
    Examples:
      hypsc run plan/ -i image=photo.npy -o answer.npz
      hypsc run plan/ -i cat.jpg
      hypsc run --connect tcp://127.0.0.1:5757 -i batch.npz -o answers.npz
    """
    _require_compiler()
    from hyps_compiler.running import run_plan, show_answers

    if (plan is None) == (connect is None):
        raise UsageError("give a plan folder or --connect, not both or neither", "see `hypsc run --help`")
    answers = run_plan(plan, connect, inputs, output, memory_bytes=memory, threads=threads, force=force)
    _print_json(answers.summary()) if as_json else click.echo(show_answers(answers))


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The ONNX file to write.")
@click.option("--opset", type=click.IntRange(min=7), help="Version of the standard operators; default 17.")
@click.option("--input", "shapes", multiple=True, help="Shape to fix an input to, as NAME:1x224x224x3.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def convert(source: Path, output: Path, opset: int | None, shapes: tuple[str, ...], force: bool) -> None:
    """Convert a Keras model (.keras) or a SavedModel folder to ONNX.

    \b
    Examples:
      hypsc convert model.keras -o model.onnx
      hypsc convert saved_model/ -o model.onnx --input image:1x224x224x3
    """
    _require_compiler()
    from hyps.errors import ModelError, OutputError
    from hyps_compiler.convert import can_convert
    from hyps_compiler.convert import convert as convert_model

    if not source.exists():
        raise ModelError(f"`{printable(str(source))}` does not exist", code="E_NOT_FOUND")
    if not can_convert(source):
        raise ModelError(
            f"`{printable(str(source))}` is neither a Keras model (.keras) nor a SavedModel folder",
            code="E_NOT_CONVERTIBLE",
        )
    if output.exists() and not force:
        raise OutputError(f"`{printable(str(output))}` exists", "add --force to replace it", code="E_EXISTS")
    with progress("converting", quiet=verbosity() < 0):
        convert_model(source, output, opset=opset, inputs=dict(_parse_shapes(shapes)) or None)
    say(f"wrote {printable(str(output))}, {format_nbytes(output.stat().st_size)}")


def _require_compiler() -> None:
    """Refuse at once where only the light runtime is installed.

    Raises:
        DependencyError: with the line that installs the rest.
    """
    missing = [name for name in ("onnx", "onnx_ir", "networkx") if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"the compiler needs {', '.join(missing)}, which is not installed", 'pip install "hyps[compiler]"'
        )


def _request(max_params: int | None, memory: int | None, cut: str, partitions: int | None) -> "Request":
    from hyps_compiler.partition import Request, parse_cuts

    cuts, tensors = parse_cuts(cut.split(","))
    return Request(max_params=max_params, memory_bytes=memory, cuts=cuts, tensors=tensors, partitions=partitions)


def _parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        sizes = dims.split("x") if dims else []
        if not name or not all(size.isdigit() and int(size) > 0 for size in sizes):
            raise UsageError(f"--input `{printable(text)}` is no NAME:SHAPE", "write it like image:1x3x224x224")
        shapes[name] = tuple(int(size) for size in sizes)
    return shapes


def _read_npz(path: Path) -> dict[str, Any]:
    from hyps_compiler.arrays import read_npz

    return read_npz(path)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def _show_compiled(compiled: "Compiled") -> None:
    from hyps_compiler.inspection import show_plan
    from hyps_compiler.partition import describe

    click.echo(show_plan(compiled.plan))
    click.echo()
    click.echo(describe(compiled.division))
    click.echo(f"verify: {_checked(compiled)}")
    if compiled.peak_bytes is not None:
        budget = format_nbytes(compiled.plan.memory_bytes or 0)
        click.echo(f"memory: {format_nbytes(compiled.peak_bytes)} resident at the peak of one request, budget {budget}")
    click.echo(f"wrote {printable(str(compiled.folder))}")


def _checked(compiled: "Compiled") -> str:
    if compiled.report is None:
        return f"skipped, {compiled.unverified}"
    report = compiled.report
    identical = sum(border.is_identical for border in report.borders)
    worst = max((output.relative for output in report.outputs), default=0.0)
    outputs = (
        f"within {worst:.1g} of onnxruntime's, relative to the largest" if worst else "bit-identical to onnxruntime's"
    )
    return (
        f"{identical} of {len(report.borders)} tensors at borders bit-identical to the whole model; outputs {outputs}"
    )


def _show_report(report: "Report") -> str:
    from hyps.terminal import table

    rows = [
        (
            where,
            printable(d.tensor, 40),
            "identical" if d.is_identical else f"{d.relative:.2g}",
            f"{d.largest:.2g}",
            d.dtype,
        )
        for where, differences in (("border", report.borders), ("output", report.outputs))
        for d in differences
    ]
    return table(rows, ("where", "tensor", "relative", "largest", "dtype"), "llrrl")


def _report_json(report: "Report") -> dict[str, Any]:
    def told(differences: Any) -> list[dict[str, Any]]:
        return [
            {
                "tensor": d.tensor,
                "identical": d.is_identical,
                "largest": _finite(d.largest),
                "relative": _finite(d.relative),
                "dtype": d.dtype,
            }
            for d in differences
        ]

    return {"borders": told(report.borders), "outputs": told(report.outputs), "problems": report.problems()}


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _compiled_json(compiled: "Compiled") -> dict[str, Any]:
    import msgspec

    return {
        "folder": str(compiled.folder),
        "plan": msgspec.to_builtins(compiled.plan),
        "verification": _report_json(compiled.report) if compiled.report else None,
        "unverified": compiled.unverified,
        "peak_bytes": compiled.peak_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
