"""`hypsc convert`: a model of another framework made into an ONNX file."""

from pathlib import Path

import click
import msgspec

from hyps.errors import UsageError, printable
from hyps.terminal import HypsCommand, progress, say, verbosity
from hyps_compiler.cli_options import PATH, parse_open_shapes, print_json, require_compiler, timeout_option


@click.command(cls=HypsCommand)
@click.argument("source", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The ONNX file to write.")
@click.option(
    "--opset", type=click.IntRange(min=7), help="Version of the standard operators; default: the converter's."
)
@click.option("--input", "shapes", multiple=True, help="Shape to fix an input to, as NAME:1x224x224x3; ? stays open.")
@click.option("--outputs", help="Tensors that a frozen graph is to compute, joined by commas; default: its last ones.")
@click.option("--inputs", type=PATH, help="An .npz file with a request to compare on, in place of random ones.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=2, show_default=True, help="Random requests to compare on."
)
@click.option("--no-verify", is_flag=True, help="Do not compare the ONNX model with its source.")
@click.option("--module", "modules", multiple=True, help="Python module that registers the model's own classes.")
@click.option("--trust", is_flag=True, help="Run code in SOURCE, as reading a pickle does.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
def convert(
    source: Path,
    output: Path,
    opset: int | None,
    shapes: tuple[str, ...],
    outputs: str | None,
    inputs: Path | None,
    samples: int,
    no_verify: bool,
    modules: tuple[str, ...],
    trust: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE to ONNX and compare the result with it.

    SOURCE is a Keras file (.keras, .h5), a SavedModel folder, a frozen TensorFlow graph (.pb), a TensorFlow Lite model
    (.tflite), a PyTorch exported program (.pt2) or scripted module (.pt), or a scikit-learn model (.skops, .pkl).
    Its framework computes the answers that the ONNX model must give in onnxruntime, within 1e-4 of the largest value.

    \b
    Examples:
      hypsc convert model.keras -o model.onnx
      hypsc convert saved_model/ -o model.onnx --input image:1x224x224x3
      hypsc convert graph.pb -o model.onnx --outputs logits
      hypsc convert model.tflite -o model.onnx --inputs request.npz --json
    """
    require_compiler("onnx", "onnxruntime")
    from hyps_compiler.convert import convert as convert_model
    from hyps_compiler.convert.showing import show_conversion
    from hyps_compiler.output import check_apart, check_output_file

    if no_verify and inputs is not None:
        raise UsageError("--inputs is for the comparison that --no-verify leaves out", "leave one of the two out")
    for path in (output, output.with_name(f"{output.name}.data")):
        check_apart(path, source, inputs)  # says it of an existing one before --force is recommended
        check_output_file(path, force=force)
    with progress("converting", quiet=verbosity() < 0 or as_json) as bar:

        def on_line(line: str) -> None:
            bar.enter(line[:60])
            if verbosity() > 0:
                say(line)

        conversion = convert_model(
            source,
            output,
            opset=opset,
            inputs=parse_open_shapes(shapes),
            outputs=tuple(name for name in (outputs or "").split(",") if name),
            modules=modules,
            samples=0 if no_verify else samples,
            feeds=inputs,
            trust=trust,
            on_line=on_line,
        )
    if as_json:
        difference = {"difference": conversion.difference, "constant_outputs": list(conversion.constant_outputs)}
        print_json({"file": str(output), **msgspec.to_builtins(conversion), **difference})
    elif verbosity() >= 0:
        click.echo(show_conversion(conversion, printable(str(output))))
