"""Cuts many models at every legal place, runs them in parts and compares with onnxruntime on the whole model."""
