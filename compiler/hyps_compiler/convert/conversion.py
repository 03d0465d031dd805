"""What came of a conversion: by what it was made, what it is, what it took, and how far off it is."""

import msgspec

from hyps.formats.plan import NamedTensor


class OutputAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far one output of the ONNX model, in onnxruntime, is from what the source framework computes."""

    output: str
    difference: float
    """Largest difference, relative to the largest value."""
    absolute: float
    """Largest difference, in the output's own unit."""
    tolerance: float
    """How large `difference` may be."""
    rounding: float | None = None
    """How far rounding alone moves the output in onnxruntime, relative to its largest value; only measured where
    `difference` is beyond what it may be otherwise, and `tolerance` is then a few times as much."""
    equal_share: float
    """Share of the elements that are equal bit for bit."""
    varies: bool | None = None
    """Whether the output depends on the input: it differed among the samples by much more than the two frameworks do.
    None: there was only one sample, so nobody knows."""
    is_blank: bool = False
    """Whether all its values are NaN in both, of which agreement proves nothing."""
    steps: float | None = None
    """Of an output made of quantized values: `absolute` in steps of the quantization."""


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """A finished conversion."""

    kind: str
    """Name of the row of `kinds.KINDS`."""
    what: str
    """The kind in words, such as `a Keras file`."""
    framework: str
    converter: str
    opset: int
    nodes: int
    """In the model's graph and all graphs inside it."""
    nbytes: int
    """Of the ONNX file and the weights beside it."""
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[NamedTensor, ...]
    seconds: float
    """From the call to the finished file."""
    peak_nbytes: int
    """Most memory that was resident in the child process."""
    samples: int = 0
    """Requests on which it was compared."""
    agreement: tuple[OutputAgreement, ...] = ()
    unverified: str = ""
    """Why it was not compared, as a phrase; empty where it was."""
    notes: tuple[str, ...] = ()
    """What the user should know of the result, a sentence each."""

    @property
    def difference(self) -> float | None:
        """Largest difference of any output, relative to its largest value; None where none was compared."""
        return max((found.difference for found in self.agreement), default=None)

    @property
    def constant_outputs(self) -> tuple[str, ...]:
        """Outputs that are equal whatever the input is, of which agreement proves nothing."""
        return tuple(found.output for found in self.agreement if found.varies is False)
