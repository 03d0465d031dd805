"""Inference in less and less memory: onnxruntime with its defaults, held down as far as it goes, and HyPS."""
