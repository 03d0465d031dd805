"""Models of other frameworks made into ONNX files, in a process of its own, and compared with what they were."""

from hyps_compiler.convert.conversion import Conversion
from hyps_compiler.convert.kinds import kind_of
from hyps_compiler.convert.parent import SAMPLES, can_convert, convert

__all__ = ["SAMPLES", "Conversion", "can_convert", "convert", "kind_of"]
