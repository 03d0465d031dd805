"""Keras files and TensorFlow SavedModel folders made into ONNX files, by tf2onnx in a process of its own."""

from hyps_compiler.convert.parent import can_convert, convert

__all__ = ["can_convert", "convert"]
