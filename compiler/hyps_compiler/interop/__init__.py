"""What other tools say in a model about how to divide it: ONNX's multi-device annotations, Olive's assignments."""
