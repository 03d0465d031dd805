"""What came of a conversion, for people: 80 columns wide."""

from collections.abc import Sequence

from hyps.errors import printable
from hyps.formats.plan import NamedTensor
from hyps.formats.quantities import counted, format_nbytes
from hyps.formats.signature import shape_text
from hyps.terminal import table
from hyps_compiler.convert.conversion import Conversion, OutputAgreement

_ROWS = 12
_LABEL = 11


def show_conversion(conversion: Conversion, shown_path: str) -> str:
    """Return what was converted by what, what it is now, what it took, and how far off it is."""
    ports = [("input", value) for value in conversion.inputs] + [("output", value) for value in conversion.outputs]
    rows = [(word, printable(value.name, 36), value.dtype, _shape(value)) for word, value in ports[:_ROWS]]
    more = [f"and {len(ports) - _ROWS} more"] if len(ports) > _ROWS else []
    facts = {
        "source": f"{conversion.what}, {printable(conversion.framework)}",
        "converter": f"{printable(conversion.converter)}, opset {conversion.opset}",
        "model": f"{counted(conversion.nodes, 'node')}, {format_nbytes(conversion.nbytes)}",
        "took": f"{conversion.seconds:.1f} s, {format_nbytes(conversion.peak_nbytes)} resident at most",
        "verified": verdict(conversion),
    }
    lines = [f"{label + ':':{_LABEL}}{text}" for label, text in facts.items()]
    lines += [f"{'note:':{_LABEL}}{printable(note, 400)}" for note in notes(conversion)]
    heads = ("", "name", "dtype", "shape")
    return "\n".join([table(rows, heads), *more, "", *lines, f"{'wrote:':{_LABEL}}{shown_path}"])


def summary(conversion: Conversion) -> str:
    """Return the conversion as one line, for those who asked for something else."""
    made = f"{printable(conversion.framework)} by {printable(conversion.converter)}"
    return f"{made}, {verdict(conversion)}"


def verdict(conversion: Conversion) -> str:
    """Return how far the model is from its source, as a phrase."""
    if conversion.difference is None:
        return f"not compared: {printable(conversion.unverified, 300)}"
    if all(found.equal_share == 1.0 for found in conversion.agreement):
        return "outputs bit-identical to its source's"
    quantized = [found for found in conversion.agreement if found.steps is not None]
    if quantized:
        return _quantized(quantized)
    return f"largest difference {conversion.difference:.0e} of the largest value"


def notes(conversion: Conversion) -> list[str]:
    """Return what the user should know of the result, a sentence each."""
    shaken = [found for found in conversion.agreement if found.rounding is not None]
    told = [
        f"rounding alone moves `{printable(found.output, 40)}` by {found.rounding:.0e} of its largest value on random"
        " inputs, so that its agreement says little: give a real request with --inputs"
        for found in shaken[:3]
    ]
    return [*conversion.notes, *told, *_on_constant(conversion.constant_outputs)]


def _on_constant(constant: Sequence[str]) -> list[str]:
    """Return a sentence on outputs that hardly depend on the inputs, if there are any."""
    if not constant:
        return []
    names = ", ".join(f"`{printable(name, 40)}`" for name in constant[:3])
    return [
        f"on random inputs {names} hardly changes, so that agreement proves little: give a real request with --inputs"
    ]


def _quantized(found: list[OutputAgreement]) -> str:
    share = min(output.equal_share for output in found)
    steps = max(output.steps or 0.0 for output in found)
    return f"{share:.1%} of the values equal, others at most {counted(steps, 'step')} of the quantization off"


def _shape(value: NamedTensor) -> str:
    return "of any rank" if value.shape is None else shape_text(value.shape)
